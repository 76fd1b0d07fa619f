"""Problem rows as columns: a million of them as Python objects would take more memory than they are worth."""

from collections.abc import Iterator, Sequence
from typing import overload

import pyarrow as pa

from rft import rows
from rft.types import ProblemRow


class Problems(Sequence[ProblemRow]):
    """A table of problem rows that can be gone through like a tuple of them."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> ProblemRow: ...

    @overload
    def __getitem__(self, place: slice) -> "Problems": ...

    def __getitem__(self, place: int | slice) -> "ProblemRow | Problems":
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step == 1:
                return Problems(self.table.slice(start, max(stop - start, 0)))
            return Problems(self.table.take(list(range(start, stop, step))))
        start = range(len(self))[place]
        return next(rows.objects(self.table.slice(start, 1), ProblemRow))

    def __iter__(self) -> Iterator[ProblemRow]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from rows.objects(batch, ProblemRow)


def columns(problems: Sequence[ProblemRow]) -> pa.Table:
    """The rows as a table, without a copy where they are one."""
    return problems.table if isinstance(problems, Problems) else rows.table(problems, ProblemRow)
