"""Keeps candidates by the number that a scorer gave them, for instance a reward."""

from collections.abc import Iterable, Iterator
from typing import Any

from rft.selectors._common import checked, value
from rft.types import Choice, Group


def _bounds(args: dict[str, Any]) -> None:
    low, high = args.get("min"), args.get("max")
    if low is None and high is None:
        raise ValueError("give min or max, or both")
    if low is not None and high is not None and low > high:
        raise ValueError(f"min {low} is above max {high}: nothing could be kept")


@checked(_bounds)
def threshold(
    groups: Iterable[Group], *, min: float | None = None, max: float | None = None
) -> Iterator[Choice]:
    """Keeps sampled candidates whose score's value lies between two bounds; references stay.

    Drops the others as `below_min`, `above_max`, and `no_value` where the scorers gave no number.

    min: lowest value to keep; it counts as inside.
    max: highest value to keep; it counts as inside.
    """
    for group in groups:
        for row in group.rows:
            number = value(row)
            if row.is_reference:
                yield row, None
            elif number is None:
                yield row, "no_value"
            elif min is not None and number < min:
                yield row, "below_min"
            else:
                yield row, "above_max" if max is not None and number > max else None
