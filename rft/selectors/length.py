"""Chooses by length: the shortest answers, or those that are neither very short nor very long."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from rft.selectors import _common
from rft.selectors._common import checked, sampled
from rft.types import Choice, Finish, Group, Scored, digest


def _fits(args: dict[str, Any]) -> None:
    if args.get("prefer", "shortest") == "shortest":
        others = [name for name in ("low", "high", "over") if name in args]
        if others:
            raise ValueError(f"{', '.join(others)}: only with prefer: band")
    elif "k" in args:
        raise ValueError("k: only with prefer: shortest")
    elif args.get("low", 0.0) > args.get("high", 1.0):
        raise ValueError("low is above high: nothing could be kept")


@checked(_fits)
def length(
    groups: Iterable[Group],
    *,
    prefer: Literal["shortest", "band"] = "shortest",
    k: Annotated[int, Field(ge=1)] = 1,
    low: Annotated[float, Field(ge=0, le=1)] = 0.0,
    high: Annotated[float, Field(ge=0, le=1)] = 1.0,
    over: Literal["prompt", "all"] = "prompt",
    unit: Literal["tokens", "characters"] = "tokens",
) -> Iterator[Choice]:
    """Keeps the shortest sampled candidates, or those in a band of quantiles; references stay.

    Verdicts play no part: after `correct` these are the shortest correct ones. Drops the others as
    `not_shortest`, or `too_short` and `too_long`. Ties among the shortest go by a hash of the
    candidate's id; a candidate as long as the band's edge is inside. One that was stopped in a loop
    has no length of its own: it is dropped as `loop`, and no quantile counts it. With `over: all` it
    goes over the whole set twice.

    prefer: the `shortest` of each prompt, or a `band` of lengths.
    k: with `shortest`, most sampled candidates to keep of one prompt.
    low: with `band`, the quantile below which a candidate is too short; 0.1 leaves out the shortest
    tenth.
    high: with `band`, the quantile above which a candidate is too long.
    over: with `band`, take the quantiles among the sampled candidates of each `prompt`, or of `all`.
    unit: count `tokens` or `characters`.
    """
    if prefer == "shortest":
        for group in groups:
            shortest = sorted(
                (_common.length(row, unit), digest(row.candidate.id), row.candidate.id)
                for row in sampled(group.rows)
                if not _looped(row)
            )
            chosen = {id for _, _, id in shortest[:k]}
            for row in group.rows:
                kept = row.is_reference or row.candidate.id in chosen
                yield row, None if kept else "loop" if _looped(row) else "not_shortest"
    elif over == "prompt":
        for group in groups:
            yield from _band(group, _edges([group], low, high, unit), unit)
    else:
        edges = _edges(groups, low, high, unit)
        for group in groups:
            yield from _band(group, edges, unit)


def _looped(row: Scored) -> bool:
    return row.candidate.finish is Finish.LOOP


def _edges(groups: Iterable[Group], low: float, high: float, unit: str) -> Any:
    """The lengths at the band's two quantiles."""
    lengths = [
        _common.length(row, unit)
        for group in groups
        for row in sampled(group.rows)
        if not _looped(row)
    ]
    return np.quantile(lengths, [low, high]) if lengths else (0, 0)


def _band(group: Group, edges: Any, unit: str) -> Iterator[Choice]:
    least, most = edges
    for row in group.rows:
        if row.is_reference:
            yield row, None
            continue
        if _looped(row):
            yield row, "loop"
            continue
        long = _common.length(row, unit)
        yield row, "too_short" if long < least else "too_long" if long > most else None
