"""The control that every filter must beat: as many candidates, chosen by chance."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from rft.selectors._common import checked, drawn, exactly_one, sampled
from rft.types import Choice, Group, Scored


@checked(exactly_one("rows", "per_prompt"))
def random(
    groups: Iterable[Group],
    *,
    rows: Annotated[int | None, Field(ge=1)] = None,
    per_prompt: Annotated[int | None, Field(ge=1)] = None,
    seed: int = 0,
) -> Iterator[Choice]:
    """Keeps sampled candidates by chance, whatever their verdict, and the references that `correct`
    keeps.

    rows: how many to keep of all: a number, or `arm:NAME` in YAML for as many sampled rows as that
    arm selected.
    per_prompt: how many to keep of each prompt, or all of a prompt that has fewer. Give either this
    or `rows`.
    seed: another one gives another choice; by default the experiment's seed.

    Drops the others as `not_drawn`. The choice depends on the candidates' ids and the seed alone,
    not on their order. With `rows` it holds the whole set, since a choice over all prompts cannot be
    made one prompt at a time, and raises ValueError if there are fewer candidates than rows: a
    smaller control would not be matched.
    """
    if per_prompt is not None:
        for group in groups:
            yield from _draw(group.rows, per_prompt, seed)
        return
    assert rows is not None
    everything = [row for group in groups for row in group.rows]
    there = len(sampled(everything))
    if rows > there:
        raise ValueError(f"{rows} rows are asked for, and there are {there} candidates")
    yield from _draw(everything, rows, seed)


def _draw(rows: Iterable[Scored], count: int, seed: int) -> Iterator[Choice]:
    chosen = drawn(sampled(rows), count, seed)
    for row in rows:
        if row.is_reference:
            yield row, row.fault
        else:
            yield row, None if row.candidate.id in chosen else "not_drawn"
