"""What the report reads of a run, joined by id and checked before anything is computed."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rft import integrity, rows
from rft.integrity import Fault
from rft.report.problems import Problems, columns
from rft.rundir import StageDir
from rft.types import Candidate, ProblemRow, RftError, ScoreRow, Verdict


@dataclass(frozen=True)
class Pool:
    """One source of an arm's candidates."""

    name: str
    """Empty where there is one only."""
    sample: Path
    score: Path
    sample_manifest: dict[str, Any]
    score_manifest: dict[str, Any]


STAGES = ("prompts", "sample", "score", "select", "train", "eval_sample", "eval_score", "eval")
"""Keys of an arm's entry in the job that name stage folders, in the order in which they ran."""


@dataclass(frozen=True)
class ArmRun:
    """One arm and seed."""

    arm: str
    seed: int
    folders: dict[str, Path]
    """Stage -> folder, for the stages that this arm has."""
    manifests: dict[str, dict[str, Any]]
    problems: Sequence[ProblemRow]
    """In the order of prompt ids, which is the same for all arms."""
    losses: tuple[tuple[int, float], ...]
    """(optimizer step, training loss)."""
    pools: tuple[Pool, ...] = ()
    """What was sampled for training, in the order of the settings; `sample` and `score` are missing in
    `folders`."""
    formats: tuple["ArmRun", ...] = ()
    """The arm's evaluation in each number format, the one that the others are compared with first; they
    have `folders` of evaluation alone."""
    seen: "ArmRun | None" = None
    """The arm's evaluation on training problems; like one of `formats`. None where none was asked for."""
    dtype: str = "auto"
    """Number format of the evaluation, as `engine.dtype` has it; `auto` where the sampler told none."""
    use: str = ""
    """Of a format, its sampler."""
    values: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """Of each scorer that gives a number to all samples it could judge: by problem, in index order; NaN
    for a sample that is unknown."""
    counted: bool = True
    """Whether tokens and cut-off answers are known; of verdicts made elsewhere they are not, and 0."""
    parts: tuple["ArmRun", ...] = ()
    """Of an arm that several runs evaluated on different problems (folds), what each of them gave; it has
    no folders then."""

    @cached_property
    def columns(self) -> pa.Table:
        """The problems as columns."""
        return columns(self.problems)

    @cached_property
    def correct_P(self) -> NDArray[np.int64]:
        return self.columns["correct"].to_numpy()

    @cached_property
    def n_P(self) -> NDArray[np.int64]:
        return self.columns["n"].to_numpy()

    @property
    def accuracy_P(self) -> NDArray[np.float64]:
        return self.correct_P / self.n_P

    @property
    def evaluations(self) -> tuple["ArmRun", ...]:
        """It and its evaluations in other formats and on training problems."""
        return (self, *self.formats, *([self.seen] if self.seen else []))

    def seconds(self, stage: str) -> float | None:
        """What a stage took, all pools and parts together; None where the arm has none of it."""
        if self.parts:
            each = [part.seconds(stage) for part in self.parts]
            return sum(one or 0.0 for one in each) if any(one is not None for one in each) else None
        if stage in ("sample", "score"):
            told = [getattr(pool, f"{stage}_manifest").get("seconds") for pool in self.pools]
            return sum(one or 0.0 for one in told) if told else None
        return self.manifests.get(stage, {}).get("seconds")

    @property
    def steps(self) -> int | None:
        """Optimizer steps; of several parts their mean."""
        if self.parts:
            return _mean([part.steps for part in self.parts])
        if "train" not in self.manifests:
            return None
        told = self.manifests["train"].get("steps")
        return int(told) if told is not None else max((s for s, _ in self.losses), default=None)

    def trained_on(self, which: str) -> int | None:
        """Training rows: all (`rows`) or samples alone (`sampled`); of several parts their mean."""
        if self.parts:
            return _mean([part.trained_on(which) for part in self.parts])
        told = self.manifests.get("select", {}).get(which) if "train" in self.folders else None
        return None if told is None else int(told)


def _mean(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known)) if known else None


def load(job: dict[str, Any]) -> list[ArmRun]:
    """All arms and seeds of the job. Raises RftError if they answer different problems."""
    runs = [arm_run(entry) for entry in job["arms"]]
    if not runs:
        raise RftError("report: there is no arm to report on: name at least one under arms")
    every = [one for run in runs for one in (run, *run.formats)]
    ids = [run.columns["prompt_id"] for run in every]
    for run, got_ids in zip(every, ids):
        if not got_ids.equals(ids[0]):
            got, first = set(got_ids.to_pylist()), set(ids[0].to_pylist())
            raise RftError(
                f"report: arm {run.arm} (seed {run.seed}) and arm {runs[0].arm} (seed "
                f"{runs[0].seed}) were evaluated on different problems: {len(got - first):,} only "
                f"in the first, {len(first - got):,} only in the second. A paired comparison needs "
                "the same ones: give both arms the same prompts settings, then `rft run` again."
            )
    return runs


