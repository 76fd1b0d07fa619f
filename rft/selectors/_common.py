"""What several selectors share: a fixed order, an order by chance, and checks of their arguments."""

import functools
import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from rft.types import Group, Scored, digest

Selecting = TypeVar("Selecting", bound=Callable[..., Any])
Check = Callable[[dict[str, Any]], None]


def in_order(rows: Iterable[Scored]) -> list[Scored]:
    """References first, then samples by index: an order that follows from the rows alone."""
    return sorted(rows, key=lambda r: (not r.is_reference, r.candidate.index, r.candidate.id))


def sampled(rows: Iterable[Scored]) -> list[Scored]:
    return [row for row in rows if not row.is_reference]


def ids(group: Group) -> Iterator[str]:
    """Ids of a group's sampled candidates."""
    return (row.candidate.id for row in sampled(group.rows))


def drawn(ids: Iterable[str], count: int, seed: int) -> set[str]:
    """`count` ids by chance: it follows from the ids and the seed, not from their order."""
    return set(heapq.nsmallest(count, ids, key=lambda id: digest(id, seed)))


def value(row: Scored) -> float | None:
    """The score's number; None where there is none to compare."""
    number = row.score.value
    return number if number is not None and math.isfinite(number) else None


def best(values: Iterable[tuple[float, str]], count: int) -> set[str]:
    """Ids of the `count` highest values, given as (value, id); ties go by a hash of the id."""
    valued = ((-v, digest(id), id) for v, id in values)
    return {id for _, _, id in heapq.nsmallest(count, valued)}


def valued(rows: Iterable[Scored]) -> Iterator[tuple[float, str]]:
    """(value, id) of the rows that have a value."""
    return ((v, row.candidate.id) for row in rows if (v := value(row)) is not None)


def length(row: Scored, unit: str) -> int:
    """A candidate's length in `tokens` or `characters`."""
    return row.tokens if unit == "tokens" else len(row.candidate.text)


def checked(check: Check) -> Callable[[Selecting], Selecting]:
    """For what the annotations cannot say of a selector's arguments together.

    check: raises ValueError over the arguments that are given. It runs when the selector is called,
    and before that when an experiment is planned (rft/components.py), so that a wrong argument does
    not wait until all the sampling is done.
    """

    def wrap(selector: Selecting) -> Selecting:
        @functools.wraps(selector)
        def call(groups: Iterable[Group], **args: Any) -> Any:
            check(args)
            return selector(groups, **args)

        call.check_args = check  # type: ignore[attr-defined]
        return cast(Selecting, call)

    return wrap


def exactly_one(*names: str) -> Check:
    """A check that one of these arguments is given, and no second one."""

    def check(args: dict[str, Any]) -> None:
        given = [name for name in names if args.get(name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {' and '.join(names)}")

    return check
