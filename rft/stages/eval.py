"""Stage 6: from the held-out candidates and their verdicts to one row a problem."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rft import process, rows
from rft.rundir import StageDir
from rft.types import CUT_OFF, Candidate, ProblemRow, ScoreRow, Verdict


def run(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        folder = Path(job["folder"])
        if StageDir(folder).manifest() is not None:
            continue
        started = time.monotonic()
        scores = {row.id: row for row in rows.read(Path(job["score"]), ScoreRow)}
        by_problem: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in rows.read(Path(job["sample"]), Candidate):
            by_problem[candidate.prompt_id].append(candidate)
        problems = [
            _problem(prompt_id, sorted(got, key=lambda c: c.index), scores)
            for prompt_id, got in sorted(by_problem.items())
        ]
        rows.clear(folder)
        rows.write_part(folder, problems, ProblemRow)
        samples = sum(p.n for p in problems)
        StageDir(folder).commit(
            time.monotonic() - started,
            rows=len(problems),
            accuracy=sum(p.correct for p in problems) / samples,
            truncated=sum(p.truncated for p in problems),
            tokens=sum(p.tokens for p in problems),
            funnel={"in": samples, "out": len(problems), "dropped": {}},
        )


def _problem(prompt_id: str, got: list[Candidate], scores: dict[str, ScoreRow]) -> ProblemRow:
    told = [scores[candidate.id] for candidate in got]
    hits = tuple(row.verdict is Verdict.CORRECT for row in told)
    return ProblemRow(
        prompt_id=prompt_id,
        n=len(got),
        correct=sum(hits),
        unknown=sum(row.verdict is Verdict.UNKNOWN for row in told),
        truncated=sum(candidate.finish in CUT_OFF for candidate in got),
        answers=tuple(
            row.extracted or "" if row.verdict is not Verdict.UNKNOWN else "" for row in told
        ),
        hits=hits,
        tokens=sum(len(candidate.token_ids) for candidate in got),
    )


if __name__ == "__main__":
    process.stage_main(run)
