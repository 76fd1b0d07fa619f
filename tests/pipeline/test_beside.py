"""Scoring beside sampling, through the command line, with a slow sampler of the user's own."""

import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rft import rows, rundir
from rft.types import ScoreRow
from tests.pipeline.conftest import ROOT, SIGINT, SIGKILL, command, rft, stage_processes, until

SAMPLER = """
import sys, time
from rft.types import Candidate, Finish

class slow:
    # The gold answers, one every 20 ms; every second one with another end.
    def __init__(self, setup):
        self.setup = setup

    def sample(self, requests):
        for r in requests:
            time.sleep(0.02)
            text = f"#### {self.setup.prompts[r.prompt_id].answer}" + "0" * (r.index % 2)
            ids = self.setup.renderer.completion_ids(text)
            yield Candidate(
                r.id, r.prompt_id, r.index, text, r.prompt_token_ids, ids, Finish.STOP, -1.0
            )

    def stats(self):
        return {}

    def close(self):
        pass

class leaves(slow):
    def sample(self, requests):
        yield next(super().sample(requests))
        sys.exit(0)
"""
SCORER = """
from rft.types import Score, Verdict

class mine:
    def __init__(self, *, words: str = ""):
        if words:
            raise ValueError(f"there is no list of words {words}")

    def __call__(self, prompt, candidate):
        return Score(Verdict.WRONG if candidate.text.endswith("00") else Verdict.CORRECT)
"""
OTHERS = [f"arms.{arm}=null" for arm in ("base", "sft", "sft_matched", "random")]
ALONE = [*OTHERS, "compare.baseline=rft", "sample.policy=base", "train.include_reference=false"]
"""Leaves the arm that samples, from the base model, so that nothing is trained first."""
COUNT = 100 * 8


@pytest.fixture
def args(tmp_path: Path) -> list[str]:
    (tmp_path / "sampler.py").write_text(SAMPLER)
    (tmp_path / "scorer.py").write_text(SCORER)
    use = f"sample.use={tmp_path}/sampler.py:slow"
    return command("score", tmp_path / "runs", *ALONE, use)


def stage(tmp_path: Path, kind: str) -> Path:
    (folder,) = (tmp_path / "runs/quickstart/stages").glob(f"{kind}-*")
    return folder


def written(folder: Path) -> list[str]:
    """Ids in all parts, one that is in two of them twice."""
    return [i for p in rows.parts(folder) for i in pq.read_table(p, columns=["id"])[0].to_pylist()]


def has_scores(tmp_path: Path) -> bool:
    return any((tmp_path / "runs/quickstart/stages").glob("score-*/part-*"))


@pytest.mark.parametrize("how", [SIGKILL, SIGINT])
def test_verdicts_come_while_it_samples_and_a_kill_costs_none(
    args: list[str], tmp_path: Path, how: int
) -> None:
    with open(tmp_path / "log", "wb") as log:
        child = subprocess.Popen(args, cwd=ROOT, stdout=log, stderr=log)
        try:
            until(lambda: has_scores(tmp_path) or child.poll() is not None, 120)
            assert child.poll() is None, (tmp_path / "log").read_text()
            assert rundir.StageDir(stage(tmp_path, "sample")).manifest() is None
            child.send_signal(how)
            code = child.wait(60)
        finally:
            child.kill()
            child.wait()
    until(lambda: not stage_processes(tmp_path / "runs"), 10)
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text
    if how == SIGINT:
        assert code == 130 and "go on from here" in text
    early = {row.id: row for row in rows.read(stage(tmp_path, "score"), ScoreRow)}
    assert 0 < len(early) < COUNT and {str(r.verdict) for r in early.values()} <= {
        "correct",
        "wrong",
    }
    done = rft(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    ids = written(stage(tmp_path, "score"))
    assert len(ids) == len(set(ids)) == COUNT
    assert sorted(ids) == sorted(written(stage(tmp_path, "sample")))
    got = {row.id: row for row in rows.read(stage(tmp_path, "score"), ScoreRow)}
    assert {i: got[i] for i in early} == early
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
    done = rft(*args, f"sample.use={tmp_path}/sampler.py:leaves", timeout=60)
    text = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in text, text
    assert "its process ended without finishing it" in text
    assert not stage_processes(tmp_path / "runs")
