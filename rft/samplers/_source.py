"""Rows of a finished run, or of somebody else's files, as (prompt, text) pairs.

A path is a stage folder of a run, a folder above some (an arm's seed, an arm, a run), one file, or
a folder of files: JSON Lines, also as .gz or .zst, and Parquet. A row may hold one text or a list of
them. Which field is which is told by its name, and asked for where two names could be meant.
"""

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rft import rows
from rft.rundir import StageDir
from rft.types import Finish, RftError

PLAIN = (".jsonl", ".ndjson", ".json")
PACKED = (".gz", ".zst")
LONGEST_LINE = 1 << 28
"""Bytes; a longer one is taken for a file that isn't JSON Lines."""

COMMON = {
    "prompt_id": ("prompt_id",),
    "question": ("question", "problem", "prompt", "instruction", "query"),
    "text": (
        *("text", "response", "responses", "completion", "completions", "output", "outputs"),
        *("generation", "generations", "samples"),
    ),
    "finish": ("finish", "finish_reason", "finish_reasons", "stop_reason"),
    "logprob": ("logprob", "cumulative_logprob"),
    "token_ids": ("token_ids", "completion_ids", "output_token_ids"),
}
"""Names that public data sets and common tools use."""

ENDED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn", "reference"}
CUT = {"length", "max_tokens", "max_length"}


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of a file's fields; None where it has no such."""

    prompt_id: str | None = None
    question: str | None = None
    text: str | None = None
    finish: str | None = None
    logprob: str | None = None
    token_ids: str | None = None
    token_logprobs: str | None = None

    def completed(self, there: Sequence[str], where: str) -> "Fields":
        """With the common names among `there` for what isn't named. Raises RftError where several
        could be meant, or none."""
        found = {}
        for field, names in COMMON.items():
            named = getattr(self, field)
            guess = [] if named else [name for name in names if name in there]
            if len(guess) > 1:
                raise RftError(
                    f"use: replay: {where} has the fields {' and '.join(map(repr, guess))}: name "
                    f"one of them in args.{field}"
                )
            found[field] = named or next(iter(guess), None)
        for field, other in (("text", None), ("question", "prompt_id")):
            if not found[field] and not (other and found[other]):
                raise RftError(
                    f"use: replay: {where} has no field for the {field} that goes by a common name; "
                    f"it has {', '.join(map(repr, there)) or 'none'}: name it in args.{field}"
                )
        return replace(self, **found)


STAGE = Fields("prompt_id", None, "text", "finish", "logprob", "token_ids", "token_logprobs")


@dataclass(frozen=True, slots=True)
class Item:
    """One answer of the source, with what the source says of it."""

    text: str
    finish: Finish = Finish.STOP
    logprob: float | None = None
    token_ids: tuple[int, ...] | None = None
    token_logprobs: tuple[float, ...] | None = None

    def packed(self) -> bytes:
        return json.dumps([getattr(self, f.name) for f in fields(self)]).encode() + b"\n"

    @staticmethod
    def unpacked(line: bytes) -> "Item":
        text, finish, logprob, ids, logprobs = json.loads(line)
        return Item(text, Finish(finish), logprob, ids and tuple(ids), logprobs and tuple(logprobs))


class Unusable(Exception):
    """Why a row, or one of its texts, is left out: a word to count by, and the detail."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def items(row: Mapping[str, Any], names: Fields) -> "list[Item | Unusable]":
    """A row's answers in order. Raises Unusable for a row that has none."""
    assert names.text
    value = row.get(names.text)
    several = isinstance(value, list) and not _is_chat(value)
    texts: list[Any] = value if several else [value]  # type: ignore[assignment]
    count = len(texts)
    if not count or value is None:
        raise Unusable("no_text", f"{names.text!r} is empty or missing")
    columns: list[list[Any]] = []
    for name in (names.finish, names.logprob, names.token_ids, names.token_logprobs):
        given = row.get(name) if name else None
        # With a single text a list of ids is that text's own.
        if not isinstance(given, list) or not several:
            given = [given] * count
        if len(given) != count:
            raise Unusable("misaligned", f"{count} texts, and {len(given)} values in {name!r}")
        columns.append(given)
    return [_item(*one) for one in zip(texts, *columns, strict=True)]


def _item(text: Any, finish: Any, logprob: Any, ids: Any, logprobs: Any) -> "Item | Unusable":
    text = said(text, "assistant")
    own = tuple(ids) if _whole_numbers(ids) else None
    if text is None or not (text or own):  # a model may end at once, and its EOS token shows it
        return Unusable("no_text", "a text is empty or no string")
    word = "stop" if finish is None else str(finish).lower()
    if word in CUT:
        end = Finish.LENGTH
    elif word in ENDED:
        end = Finish.STOP
    elif word == "loop":
        end = Finish.LOOP
    else:
        return Unusable("odd_finish", f"ended by {word!r}, which is neither its end nor a limit")
    good = isinstance(logprob, int | float) and math.isfinite(logprob)
    return Item(
        text,
        end,
        float(logprob) if good else None,
        own,
        tuple(logprobs) if isinstance(logprobs, list) else None,
    )


