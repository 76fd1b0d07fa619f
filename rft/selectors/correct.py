"""Keeps what the scorers call correct."""

from collections.abc import Iterable, Iterator

from rft.types import Choice, Group, Verdict


def correct(groups: Iterable[Group]) -> Iterator[Choice]:
    """Drops wrong candidates as `wrong`, undecided ones under why they are, e.g. `truncated`."""
    for group in groups:
        for row in group.rows:
            if row.score.verdict is Verdict.CORRECT:
                yield row, None
            else:
                yield row, row.score.reason or str(row.score.verdict)
