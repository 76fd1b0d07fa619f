"""Keeps what the scorers call correct."""

from collections.abc import Iterable, Iterator

from rft.types import Choice, Group


def correct(groups: Iterable[Group]) -> Iterator[Choice]:
    """Drops candidates under the scorer's reason, e.g. `truncated`, or as `wrong`.

    A worked solution of a problem without a gold answer stays: nothing can be held against it.
    """
    for group in groups:
        for row in group.rows:
            yield row, row.fault