def _whole_numbers(ids: Any) -> bool:
    return isinstance(ids, list) and all(type(i) is int and 0 <= i < 1 << 31 for i in ids)


def _is_chat(value: Any) -> bool:
    return (
        bool(value)
        and isinstance(value, list)
        and all(
            isinstance(message, dict) and {"role", "content"} <= message.keys() for message in value
        )
    )


def said(value: Any, role: str) -> str | None:
    """A text, or of a list of chat messages the last of that role; half surrogate pairs, which no
    tokenizer takes, are replaced. None for what is no text."""
    if _is_chat(value):
        value = next((m["content"] for m in reversed(value) if m["role"] == role), None)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


# ---- from a path to its files ----------------------------------------------------------------------


def sources(paths: Sequence[str]) -> list[Path]:
    """Stage folders and files that the paths stand for, in order. Raises RftError."""
    found = [source for path in paths for source in _sources(Path(path))]
    return list(dict.fromkeys(found))


def _sources(path: Path) -> list[Path]:
    where = f"use: replay: args.path: {path}"
    if not path.exists():
        raise RftError(f"{where}: no such file or folder (one beside the YAML begins with ./)")
    if path.is_file():
        if not _is_data(path):
            raise RftError(
                f"{where}: not a kind of file that is read here: it must end in .jsonl, .ndjson or "
                ".json (one object a line; also with .gz or .zst behind), or in .parquet"
            )
        return [path]
    stage = StageDir(path)
    if record := stage.inputs():
        if record.get("kind") != "sample":
            raise RftError(
                f"{where}: a {record.get('kind')} stage: name the sample stage that it came from"
            )
        if stage.manifest() is None:
            raise RftError(f"{where}: not finished: let `rft run` finish it first")
        return [path.resolve()]
    # An arm's seed; then what is above it.
    for pattern in ("2_sample*", "seed*/2_sample*", "*/seed*/2_sample*"):
        links = [p for p in sorted(path.glob(pattern)) if not p.name.endswith("_reference")]
        if seeds := sorted({str(p.parent) for p in links}):
            stages = {p: [s for s in links if str(s.parent) == p] for p in seeds}
            if len({frozenset(s.resolve() for s in found) for found in stages.values()}) > 1:
                raise RftError(f"{where}: holds several pools: name one of {', '.join(seeds)}")
            return [s for link in stages[seeds[0]] for s in _sources(link)]
    files = sorted(p for p in path.iterdir() if p.is_file() and _is_data(p))
    if not files:
        raise RftError(f"{where}: neither a run with samples nor a folder with JSONL or Parquet")
    return files


def _is_data(path: Path) -> bool:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    return name.endswith(PLAIN) or path.name.endswith(".parquet")


def is_plain(path: Path) -> bool:
    """Whether a row can be read again by its place in the file."""
    return path.name.endswith(PLAIN)


# ---- from a file to its rows -----------------------------------------------------------------------


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte it starts at, line) of a file, unpacked. Raises RftError."""
    where = f"use: replay: args.path: {path}"
    number = at = 0
    try:
        with _opened(path) as file:
            while line := file.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise RftError(
                        f"{where}:{number}: a line of more than {LONGEST_LINE >> 20} MiB: is it one "
                        "JSON array? Write one object a line (jq -c '.[]')"
                    )
                yield number, at, line
                at += len(line)
    except (OSError, EOFError, zlib.error) as fault:
        raise RftError(f"{where}: cannot be read after line {number}: {fault}") from fault


def _opened(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def parsed(line: bytes) -> dict[str, Any]:
    """A line's object. Raises Unusable."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise Unusable("broken", f"not valid JSON: {fault}") from None
    if not isinstance(row, dict):
        raise Unusable("broken", f"a row must be a JSON object, not {type(row).__name__}")
    return row


def parquet_names(path: Path) -> list[str]:
    """Columns of a Parquet file. Raises RftError."""
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowInvalid) as fault:
        raise RftError(f"use: replay: args.path: {path}: cannot be read: {fault}") from fault


def parquet_rows(path: Path, names: Fields) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, with the named fields alone. Raises RftError."""
    wanted = {getattr(names, f.name) for f in fields(names)}
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            # Few at a time: a row may hold dozens of long texts.
            for batch in file.iter_batches(batch_size=64, columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as fault:
        raise RftError(f"use: replay: args.path: {path}: cannot be read: {fault}") from fault


def stage_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Candidates of a stage folder as mappings, each id once."""
    columns = ["id", "prompt_id", "index", "text", "finish", "logprob", "token_ids"]
    for batch in rows.batches(folder, [*columns, "token_logprobs"]):
        for start in range(0, batch.num_rows, 64):
            yield from batch.slice(start, 64).to_pylist()
