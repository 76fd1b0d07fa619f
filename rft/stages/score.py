"""Stage 3: what each scorer says of each candidate.

Truncated candidates are settled here, before any scorer sees them: whatever their text holds, they
are `unknown: truncated`. Scorers run in worker processes with a deadline; a scorer that hangs,
crashes or raises makes that candidate unknown and nothing else. Verdicts are combined by Kleene's
strong conjunction: correct if all say so, wrong if any does, else unknown.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rft import components, process, rows, workers
from rft.config import Component
from rft.rundir import StageDir
from rft.types import Candidate, Finish, Prompt, RftError, Score, Scorer, ScoreRow, Verdict

TIMEOUT_S = 10.0
"""Seconds that all scorers together may spend on one candidate."""

Pair = tuple[Prompt, Candidate]


def load_scorers(specs: list[dict[str, Any]]) -> Callable[[Pair], list[Score]]:
    """The scorers of a config's `score:` as one function of a (prompt, candidate) pair."""
    made: list[Scorer] = [components.make("scorers", Component(**spec)) for spec in specs]

    def judge(pair: Pair) -> list[Score]:
        scores = [scorer(*pair) for scorer in made]
        for spec, score in zip(specs, scores, strict=True):
            # Checked in the worker, so that a faulty scorer costs its verdicts and not the run.
            if not isinstance(score, Score) or score.verdict not in list(Verdict):
                raise TypeError(f"{spec['use']} returned {score!r:.80}, not a Score")
            if not isinstance(score.extracted, str | None):
                raise TypeError(f"{spec['use']}: Score.extracted is {score.extracted!r:.80}")
        return scores

    return judge


def combine(scores: list[Score]) -> Score:
    """One score of several: the first wrong one, else the first unknown one, else the first."""
    for verdict in (Verdict.WRONG, Verdict.UNKNOWN):
        for score in scores:
            if score.verdict is verdict:
                return score
    return scores[0]


def score_all(
    pairs: Iterator[Pair], specs: list[dict[str, Any]]
) -> Iterator[tuple[Pair, ScoreRow]]:
    """Scores pairs as they come; yields in any order."""
    truncated: list[tuple[Pair, ScoreRow]] = []

    def complete() -> Iterator[Pair]:
        for prompt, candidate in pairs:
            if candidate.finish is Finish.LENGTH:
                score = Score(Verdict.UNKNOWN, "truncated")
                truncated.append(((prompt, candidate), _row(candidate, score, [])))
            else:
                yield prompt, candidate

    count = min(len(os.sched_getaffinity(0)), 16)
    for pair, got in workers.run(
        load_scorers, (specs,), complete(), workers=count, timeout_s=TIMEOUT_S
    ):
        if isinstance(got, workers.Failure):
            score, each = Score(Verdict.UNKNOWN, got.reason, got.detail or None), []
        else:
            score, each = combine(got), got
        yield pair, _row(pair[1], score, each)
        yield from _drain(truncated)
    yield from _drain(truncated)


def _drain(held: list[Any]) -> Iterator[Any]:
    while held:
        yield held.pop()


def _row(candidate: Candidate, score: Score, each: list[Score]) -> ScoreRow:
    told = [[str(s.verdict), s.reason, s.extracted, s.value] for s in each]
    return ScoreRow(
        candidate.id,
        candidate.prompt_id,
        score.verdict,
        score.reason,
        score.extracted,
        score.value,
        json.dumps(told, ensure_ascii=False),
    )


def run(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        folder = Path(job["folder"])
        if StageDir(folder).manifest() is None:
            _score(job, folder)


def _score(job: dict[str, Any], folder: Path) -> None:
    started = time.monotonic()
    prompts = {p.id: p for p in rows.read(Path(job["prompts"]), Prompt)}
    done = rows.ids(folder)
    source = Path(job["sample"])
    total = len(rows.ids(source))
    progress = process.Progress(job["label"], total, len(done))
    needed = ["id", "prompt_id", "index", "text", "finish", "logprob"]
    pairs = (
        (prompts[candidate.prompt_id], candidate)
        for candidate in rows.read(source, Candidate, columns=needed)
        if candidate.id not in done
    )
    with rows.Writer(folder, ScoreRow, rows=16384) as writer:
        for _, row in score_all(pairs, job["scorers"]):
            writer.add(row)
            progress.step()
    progress.close()
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    count = 0
    for row in rows.read(folder, ScoreRow):
        count += 1
        verdicts[str(row.verdict)] += 1
        if row.verdict is Verdict.UNKNOWN:
            reasons[row.reason or "unknown"] += 1
    if count != total:
        raise RftError(
            f"{job['label']}: {count:,} verdicts on disk for {total:,} candidates, where each has "
            f"one. Delete {folder} and give the same command again."
        )
    StageDir(folder).commit(
        time.monotonic() - started,
        rows=count,
        verdicts=dict(verdicts),
        unknown=dict(reasons),
        funnel={"in": total, "out": count, "dropped": {}},
    )


if __name__ == "__main__":
    process.stage_main(run)
