"""The same number of samples for every prompt, siblings one after the other."""

from collections.abc import Iterator

from rft.types import Tallies, Tally


def uniform(tallies: Tallies) -> Iterator[Tally | None]:
    """Draws `sample.n` samples of each prompt, in the order of the data. Looks at no verdicts."""
    for tally in tallies:
        while tally.drawn < tally.limit:
            yield tally
