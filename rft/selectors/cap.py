"""Bounds how much one easy prompt may fill of the training set."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from rft.selectors._common import in_order
from rft.types import Choice, Group


def cap(groups: Iterable[Group], *, k: Annotated[int, Field(ge=1)] = 4) -> Iterator[Choice]:
    """Keeps the first k sampled candidates of each prompt; references do not count and stay.

    Drops the others as `over_cap`. It counts what the selectors before it have left.

    k: most sampled candidates to keep of one prompt.
    """
    for group in groups:
        kept = 0
        for row in in_order(group.rows):
            if row.is_reference:
                yield row, None
                continue
            kept += 1
            yield row, None if kept <= k else "over_cap"
