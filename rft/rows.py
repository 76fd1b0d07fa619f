"""Rows on disk: Parquet parts that are whole or absent.

A part is written under a temporary name, synced, and renamed, so that a kill leaves the parts that
were finished and nothing else. A part that cannot be read (a torn disk) is set aside under
`.torn`; its rows are owed again. What a folder holds is the union of its parts, by row id.
"""

import contextlib
import dataclasses
import errno
import os
import time
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
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
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RftError(
                f"{path}: the disk is full. Free some space and give the same command again: "
                "finished rows are kept."
            ) from fault
        if fault.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise RftError(
                f"{path}: cannot write here ({fault.strerror}). Make the folder writable, or put "
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


def write_part(folder: Path, rows: Iterable[Any], row_type: type) -> Path | None:
    """Writes rows as the folder's next part; nothing for no rows."""
    rows = list(rows)
    names = [f.name for f in dataclasses.fields(row_type)]
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    if not rows:
        return None
    table = pa.table(columns, schema=schema(row_type))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    taken = [int(p.name[5:].split(".")[0]) for p in folder.glob("part-*")]
    path = folder / f"part-{max(taken, default=-1) + 1:05d}.parquet"
    write_bytes(path, sink.getvalue().to_pybytes())
    return path


def replace_parts(folder: Path, rows: Iterable[Any], row_type: type) -> None:
    """Writes rows as the folder's only part, for stages whose rows are made together."""
    for path in parts(folder):
        path.unlink()
    write_part(folder, rows, row_type)


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


def read(folder: Path, row_type: type[Row], columns: list[str] | None = None) -> Iterator[Row]:
    """The folder's rows, each id once. With `columns`, the other fields are None.

    The first field is the id, and always among the columns.
    """
    hints = typing.get_type_hints(row_type)
    fields = [f.name for f in dataclasses.fields(row_type)]  # type: ignore[arg-type]
    if columns is not None:
        columns = [fields[0], *(c for c in columns if c != fields[0])]
    convert = {name: _converter(hints[name]) for name in fields}
    seen: set[str] = set()
    for path in parts(folder):
        with whole(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(columns=columns):
                got = {
                    name: [convert[name](v) for v in batch.column(name).to_pylist()]
                    for name in batch.schema.names
                }
                empty = [None] * batch.num_rows
                for values in zip(*(got.get(name, empty) for name in fields), strict=True):
                    if values[0] not in seen:
                        seen.add(values[0])
                        yield row_type(*values)


def _converter(annotation: Any) -> Any:
    options = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        inner = _converter(options[0])
        return lambda value: None if value is None else inner(value)
    if typing.get_origin(annotation) is tuple:
        return tuple
    if isinstance(annotation, type) and annotation not in _ARROW:
        return annotation
    return lambda value: value


def ids(folder: Path) -> set[str]:
    """Ids of the rows that the folder's parts hold."""
    found: set[str] = set()
    for path in parts(folder):
        with whole(path):
            first = pq.read_schema(path).names[0]
            table = pq.read_table(path, columns=[first], page_checksum_verification=True)
        found.update(table.column(0).to_pylist())
    return found


class Writer:
    """Collects rows and writes a part when it holds enough, or when it is old enough."""

    def __init__(self, folder: Path, row_type: type, rows: int = 4096, seconds: float = 10.0):
        self.folder, self.row_type, self.rows, self.seconds = folder, row_type, rows, seconds
        self._held: list[Any] = []
        self._since = time.monotonic()

    def add(self, row: Any) -> None:
        self._held.append(row)
        if len(self._held) >= self.rows or time.monotonic() - self._since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        # A failed write keeps its rows, so that a second try is possible.
        write_part(self.folder, self._held, self.row_type)
        self._held.clear()
        self._since = time.monotonic()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
