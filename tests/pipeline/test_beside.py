"""Scoring beside sampling, through the command line, with a slow sampler of the user's own."""

from pathlib import Path

import pytest

from rft import rows, rundir
from rft.types import ScoreRow
from tests.pipeline.conftest import (
    ALONE,
    ROOT,
    SIGINT,
    SIGKILL,
    command,
    rft,
    stage_processes,
    stop,
    until,
    written,
)

SCORER = """
from rft.types import Score, Verdict

class mine:
    def __init__(self, *, words: str = ""):
        if words:
            raise ValueError(f"there is no list of words {words}")

    def __call__(self, prompt, candidate):
        return Score(Verdict.WRONG if candidate.text.endswith("00") else Verdict.CORRECT)
"""
COUNT = 100 * 8


@pytest.fixture
def args(tmp_path: Path) -> list[str]:
    (tmp_path / "scorer.py").write_text(SCORER)
    return command("score", tmp_path / "runs", *ALONE)


def stage(tmp_path: Path, kind: str) -> Path:
    (folder,) = (tmp_path / "runs/quickstart/stages").glob(f"{kind}-*")
    return folder


def stopped_while_it_samples(args: list[str], tmp_path: Path, how: int) -> dict[str, ScoreRow]:
    """Sends `how` once there are more verdicts than before, and returns them."""
    stages, log = tmp_path / "runs/quickstart/stages", tmp_path / "log"

    def verdicts() -> int:
        return sum(len(rows.ids(folder)) for folder in stages.glob("score-*"))

    before = verdicts()
    code = stop(args, lambda _: verdicts() > before, how, log)
    text = log.read_text()
    assert code == {SIGKILL: -SIGKILL, SIGINT: 130}[how] and "Traceback" not in text, text
    assert how == SIGKILL or "go on from here" in text
    assert rundir.StageDir(stage(tmp_path, "sample")).manifest() is None
    until(lambda: not stage_processes(tmp_path / "runs"), 10)
    return {row.id: row for row in rows.read(stage(tmp_path, "score"), ScoreRow)}


def test_verdicts_come_while_it_samples_and_a_kill_costs_none(
    args: list[str], tmp_path: Path
) -> None:
    early = stopped_while_it_samples(args, tmp_path, SIGKILL)
    later = stopped_while_it_samples(args, tmp_path, SIGINT)
    assert 0 < len(early) < len(later) < COUNT
    assert {str(r.verdict) for r in later.values()} <= {"correct", "wrong"}
    done = rft(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    ids = written(stage(tmp_path, "score"))
    assert len(ids) == len(set(ids)) == COUNT
    assert sorted(ids) == sorted(written(stage(tmp_path, "sample")))
    got = {row.id: row for row in rows.read(stage(tmp_path, "score"), ScoreRow)}
    assert later.items() <= got.items() and early.items() <= later.items()
    manifest = rundir.StageDir(stage(tmp_path, "score")).manifest()
    assert manifest is not None and sum(manifest["verdicts"].values()) == COUNT
    assert manifest["unknown"] == {}


def test_a_scorer_that_cannot_start_leaves_the_samples(args: list[str], tmp_path: Path) -> None:
    own = f"{{use: {tmp_path}/scorer.py:mine, args: {{words: x}}}}"
    done = rft(*args, f"score=[{own}]", "sample.n=1")
    text = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in text, text
    assert text.count("there is no list of words x") == 1
    assert "the score stage stopped (above)" in text
    drawn = rundir.StageDir(stage(tmp_path, "sample")).manifest()
    assert drawn is not None and drawn["rows"] == 100
    assert rows.parts(stage(tmp_path, "score")) == []
    # With the argument mended nothing is drawn again.
    own = f"{{use: {tmp_path}/scorer.py:mine}}"
    done = rft(*args, f"score=[{own}]", "sample.n=1", "--update")
    assert done.returncode == 0, done.stderr
    assert "starting" not in done.stderr


def test_a_sampler_that_ends_its_process_does_not_leave_the_run_waiting(
    args: list[str], tmp_path: Path
) -> None:
    done = rft(*args, f"sample.use={ROOT}/tests/pipeline/slow.py:leaves", timeout=120)
    text = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in text, text
    assert "its process ended without finishing it" in text
    assert not stage_processes(tmp_path / "runs")
