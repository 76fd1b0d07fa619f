"""Verdicts that were made elsewhere: JSON Lines of them, and what lm-evaluation-harness logs.

A line of verdicts is an object:

    problem     its id, text or number: arms are paired by it
    correct     true, false, 0 or 1; null where it could not be judged; with `n`, how many are correct
    n           samples of the problem that the line stands for (1)
    arm         the arm (the file's label)
    seed        training seed (0)
    sample      which of the problem's samples this is, where each has a line of its own
    topic       what the problem is about
    difficulty  a label or number of how hard it is

Other fields are passed over.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from rft import rows
from rft.report import harness
from rft.report.load import ArmRun
from rft.report.problems import Problems
from rft.types import ProblemRow, RftError

_TYPES = {
    "problem": (str, int),
    "correct": (bool, int, float),
    "n": (int,),
    "arm": (str,),
    "seed": (int,),
    "sample": (int,),
    "topic": (str,),
    "difficulty": (str, int, float),
}
_ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("correct", pa.float64()),
        *((name, pa.int64()) for name in ("n", "seed", "sample")),
        *((name, pa.string()) for name in ("arm", "topic", "difficulty")),
    ]
)
MOST_NUMBER = 1 << 62
MOST_SAMPLES = 100_000_000
"""Samples of a file: each takes a few bytes of memory, though a line may stand for any number."""
LABELS = ("topic", "difficulty")
"""Columns that problems have beside those of `ProblemRow`, where they are told: the first that is there
groups them in the report."""
ASKED = "asked"
"""One more, of the harness's: a hash of the text that the problem was put in."""


def read(path: Path, label: str) -> list[ArmRun]:
    """The arms of a file of verdicts. label: name of the arm where lines have none.

    Raises RftError for a line that is no verdict, or a second one on the same sample, by its number.
    """
    table = _quickly(path)
    if table is None or not _is_sound(table):
        table = _slowly(path)
    if not len(table):
        raise RftError(f"{path}: there are no verdicts in it")
    return _arms(path, table, label)


