"""Stage 3: what each scorer says of each candidate (rft/scoring.py), from parts to parts.

Scorers that run in worker processes have judged most candidates while these were drawn
(rft/stages/sample.py), so what is left for this stage is scoring anew, after an interruption, and by
models and servers. Stages that have the same scorers share the worker processes.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rft import components, process, rows, scoring
from rft.config import Combine, Ray
from rft.config_decoding import Loops
from rft.groups import Partitions, Source
from rft.rundir import StageDir
from rft.scoring import COLUMNS, Chunk, Pace, Specs, by_workers, mixed, split_truncated
from rft.section import Component
from rft.types import Prompt, ScoreRow, StreamScorer, digest


def run(jobs: list[dict[str, Any]]) -> None:
    together: dict[str, list[_Stage]] = defaultdict(list)
    for job in jobs:
        if StageDir(Path(job["folder"])).manifest() is None:
            together[digest(job["scorers"], job["combine"])].append(_Stage(job))
    for stages in together.values():
        if any(components.is_stream(spec["use"]) for spec in stages[0].specs):
            for stage in stages:
                stage.run()
        else:
            _run_together(stages)


def _run_together(stages: list["_Stage"]) -> None:
    """Scores stages that have the same scorers, all in worker processes, by one set of these."""
    started = time.monotonic()
    first = stages[0]
    label = first.job["label"] + (f" and {len(stages) - 1} more" if len(stages) > 1 else "")
    done = sum(stage.resumed for stage in stages)
    progress = process.Progress(label, done + sum(stage.owed() for stage in stages), done)

    def chunks() -> Iterator[Chunk]:
        for i, stage in enumerate(stages):
            for chunk in stage.parts():
                yield Chunk(chunk.prompts, chunk.batch, i)

    try:
        for i, batch in by_workers(chunks(), first.specs, first.rule, first.ray):
            stages[i].pace.done += batch.num_rows
            stages[i].writer.extend(batch)
            progress.step(batch.num_rows)
    finally:
        # Ctrl-C or a scorer that cannot start: what is scored is kept.
        for stage in stages:
            stage.writer.flush()
        progress.close()
    seconds = time.monotonic() - started
    total = sum(stage.pace.done for stage in stages)
    for stage in stages:
        stage.commit(seconds * stage.pace.done / max(total, 1))


class _Stage:
    """One job: from its candidates on disk to score rows on disk."""

    def __init__(self, job: dict[str, Any]):
        self.job, self.folder, self.source = job, Path(job["folder"]), Path(job["sample"])
        self.prompts = {p.id: p for p in rows.read(Path(job["prompts"]), Prompt)}
        self.specs: Specs = job["scorers"]
        self.rule = Combine(**job["combine"])
        self.ray = Ray(**job["ray"])
        self.seen = rows.ids(self.folder)
        """Ids of the candidates that are scored, or on their way."""
        self.resumed = len(self.seen)
        self.pace = Pace()
        self.writer = rows.Writer(self.folder, ScoreRow, rows=65536)

    def owed(self) -> int:
        """Candidates to be scored."""
        return rows.count(self.source) - self.resumed

    def run(self) -> None:
        """Scores by scorers some of which run in this process."""
        started = time.monotonic()
        made: dict[int, StreamScorer] = {
            i: components.make("scorers", Component(**spec), f"score.{i}")  # type: ignore[misc]
            for i, spec in enumerate(self.specs)
            if components.is_stream(spec["use"])
        }
        for scorer in made.values():
            getattr(scorer, "open", lambda _: None)(self.folder)
        whole = any(scorer.whole_prompts for scorer in made.values())
        counts: Counter[str] = Counter()
        chunks = self._whole_prompts(counts) if whole else self.parts()
        progress = process.Progress(self.job["label"], self.resumed + self.owed(), self.resumed)

        def keep(batch: pa.RecordBatch) -> None:
            self.pace.done += batch.num_rows
            if whole:
                batch = batch.filter(self._is_fresh(batch))
            self.writer.extend(batch)
            progress.step(batch.num_rows)

        try:
            mixed(chunks, self.specs, self.rule, made, counts, keep, self.ray)
        finally:
            self.writer.flush()
            progress.close()
        stats: dict[str, dict[str, float]] = {
            f"{i}_{self.specs[i]['use']}": getattr(scorer, "stats", dict)()
            for i, scorer in made.items()
        }
        self.commit(time.monotonic() - started, scorers=stats)

    def _is_fresh(self, batch: pa.RecordBatch) -> pa.Array:
        return pa.array([id not in self.seen for id in batch.column("id").to_pylist()], pa.bool_())

    def parts(self) -> Iterator[Chunk]:
        """All candidates that are not scored yet."""
        for batch in rows.batches(self.source, COLUMNS):
            batch = batch.filter(self._is_fresh(batch))
            self.seen.update(batch.column("id").to_pylist())
            rest, cut = split_truncated(batch)
            self.writer.extend(cut)
            yield from self._cut(rest)

    def _cut(self, batch: pa.RecordBatch) -> Iterator[Chunk]:
        at = 0
        while at < batch.num_rows:
            part = batch.slice(at, self.pace.rows())
            at += part.num_rows
            wanted = set(part.column("prompt_id").unique().to_pylist())
            yield Chunk({id: self.prompts[id] for id in wanted}, part)

    def _whole_prompts(self, counts: Counter[str]) -> Iterator[Chunk]:
        """The candidates of every prompt that has one without a score; fills in how many of each."""
        partitions = Partitions([Source(self.source, COLUMNS)], self.folder / ".scratch")
        try:
            for (table,) in partitions:
                fresh = table.filter(self._is_fresh(table))
                owed = table.column("prompt_id")
                owed = pc.is_in(owed, value_set=fresh.column("prompt_id").combine_chunks())
                batches = table.filter(owed).combine_chunks().to_batches()
                split = [split_truncated(batch) for batch in batches]
                # Counted before any is handed out: a prompt may lie in several batches.
                for rest, cut in split:
                    self.writer.extend(cut.filter(self._is_fresh(cut)))
                    counts.update(rest.column("prompt_id").to_pylist())
                for rest, _ in split:
                    yield from self._cut(rest)
        finally:
            partitions.close()

    def commit(self, seconds: float, **more: Any) -> None:
        given = self.job.get("loops")
        rule = None if given is None else Loops(**given)
        scoring.commit(self.folder, self.source, self.job["label"], seconds, rule, **more)


if __name__ == "__main__":
    process.stage_main(run)
