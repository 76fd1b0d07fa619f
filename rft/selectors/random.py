"""The control that every filter must beat: as many candidates, chosen by chance."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from rft.selectors._common import checked, drawn, exactly_one, ids
from rft.types import Choice, Group


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
    not on their order. With `rows` it goes over the whole set twice, since a choice over all prompts
    cannot be made one prompt at a time, and raises ValueError if there are fewer candidates than rows: a
    smaller control would not be matched.
    """
    if per_prompt is not None:
        for group in groups:
            yield from _choices(group, drawn(ids(group), per_prompt, seed))
        return
    assert rows is not None
    everything = [id for group in groups for id in ids(group)]
    if rows > len(everything):
        raise ValueError(f"{rows} rows are asked for, and there are {len(everything)} candidates")
    chosen = drawn(everything, rows, seed)
    for group in groups:
        yield from _choices(group, chosen)


def _choices(group: Group, chosen: set[str]) -> Iterator[Choice]:
    for row in group.rows:
        if row.is_reference:
            yield row, row.fault
        else:
            yield row, None if row.candidate.id in chosen else "not_drawn"