def arm_run(entry: dict[str, Any]) -> ArmRun:
    """One arm and seed by its entry in the job. Raises RftError if no problem was evaluated."""
    folders = {stage: Path(entry[stage]) for stage in STAGES if entry.get(stage)}
    manifests = {stage: _manifest(folder) for stage, folder in folders.items()}
    told = manifests.get("eval_sample", {}).get("dtype")
    pools = tuple(
        Pool(
            one["name"],
            Path(one["sample"]),
            Path(one["score"]),
            _manifest(Path(one["sample"])),
            _manifest(Path(one["score"])),
        )
        for one in entry.get("pools", [])
    )
    formats = tuple(
        arm_run({**one, "arm": entry["arm"], "seed": entry["seed"]})
        for one in entry.get("formats", [])
    )
    problems = _problems(folders["eval"])
    if not problems:
        raise RftError(
            f"{folders['eval']}: no evaluated problem of arm {entry['arm']}: `rft run` evaluates it"
        )
    values = _values(folders, problems, entry.get("scorers", []))
    losses = _losses(folders["train"] / "metrics.jsonl") if "train" in folders else ()
    return ArmRun(
        entry["arm"],
        entry["seed"],
        folders,
        manifests,
        problems,
        losses,
        pools,
        formats,
        arm_run({**entry["seen"], "arm": entry["arm"], "seed": entry["seed"]})
        if entry.get("seen")
        else None,
        told or entry.get("dtype", "auto"),
        entry.get("use", ""),
        values,
    )


def faults(job: dict[str, Any]) -> list[Fault]:
    """What is wrong with the stages that a report of the job reads."""
    places = [
        place
        for entry in job["arms"]
        for place in (
            entry,
            *entry.get("pools", []),
            *entry.get("formats", []),
            entry.get("seen") or {},
        )
    ]
    tasks = [run["folder"] for task in job.get("harness") or [] for run in task["runs"]]
    own = [p[stage] for p in places for stage in STAGES if p.get(stage)]
    stages = dict.fromkeys([*own, *tasks])
    found = [one for s in stages for one in integrity.stage_faults(StageDir(Path(s)))]
    # Rows that are whole may still be counted from verdicts that were made anew since.
    counts = dict.fromkeys((p["eval"], p["eval_score"]) for p in places if "eval" in p)
    if not found:
        found = [one for e, s in counts for one in integrity.count_faults(Path(e), Path(s))]
    return found


def digests(runs: list[ArmRun]) -> dict[str, str]:
    """Of each stage that a report rests on the digest of its manifest, by the name of its folder."""
    found: dict[str, str] = {}
    arms = [part for run in runs for part in run.parts or (run,)]
    for run in [one for arm in arms for one in arm.evaluations]:
        for stage, folder in run.folders.items():
            found[folder.name] = run.manifests[stage].get("digest", "")
        for pool in run.pools:
            found[pool.sample.name] = pool.sample_manifest.get("digest", "")
            found[pool.score.name] = pool.score_manifest.get("digest", "")
    return found


def _problems(folder: Path) -> Problems:
    schema = rows.schema(ProblemRow)
    table = rows.read_table(folder, schema.names)
    if not len(table):
        return Problems(table)
    _refuse_unsound(folder, table)
    return Problems(table.sort_by("prompt_id").combine_chunks())


def _refuse_unsound(folder: Path, table: pa.Table) -> None:
    """Rows that were changed by hand may be reported on (`rft compare --flagged`), if they can be."""
    n, correct = table["n"].to_numpy(), table["correct"].to_numpy()
    hits = table["hits"].combine_chunks()
    row_of_hit = pc.list_parent_indices(hits).to_numpy(zero_copy_only=False)
    size = np.bincount(row_of_hit, minlength=len(n))
    right = np.bincount(row_of_hit, hits.flatten().to_numpy(zero_copy_only=False), len(n))
    odd = (n < 1) | (correct < 0) | (correct > n) | (size != n) | (right != correct)
    for name in ("unknown", "truncated"):
        odd |= (table[name].to_numpy() < 0) | (table[name].to_numpy() > n)
    if odd.any():
        first = table["prompt_id"][int(np.flatnonzero(odd)[0])]
        raise RftError(
            f"{folder}: the row of {first} cannot be: its counts contradict each other. `rft run` counts anew"
        )


def _values(
    folders: dict[str, Path], problems: Sequence[ProblemRow], names: list[str]
) -> dict[str, tuple[tuple[float, ...], ...]]:
    """See `ArmRun.values`. A scorer that was asked about some of the samples alone is left out: which
    ones would depend on their verdicts, and so would the best of them."""
    folder = folders["eval_score"]
    columns = ["id", "prompt_id", "verdict", "value", "each"]
    if all(
        batch.column("value").null_count == len(batch)
        for batch in rows.batches(folder, ["id", "value"])
    ):
        return {}
    index = {
        row.id: row.index for row in rows.read(folders["eval_sample"], Candidate, ["id", "index"])
    }
    found: dict[int, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    judged = 0
    for row in rows.read(folder, ScoreRow, columns):
        judged += row.verdict is not Verdict.UNKNOWN
        told = json.loads(row.each) if row.each else [(row.verdict, None, None, row.value)]
        for place, one in enumerate(told):
            value = one[3] if one else None
            if value is not None and row.verdict is not Verdict.UNKNOWN:
                found[place][row.prompt_id][index[row.id]] = value
    uses = dict(enumerate(names))
    out = {}
    for place, by_problem in sorted(found.items()):
        if sum(map(len, by_problem.values())) == judged:
            name = uses.get(place, str(place))
            name = name if name not in out else f"{place}_{name}"
            out[name] = tuple(
                tuple(by_problem[p.prompt_id].get(i, math.nan) for i in range(p.n))
                for p in problems
            )
    return out


def pieces(runs: list[ArmRun]) -> list[ArmRun]:
    """The runs that have folders: each, or those that it was put together from (`parts`)."""
    return [one for run in runs for one in run.parts or (run,)]


def _manifest(folder: Path) -> dict[str, Any]:
    return StageDir(folder).manifest() or {}


def _losses(path: Path) -> tuple[tuple[int, float], ...]:
    found: dict[int, float] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found[int(row["step"])] = float(row["loss"])
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill in mid-line, or another kind of line
    return tuple(sorted(found.items()))
