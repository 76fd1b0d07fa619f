"""The candidates of the highest value over all prompts, however they fall on the prompts."""

import math
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from rft.selectors._common import best, checked, exactly_one, sampled, value, valued
from rft.types import Choice, Group


@checked(exactly_one("rows", "share"))
def top_overall(
    groups: Iterable[Group],
    *,
    rows: Annotated[int | None, Field(ge=1)] = None,
    share: Annotated[float | None, Field(gt=0, le=1)] = None,
) -> Iterator[Choice]:
    """Keeps the sampled candidates with the highest value of all prompts; references stay.

    Drops the others as `not_top`, and as `no_value` where the scorers gave no number. Ties go by a
    hash of the candidate's id. Goes over the whole set twice. Raises ValueError if fewer candidates than
    `rows` have a value: an arm that is matched with another would silently be smaller.

    rows: how many to keep: a number, or `arm:NAME` in YAML for as many sampled rows as that arm
    selected.
    share: how many to keep, as a share of the sampled candidates with a value, rounded up. Give
    either this or `rows`.
    """
    # Twice over the groups: first their values, then the choice.
    values = [pair for group in groups for pair in valued(sampled(group.rows))]
    there = len(values)
    if rows is not None and rows > there:
        raise ValueError(f"{rows} rows are asked for, and {there} candidates have a value")
    # 0.07 * 100 is 7.000000000000001, of which the last digit is not to be rounded up.
    count = rows if rows is not None else math.ceil(round((share or 0) * there, 9))
    chosen = best(values, count)
    for group in groups:
        for row in group.rows:
            if row.is_reference or row.candidate.id in chosen:
                yield row, None
            else:
                yield row, "no_value" if value(row) is None else "not_top"
