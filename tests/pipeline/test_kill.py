"""SIGKILL at random moments of every stage, then resume: as if nothing had happened."""

import random
from pathlib import Path

import pyarrow.parquet as pq

from rft import rows, rundir
from rft.types import Candidate, ChoiceRow, ProblemRow, ScoreRow
from tests.pipeline.conftest import (
    SIGINT,
    SIGKILL,
    command,
    kill_after,
    rft,
    stage_processes,
    until,
)

MOMENTS = {
    "prompts (": 0.3,
    "sample (sft": 3,
    "sample (rft": 16,
    "score (rft": 1.2,
    "select (rft": 3,
    "train (rft": 18,
    "eval sample (base": 16,
}
"""Line of output at which a stage begins, and how long it lasts here at the most, in seconds."""
KILLS = 14
"""Runs are killed at each of these in turn, until so many kills have hit a run that was working."""


def contents(run: Path) -> dict[str, object]:
    """What a run holds, by stage folder: row ids, choices, losses."""
    found: dict[str, object] = {}
    for folder in sorted((run / "stages").iterdir()):
        assert rundir.StageDir(folder).manifest() is not None, folder
        kind = folder.name.split("-")[0]
        if kind == "sample":
            found[folder.name] = sorted(
                (r.id, r.prompt_id, r.index) for r in rows.read(folder, Candidate)
            )
        elif kind == "score":
            found[folder.name] = sorted(r.id for r in rows.read(folder, ScoreRow))
        elif kind == "select":
            found[folder.name] = sorted(r.id for r in rows.read(folder / "choices", ChoiceRow))
        elif kind == "eval":
            found[folder.name] = sorted(r.prompt_id for r in rows.read(folder, ProblemRow))
        elif kind == "train":
            assert (folder / "adapter_model.safetensors").is_file()
            found[folder.name] = None
    return found


def drawn_twice(run: Path) -> list[str]:
    """Sample folders whose parts hold an id more than once: it was sampled after it was kept."""
    twice = []
    for folder in (run / "stages").glob("sample-*"):
        ids = [
            i for p in rows.parts(folder) for i in pq.read_table(p, columns=["id"])[0].to_pylist()
        ]
        if len(ids) != len(set(ids)):
            twice.append(folder.name)
    return twice


def test_killed_at_any_moment_a_run_ends_as_if_undisturbed(finished: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    hit: list[tuple[str, float]] = []
    turn = 0
    while len(hit) < KILLS:
        turn += 1
        runs = tmp_path / str(turn)
        for line, lasts in MOMENTS.items():
            delay = chance.uniform(0, lasts)
            log = tmp_path / f"{turn}-{len(hit)}.log"
            code = kill_after(command("run", runs), line, delay, log, SIGKILL)
            if code is not None:
                hit.append((line, round(delay, 1)))
            until(lambda runs=runs: not stage_processes(runs), 10)
        done = rft(*command("run", runs), timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert contents(runs / "quickstart") == contents(finished)
        assert not drawn_twice(runs / "quickstart")
        # A run that ends before its moment is not hit; that must stay the exception.
        assert len(hit) > 3 * turn, hit


def test_ctrl_c_keeps_what_was_sampled(tmp_path: Path) -> None:
    runs, log = tmp_path / "runs", tmp_path / "log"
    code = kill_after(command("run", runs), "sample (rft", 12, log, SIGINT)
    text = log.read_text()
    assert code == 130, text
    assert "Traceback" not in text and "go on from here" in text
    assert not stage_processes(runs)