def _quickly(path: Path) -> pa.Table | None:
    """By Arrow, which wants one type a field; None where it finds something to complain of."""
    with open(path, encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        one = json.loads(first)
        schema = pa.schema(
            [
                (name, _ARROW[type(one[name]) if one.get(name) is not None else types[0]])
                for name, types in _TYPES.items()
            ]
        )
        got = pj.read_json(
            path,
            read_options=pj.ReadOptions(block_size=32 << 20),
            parse_options=pj.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
        return got.select(_SCHEMA.names).cast(_SCHEMA)
    except (ValueError, KeyError, TypeError, AttributeError):  # ArrowInvalid is a ValueError
        return None


def _is_sound(table: pa.Table) -> bool:
    """Whether all lines are verdicts by themselves."""
    n = table["n"]
    most = pc.coalesce(n, 1)
    whole = pc.equal(table["correct"], pc.floor(table["correct"]))
    inside = pc.and_(pc.greater_equal(table["correct"], 0), pc.less_equal(table["correct"], most))
    both = pc.and_(pc.is_valid(n), pc.or_(pc.is_valid(table["sample"]), pc.is_null(table["correct"])))  # fmt: skip
    return bool(
        not table["problem"].null_count
        and pc.all(pc.and_(whole, inside), min_count=0).as_py()
        and pc.all(pc.greater_equal(most, 1), min_count=0).as_py()
        and not pc.any(both, min_count=0).as_py()
        and not pc.any(pc.equal(table["arm"], ""), min_count=0).as_py()
        # A missing `correct` and a null are one to Arrow: where there are nulls, look line by line.
        and not table["correct"].null_count
    )


def _slowly(path: Path) -> pa.Table:
    """Line by line, to name the one that is wrong."""
    found: dict[str, list[Any]] = {name: [] for name in _TYPES}
    for place, row in _lines(path):
        try:
            one = json.loads(row)
        except ValueError as fault:
            raise RftError(f"{place}: no JSON: {fault}") from None
        if why := _wrong(one):
            raise RftError(f"{place}: {why}")
        for name, values in found.items():
            value = one.get(name)
            text = value is not None and _SCHEMA.field(name).type == pa.string()
            values.append(str(value) if text else value)
    return pa.table({name: found[name] for name in _SCHEMA.names}, schema=_SCHEMA)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line
    except UnicodeDecodeError as fault:
        raise RftError(f"{path}: is no text in UTF-8: {fault.reason}") from None


def _wrong(one: Any) -> str | None:
    """Why a line is no verdict."""
    if not isinstance(one, dict):
        return "no JSON object"
    for name in ("problem", "correct"):
        if name not in one:
            return f"no field `{name}`: it has {', '.join(map(str, one)) or 'none'}"
    for name, types in _TYPES.items():
        value = one.get(name)
        if value is not None and (
            not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        ):
            return f"`{name}` is {value!r}, and should be {' or '.join(t.__name__ for t in types)}"
        # JSON as Python reads it has NaN, Infinity, and numbers without end. An id is taken as text.
        if name != "problem" and isinstance(value, int | float) and not abs(value) < MOST_NUMBER:
            return f"`{name}` is {value!r}: no number that anything can have here"
    n, correct = one.get("n"), one["correct"]
    if one["problem"] is None:
        return "`problem` is null"
    if one.get("arm") == "":
        return "`arm` is empty: name it, or leave the field out"
    if n is not None and (n < 1 or correct is None):
        return (
            f"`n` is {n}, with `correct` {correct}: it counts samples, of which `correct` are right"
        )
    if n is not None and one.get("sample") is not None:
        return "`n` and `sample` do not go together: a line stands for several samples, or for one"
    if correct is not None and (correct != int(correct) or not 0 <= correct <= (n or 1)):
        many = f"0 to {n}" if n else "true, false, 0 or 1 (or a number right, with `n`)"
        return f"`correct` is {correct!r}, and should be {many}"
    return None


def _arms(path: Path, table: pa.Table, label: str) -> list[ArmRun]:
    arms = pc.fill_null(table["arm"], label).combine_chunks().dictionary_encode()
    problems = table["problem"].combine_chunks().dictionary_encode()
    # Ranks instead of texts: sorting a million numbers takes a tenth of the time.
    rank = np.empty(len(problems.dictionary), dtype=np.int64)
    rank[pc.sort_indices(problems.dictionary).to_numpy()] = np.arange(len(rank))
    arm_R, problem_R = arms.indices.to_numpy(), rank[problems.indices.to_numpy()]
    seed_R = pc.fill_null(table["seed"], 0).to_numpy()
    sample_R = pc.fill_null(table["sample"], -1).to_numpy()
    order_R = np.lexsort((sample_R, problem_R, seed_R, arm_R))
    keys = [column[order_R] for column in (arm_R, seed_R, problem_R)]
    new_R = np.ones(len(order_R), dtype=bool)
    new_R[1:] = np.any([column[1:] != column[:-1] for column in keys], axis=0)
    n_R = pc.fill_null(table["n"], 1).to_numpy()[order_R]
    _refuse_repeats(path, table, order_R, new_R, sample_R[order_R], n_R)
    correct_R = pc.fill_null(table["correct"], 0.0).to_numpy()[order_R].astype(np.int64)
    unknown_R = table["correct"].is_null().to_numpy()[order_R].astype(np.int64)
    if (samples := int(n_R.sum(dtype=object))) > MOST_SAMPLES:
        raise RftError(
            f"{path}: {samples:,} samples by its `n`: more than {MOST_SAMPLES:,} are not compared. Is `n` the "
            "samples of one problem?"
        )
    starts_P = np.flatnonzero(new_R)
    n_P = np.add.reduceat(n_R, starts_P)
    ends = np.concatenate([[0], np.cumsum(n_P)]).astype(np.int32)
    # Of each line the first `correct` of its n samples are hits.
    place = np.arange(ends[-1]) - np.repeat(np.cumsum(n_R) - n_R, n_R)
    hits = pa.array(place < np.repeat(correct_R, n_R))
    first_P = order_R[starts_P]
    by_problem = {
        "prompt_id": problems.take(pa.array(first_P)).cast(pa.string()),
        "n": n_P,
        "correct": np.add.reduceat(correct_R, starts_P),
        "unknown": np.add.reduceat(unknown_R, starts_P),
        "truncated": np.zeros(len(n_P), dtype=np.int64),
        "answers": pa.ListArray.from_arrays(ends, pa.repeat("", int(ends[-1]))),
        "hits": pa.ListArray.from_arrays(ends, hits),
        "tokens": np.zeros(len(n_P), dtype=np.int64),
    }
    for name in LABELS:
        if table[name].null_count < len(table):
            by_problem[name] = table[name].take(pa.array(first_P)).combine_chunks()
    made = pa.table(by_problem)
    group_P = np.stack([column[starts_P] for column in keys[:2]], axis=1)
    cuts = np.flatnonzero(np.any(group_P[1:] != group_P[:-1], axis=1)) + 1
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(made)]):
        arm, seed = group_P[start]
        name = arms.dictionary[int(arm)].as_py()
        mine = Problems(made.slice(start, stop - start))
        found.append((int(arm), ArmRun(name, int(seed), {}, {}, mine, (), counted=False)))
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


