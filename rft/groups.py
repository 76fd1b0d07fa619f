"""Rows of several stages brought together prompt by prompt, in bounded memory.

On disk candidates lie in the order they finished in. Where there are many, they are first dealt out
to files of some ten thousand rows each, so that all rows of a prompt are in one file and the files
follow one another in the order of prompt ids; only one file is in memory at a time.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rft import rows

PARTITION_ROWS = 20_000
"""Rows to hold in memory at a time: 50 MB or so of questions and answers as Python objects."""

PARTITION_BYTES = 200 << 20
"""Bytes to hold in memory at a time, as Arrow counts them: where rows are long there are fewer."""

MOST_FILES = 200
"""Files to write at once; with more rows than this allows for, a file holds more of them."""


@dataclass(frozen=True)
class Source:
    """Rows of a stage: its folder, and the columns wanted, `id` first and `prompt_id` among them."""

    folder: Path
    columns: list[str]
    prepare: Callable[[pa.RecordBatch], pa.RecordBatch] = lambda batch: batch
    """Makes of each batch what is to be kept of it, for instance a list's length for the list."""


class Partitions:
    """Tables of whole prompts, one for each source, in the order of prompt ids.

    Can be gone through again and again. scratch: a folder to deal rows out into; it is made where it
    is needed, and `close` takes it away.
    """

    def __init__(self, sources: Sequence[Source], scratch: Path, size: int = PARTITION_ROWS):
        self.sources, self.scratch = sources, scratch
        self.counts: Counter[str] = Counter()
        """Rows of each prompt, over all sources."""
        for source in sources:
            for batch in rows.batches(source.folder, ["id", "prompt_id"]):
                got = pc.value_counts(batch.column("prompt_id"))
                self.counts.update(
                    dict(zip(got.field("values").to_pylist(), got.field("counts").to_pylist()))
                )
        rows_, size_in_bytes = self.counts.total(), sum(_bytes(source) for source in sources)
        if size_in_bytes > PARTITION_BYTES:
            size = min(size, max(rows_ * PARTITION_BYTES // size_in_bytes, 1))
        size = max(size, rows_ // MOST_FILES)
        self._at: dict[str, int] = {}
        filled = number = 0
        for prompt_id in sorted(self.counts):
            if filled >= size:
                filled, number = 0, number + 1
            self._at[prompt_id] = number
            filled += self.counts[prompt_id]
        self.number = number + 1
        self._dealt = False

    def __iter__(self) -> Iterator[list[pa.Table]]:
        if self.number == 1:
            yield [self._all(source) for source in self.sources]
            return
        if not self._dealt:
            self._deal()
        for number in range(self.number):
            yield [self._file(i, number) for i in range(len(self.sources))]

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    @staticmethod
    def _all(source: Source) -> pa.Table:
        got = [source.prepare(batch) for batch in rows.batches(source.folder, source.columns)]
        return pa.Table.from_batches(got) if got else pa.table({"id": [], "prompt_id": []})

    def _file(self, source: int, number: int) -> pa.Table:
        path = self.scratch / f"{source}-{number}"
        if not path.exists():
            return pa.table({"id": [], "prompt_id": []})
        with pa.OSFile(str(path)) as file:
            return pa.ipc.open_stream(file).read_all()

    def _deal(self) -> None:
        with rows.disk_errors(self.scratch):
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(parents=True)
            for i, source in enumerate(self.sources):
                self._deal_one(i, source)
        self._dealt = True

    def _deal_one(self, i: int, source: Source) -> None:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        files: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        try:
            for whole in rows.batches(source.folder, source.columns):
                batch = source.prepare(whole)
                prompts = pc.dictionary_encode(batch.column("prompt_id"))
                of_prompt = np.array([self._at[p] for p in prompts.dictionary.to_pylist()])
                numbers = of_prompt[prompts.indices.to_numpy()] if len(of_prompt) else of_prompt
                for number in np.unique(numbers).tolist():
                    if number not in files:
                        path = str(self.scratch / f"{i}-{number}")
                        files[number] = pa.ipc.new_stream(path, batch.schema, options=options)
                    files[number].write(batch.filter(pa.array(numbers == number)))
        finally:
            for file in files.values():
                file.close()


def _bytes(source: Source) -> int:
    """Bytes of a source's wanted columns, by its parts' metadata."""
    total = 0
    for path in rows.parts(source.folder):
        metadata = pq.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema.partition(".")[0] in source.columns:
                    total += column.total_uncompressed_size
    return total
