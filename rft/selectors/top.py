"""Best of n: the candidates of the highest value, prompt by prompt."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from rft.selectors._common import best, sampled, value, valued
from rft.types import Choice, Group


def top(groups: Iterable[Group], *, k: Annotated[int, Field(ge=1)] = 1) -> Iterator[Choice]:
    """Keeps the k sampled candidates of each prompt with the highest value; references stay.

    Drops the others as `not_top`, and as `no_value` where the scorers gave no number. Ties go by a
    hash of the candidate's id, so that neither order nor index has a say.

    k: most sampled candidates to keep of one prompt.
    """
    for group in groups:
        chosen = best(valued(sampled(group.rows)), k)
        for row in group.rows:
            if row.is_reference or row.candidate.id in chosen:
                yield row, None
            else:
                yield row, "no_value" if value(row) is None else "not_top"