def _refuse_repeats(
    path: Path,
    table: pa.Table,
    order_R: NDArray[np.int64],
    new_R: NDArray[np.bool_],
    sample_R: NDArray[np.int64],
    n_R: NDArray[np.int64],
) -> None:
    """Refuses two verdicts on one sample. All in the order of `order_R`; new_R: where a problem begins."""
    several = (n_R[1:] > 1) | (n_R[:-1] > 1) | (sample_R[1:] < 0) | (sample_R[:-1] < 0)
    same = ~new_R[1:] & ((sample_R[1:] == sample_R[:-1]) | several)
    if same.any():
        at = int(np.flatnonzero(same)[0])
        one, other = sorted(int(i) for i in order_R[at : at + 2])
        places = [place for place, _ in _lines(path)]
        problem = table["problem"][one].as_py()
        raise RftError(
            f"{places[other]}: a second verdict on problem {problem!r}, the first is {places[one]}. Leave "
            "one out, or give each sample of a problem a `sample` of its own"
        )


def is_logged(path: Path) -> bool:
    """Whether lm-evaluation-harness wrote the file."""
    try:
        with open(path, encoding="utf-8") as file:
            one = json.loads(next((line for line in file if line.strip()), "{}"))
    except (OSError, ValueError):
        return path.name.startswith("samples_")
    return isinstance(one, dict) and "doc_hash" in one


def logged(paths: list[Path], label: str, metric: str | None) -> tuple[ArmRun, list[str]]:
    """One arm from what lm-evaluation-harness logged of one or several tasks, and what judged it, a task
    and metric each. Raises RftError for two files of one task, or values that are not shares of at
    most 100 samples."""
    tables: list[pa.Table] = []
    judged: dict[str, tuple[Path, str]] = {}
    for path in paths:
        got = harness.read(path, metric)
        if got.task in judged:
            raise RftError(
                f"{path}: a second file of task {got.task} beside {judged[got.task][0]}: give one of the "
                "files in place of the folder"
            )
        judged[got.task] = path, f"{got.task} by {got.metric}"
        if max(p.n for p in got.problems) > 100:
            raise RftError(
                f"{path}: {got.metric} is neither right nor wrong, nor a share of samples that are: choose "
                "another with --metric"
            )
        table = rows.table(got.problems, ProblemRow)
        table = table.append_column("topic", pa.repeat(got.task, len(table)))
        tables.append(table.append_column(ASKED, pa.array(got.prompts, pa.string())))
    whole = pa.concat_tables(tables).sort_by("prompt_id").combine_chunks()
    run = ArmRun(label, 0, {}, {}, Problems(whole), (), counted=False)
    return run, [told for _, told in judged.values()]
