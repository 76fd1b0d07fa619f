"""Rows on disk: Parquet parts that are whole or absent.

A part is written under a temporary name, synced, and renamed, so that a kill leaves the parts that
were finished and nothing else. A part that cannot be read (a torn disk) is set aside under
`.torn`; its rows are owed again. What a folder holds is the union of its parts, by row id.
"""

import contextlib
import dataclasses
import errno
import itertools
import os
import re
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rft.types import RftError

Row = TypeVar("Row")

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow_type(annotation: Any) -> pa.DataType:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)[0]
        return pa.list_(pa.int32() if inner is int else _arrow_type(inner))
    for base, arrow in _ARROW.items():
        if issubclass(annotation, base) and (base is not int or annotation is not bool):
            return arrow
    raise TypeError(annotation)


def schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a row dataclass; token ids are int32."""
    hints = typing.get_type_hints(row_type)
    return pa.schema([(f.name, _arrow_type(hints[f.name])) for f in dataclasses.fields(row_type)])


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a folder without write access into one message with its fix."""
    try:
        yield
    except Exception as fault:
        # safetensors raises no OSError, and has the number in its words.
        told = re.search(r"\(os error (\d+)\)", str(fault))
        number = fault.errno if isinstance(fault, OSError) else told and int(told[1])
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise RftError(
                f"{path}: the disk is full. Free some space and give the same command again: "
                "finished rows are kept."
            ) from fault
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise RftError(
                f"{path}: cannot write here ({os.strerror(number)}). Make the folder writable, or put "
                "the run elsewhere with runs=/some/folder."
            ) from fault
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file or none: temporary name, sync, rename, sync of the folder."""
    tmp = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(tmp, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(tmp, path)
            sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                tmp.unlink()
            raise


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def table(rows: Iterable[Any], row_type: type, columns: list[str] | None = None) -> pa.Table:
    """Rows as columns; `columns`: only these."""
    rows = list(rows)
    whole = schema(row_type)
    names = columns or whole.names
    return pa.table(
        {name: [getattr(row, name) for row in rows] for name in names},
        schema=pa.schema([whole.field(name) for name in names]),
    )


def write_part(folder: Path, rows: "Iterable[Any] | pa.Table", row_type: type) -> Path | None:
    """Writes rows, or a table of them, as the folder's next part; nothing for no rows."""
    made = rows if isinstance(rows, pa.Table) else table(rows, row_type)
    if not made.num_rows:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(made, sink, compression="zstd", write_page_checksum=True)
    taken = [int(p.name[5:].split(".")[0]) for p in folder.glob("part-*")]
    path = folder / f"part-{max(taken, default=-1) + 1:05d}.parquet"
    write_bytes(path, sink.getvalue().to_pybytes())
    return path


def clear(folder: Path) -> None:
    """Takes the parts away, for stages whose rows are made together."""
    for path in folder.glob("part-*"):
        path.unlink()


def merge_small(folder: Path, rows: int = 1024) -> None:
    """Makes one part of those with fewer rows than this, where there are many: a stage that writes
    often, so as to lose little, leaves few files behind."""
    small = [path for path in parts(folder) if pq.read_metadata(path).num_rows < rows]
    if len(small) < 8:
        return
    tables = []
    for path in small:
        with whole(path):
            tables.append(pq.read_table(path, page_checksum_verification=True))
    # A kill from here on leaves rows in two parts, and readers take each once.
    write_part(folder, pa.concat_tables(tables), object)
    for path in small:
        path.unlink()


def parts(folder: Path) -> list[Path]:
    """The folder's readable parts in order; unreadable ones are renamed to `.torn`."""
    good = []
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            pq.read_metadata(path)
            good.append(path)
        except (pa.ArrowInvalid, OSError):
            path.rename(path.with_suffix(".parquet.torn"))
    return good


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Sets a part aside whose pages don't match their checksums: its rows are owed again."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno is not None:
            raise
        torn = path.rename(path.with_suffix(".parquet.torn"))
        why = " ".join(str(fault).split())
        raise RftError(
            f"{path}: damaged on disk ({why}); now set aside as {torn.name}. `rft run` "
            "makes its rows again, and only those."
        ) from fault


