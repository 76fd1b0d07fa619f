"""The control that every filter must beat: as many candidates, chosen by chance."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from rft.types import Choice, Group, digest


def random(
    groups: Iterable[Group], *, rows: Annotated[int, Field(ge=1)], seed: int = 0
) -> Iterator[Choice]:
    """Keeps `rows` sampled candidates, whatever their verdict, and the references that `correct`
    keeps.

    rows: a number, or `arm:NAME` in YAML for as many sampled rows as that arm selected.
    seed: another one gives another choice; by default the experiment's seed.

    The choice depends on the candidates' ids and the seed alone, not on their order. Holds the
    whole set, since a choice over all prompts cannot be made one prompt at a time. Raises ValueError
    if there are fewer candidates than rows: a smaller control would not be matched.
    """
    everything = [row for group in groups for row in group.rows]
    sampled = [row.candidate.id for row in everything if not row.is_reference]
    if rows > len(sampled):
        raise ValueError(f"{rows} rows are asked for, and there are {len(sampled)} candidates")
    chosen = set(sorted(sampled, key=lambda id: digest(id, seed))[:rows])
    for row in everything:
        if row.is_reference:
            yield row, row.fault
        else:
            yield row, None if row.candidate.id in chosen else "not_drawn"