def batches(folder: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The folder's rows in Arrow batches, each id once. The first column is the id."""
    chosen = parts(folder)
    # A row is in two parts only where a disk was torn, so ids are kept only where that is so.
    seen: set[str] | None = set() if _has_doubles(chosen) else None
    for path in chosen:
        with whole(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(columns=columns):
                if seen is not None:
                    fresh = []
                    for id in batch.column(0).to_pylist():
                        fresh.append(id not in seen)
                        seen.add(id)
                    batch = batch.filter(pa.array(fresh, pa.bool_()))
                yield batch


def read_table(folder: Path, columns: list[str]) -> pa.Table:
    """The folder's rows as columns, each id once. The first column is the id. Raises RftError for rows
    that lack one of them."""
    found = list(batches(folder, columns))
    if not found:
        return pa.table({name: [] for name in columns})
    refuse_lacking(folder, columns, found[0])
    return pa.Table.from_batches(found).select(columns)


def refuse_lacking(folder: Path, names: list[str], batch: pa.RecordBatch) -> None:
    lacking = [name for name in names if name not in batch.schema.names]
    if lacking:
        raise RftError(
            f"{folder}: its rows have no {lacking[0]}: another version of rft wrote them. Remove "
            "the folder of their stage, and give the run's command again"
        )


def _has_doubles(paths: list[Path]) -> bool:
    if len(paths) < 2:
        return False
    chunks = []
    for path in paths:
        with whole(path):
            first = pq.read_schema(path).names[0]
            chunks += pq.read_table(path, columns=[first]).column(0).chunks
    ids = pa.chunked_array(chunks)
    return bool(pc.count_distinct(ids).as_py() != len(ids))


def objects(batch: "pa.RecordBatch | pa.Table", row_type: Callable[..., Row]) -> Iterator[Row]:
    """The rows of a batch; fields that it has no column for are None."""
    hints = typing.get_type_hints(row_type)
    got: list[Iterable[Any]] = []
    for f in dataclasses.fields(row_type):  # type: ignore[arg-type]
        if f.name not in batch.schema.names:
            got.append(itertools.repeat(None, batch.num_rows))
            continue
        values, convert = batch.column(f.name).to_pylist(), _converter(hints[f.name])
        got.append(values if convert is None else map(convert, values))
    return map(row_type, *got)


def read(
    folder: Path,
    row_type: type[Row],
    columns: list[str] | None = None,
    among: tuple[str, Iterable[str]] | None = None,
) -> Iterator[Row]:
    """The folder's rows, each id once. With `columns`, the other fields are None. among: a column and
    the values of it that are wanted, for some rows of many.

    The first field is the id, and always among the columns. Raises RftError without `columns` for rows
    that lack a field.
    """
    names = [f.name for f in dataclasses.fields(row_type)]  # type: ignore[arg-type]
    if columns is not None:
        columns = [names[0], *(c for c in columns if c != names[0])]
    wanted = pa.array(list(among[1]), pa.string()) if among else None
    for batch in batches(folder, columns):
        if columns is None:
            refuse_lacking(folder, names, batch)
        if wanted is not None and among:
            batch = batch.filter(pc.is_in(batch.column(among[0]), value_set=wanted))
        yield from objects(batch, row_type)


def _converter(annotation: Any) -> Callable[[Any], Any] | None:
    """What makes a field's value of Arrow's; None where they are the same."""
    options = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        inner = _converter(options[0])
        return inner and (lambda value: None if value is None else inner(value))
    if typing.get_origin(annotation) is tuple:
        return tuple
    if annotation in _ARROW:
        return None
    # An enum: looking its members up is four times as fast as calling it.
    return {str(member): member for member in annotation}.__getitem__


def ids(folder: Path) -> set[str]:
    """Ids of the rows that the folder's parts hold."""
    found: set[str] = set()
    for path in parts(folder):
        with whole(path):
            first = pq.read_schema(path).names[0]
            got = pq.read_table(path, columns=[first], page_checksum_verification=True)
        found.update(got.column(0).to_pylist())
    return found


def count(folder: Path) -> int:
    """How many rows there are, each id once."""
    paths = parts(folder)
    if _has_doubles(paths):
        return len(ids(folder))
    return sum(pq.read_metadata(path).num_rows for path in paths)


class Writer:
    """Collects rows and writes a part when it holds enough, or when it is old enough."""

    def __init__(self, folder: Path, row_type: type, rows: int = 4096, seconds: float = 10.0):
        self.folder, self.row_type, self.rows, self.seconds = folder, row_type, rows, seconds
        self._held: list[Any] = []
        self._tables: list[pa.Table] = []
        self._count = 0
        self._since = time.monotonic()

    def add(self, row: Any) -> None:
        self._held.append(row)
        self._count += 1
        self.tick()

    def extend(self, batch: pa.RecordBatch) -> None:
        """Takes many rows at once, as columns."""
        self._tables.append(pa.Table.from_batches([batch], schema(self.row_type)))
        self._count += batch.num_rows
        self.tick()

    def tick(self) -> None:
        """Writes what is held if it is time to; for when no rows come."""
        if self._count >= self.rows or time.monotonic() - self._since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        # A failed write keeps its rows, so that a second try is possible.
        held = [table(self._held, self.row_type)] if self._held else []
        if self._tables or held:
            write_part(self.folder, pa.concat_tables([*self._tables, *held]), self.row_type)
        self._held.clear()
        self._tables.clear()
        self._count = 0
        self._since = time.monotonic()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
