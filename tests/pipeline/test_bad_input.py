"""What goes wrong for real users: one clear message with the fix, and nothing is lost."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rft import rows, rundir
from rft.types import Prompt, ScoreRow, Verdict
from tests.pipeline.conftest import ROOT, SMALL, command, copy, rft

CONTROLS = ("base", "sft_matched", "random", "rft_repeats", "rft")
ONLY_REFERENCE = [f"arms.{arm}=null" for arm in CONTROLS]
"""Leaves the arm that samples no model, so that the stages before training take seconds."""


def fails(done: subprocess.CompletedProcess[str], *words: str) -> None:
    text = done.stdout + done.stderr
    assert done.returncode == 2, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


def in_sandbox(*mounts: str, runs: str) -> list[str]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    base = [bwrap, "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *mounts]
    return [*base, *command("select", Path(runs), *ONLY_REFERENCE)]


def test_full_disk(tmp_path: Path) -> None:
    done = rft(*in_sandbox("--size", "40960", "--tmpfs", str(tmp_path), runs=f"{tmp_path}/runs"))
    fails(done, "the disk is full", "same command again")


def test_read_only_folder(tmp_path: Path) -> None:
    done = rft(*in_sandbox("--ro-bind", str(tmp_path), str(tmp_path), runs=f"{tmp_path}/runs"))
    fails(done, "cannot write here", "runs=")


def test_every_candidate_wrong_trains_nothing(tmp_path: Path) -> None:
    scorer = 'score=[{use: answer, args: {marker: "no such marker", fallback: false}}]'
    done = rft(*command("run", tmp_path, *ONLY_REFERENCE, scorer))
    fails(done, "left to train on", "unparsed", "Nothing was trained")
    assert not list((tmp_path / "quickstart" / "stages").glob("train-*"))


def test_every_prompt_too_long(tmp_path: Path) -> None:
    done = rft(*command("sample", tmp_path, *ONLY_REFERENCE, "model.max_len=4"))
    fails(done, "prompt_too_long", "model.max_len")


def test_every_row_too_long(tmp_path: Path) -> None:
    done = rft(*command("train", tmp_path, *ONLY_REFERENCE, "model.max_len=30"))
    fails(done, "solution_too_long", "Raise model.max_len")


def test_deepspeed_is_refused_before_anything_runs(tmp_path: Path) -> None:
    launch = tmp_path / "deepspeed.yaml"
    launch.write_text("distributed_type: DEEPSPEED\nnum_processes: 2\n")
    done = rft(*command("run", tmp_path / "runs", f"train.launch={launch}"))
    fails(done, "train.launch", "DeepSpeed", "configs/accelerate/fsdp8.yaml: FSDP2")
    assert not (tmp_path / "runs" / "quickstart" / "stages").exists()


def test_missing_model(tmp_path: Path) -> None:
    done = rft(*command("sample", tmp_path, *ONLY_REFERENCE, f"model.base={tmp_path}/none"))
    fails(done, "model.base", "none")


def test_a_second_run_waits_for_the_first_and_makes_nothing_again(
    finished: Path, tmp_path: Path
) -> None:
    runs = copy(finished, tmp_path)
    with rundir.lock(runs / "quickstart"):
        fails(rft(*command("run", runs)), "in use by process", "name=")
    done = rft(*command("run", runs))
    assert done.returncode == 0, done.stderr
    assert "starting" not in done.stderr and "done already" in done.stderr


def test_changed_config_on_an_old_run(finished: Path, tmp_path: Path) -> None:
    runs = copy(finished, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("part-*")}
    done = rft(*command("run", runs, "train.lr=0.5"))
    fails(done, "another config", "train.lr", "0.5", "--update", "name=")
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("part-*")} == before


def test_torn_part_of_a_finished_stage_is_made_again(finished: Path, tmp_path: Path) -> None:
    runs = copy(finished, tmp_path)
    home = runs / "quickstart/sft/seed0"
    folder, score = ((home / f"{name}_reference").resolve() for name in ("2_sample", "3_score"))
    held = rows.ids(folder)
    assert rows.ids(score) == held
    judged = max(path.stat().st_mtime_ns for path in rows.parts(score))
    part = rows.parts(folder)[0]
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    shown = rft(sys.executable, "-m", "rft.cli", "show", str(runs / "quickstart"))
    assert "torn" in shown.stdout
    done = rft(*command("sample", runs))
    assert done.returncode == 0, done.stderr
    assert "making the missing rows again" in done.stderr
    assert rows.ids(folder) == held
    # A verdict on a text that is gone is none on what was drawn in its place.
    assert rows.ids(score) == held
    assert min(path.stat().st_mtime_ns for path in rows.parts(score)) > judged


def test_what_was_changed_by_hand_is_refused_and_made_again(finished: Path, tmp_path: Path) -> None:
    """One verdict, one row and one setting, each refused by `rft report` and mended by `rft run`."""
    runs = copy(finished, tmp_path)
    home = runs / "quickstart/rft/seed0"
    score, evaluated = (home / name for name in ("6_eval_score", "6_eval"))
    before = {p: rundir.file_digest(p) for p in home.glob("*/part-*")}
    (part,) = rows.parts(score)
    first, *rest = rows.read(score, ScoreRow)
    turned = Verdict.WRONG if first.verdict is Verdict.CORRECT else Verdict.CORRECT
    part.unlink()
    rows.write_part(score, [dataclasses.replace(first, verdict=turned), *rest], ScoreRow)
    config = runs / "quickstart/experiment.yaml"
    config.write_text(config.read_text().replace("temperature:", "temperature: 2 #", 1))
    setting = home / "5_train/stage.json"
    setting.write_text(setting.read_text().replace('"epochs": 2', '"epochs": 3'))
    fails(rft(*command("report", runs)), str(config), "was changed", "`rft run` makes again")
    done = rft(*command("run", runs))
    assert done.returncode == 0, done.stderr
    for file in (part, setting):
        assert f"{file.resolve()}: " in done.stderr
    assert "starting" not in done.stderr
    assert "what it was made of is made again" in done.stderr
    told = {row.id: row.verdict for row in rows.read(score, ScoreRow)}
    assert told == {row.id: row.verdict for row in [first, *rest]}
    assert rundir.file_digest(rows.parts(evaluated)[0]) == before[rows.parts(evaluated)[0]]
    assert rft(*command("report", runs)).returncode == 0
    assert "made before its stages changed" not in show(runs)
    losses = home / "5_train/metrics.jsonl"
    losses.write_text(losses.read_text().replace("loss", "lost", 1))
    fails(rft(*command("run", runs)), "metrics.jsonl", "Put back the file")
    (home / "6_eval/manifest.json").unlink()
    assert "made before its stages changed" in show(runs)


def show(runs: Path) -> str:
    done = rft(sys.executable, "-m", "rft.cli", "show", str(runs / "quickstart"))
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_show(finished: Path) -> None:
    def show(*words: str) -> str:
        done = rft(sys.executable, "-m", "rft.cli", "show", str(finished), *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "select-" in show() and "done" in show()
    assert "question" in show("rft/seed0/2_sample", "-n", "1")
    assert "token_ids" in show("rft/seed0/2_sample", "-n", "1", "--tokens")
    one = next(iter(rows.ids((finished / "rft/seed0/2_sample").resolve())))
    assert one in show("sample", one[:12])
    missing = rft(
        sys.executable, "-m", "rft.cli", "show", str(finished), "rft/seed0/2_sample", "zzzz"
    )
    fails(missing, "no row whose id begins with 'zzzz'")


@pytest.mark.parametrize("verb", ["run", "check", "sample"])
def test_broken_data_names_file_and_line(tmp_path: Path, verb: str) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": \n')
    done = rft(*command(verb, tmp_path / "runs", f"prompts.args.train={data}"))
    fails(done, f"{data}:2", "JSON")


def test_small_settings_are_real() -> None:
    """The overrides of this suite still name settings of the quickstart."""
    from rft import loader

    loader.load(ROOT / "configs/quickstart.yaml", SMALL)


SCORER = """
import time
from rft.types import Score, Verdict

def mine(prompt, candidate):
    what = prompt.question.split()[0]
    if what == "raise":
        raise KeyError("no such unit")
    if what == "hang":
        time.sleep(1000)
    if what == "type":
        return True
    if what == "verdict":
        return Score("right")
    return Score(Verdict.CORRECT)
"""


def solved(tmp_path: Path, *questions: str) -> list[str]:
    """Settings for data of these questions, each with its solution, and the scorer above."""
    (tmp_path / "scorer.py").write_text(SCORER)
    lines = [
        json.dumps({"question": q, "answer": "2", "solution": "1 + 1 = 2\n#### 2"})
        for q in questions
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return [
        f"prompts.args.train={tmp_path}/data.jsonl",
        f"score=[{{use: {tmp_path}/scorer.py:mine}}]",
    ]


WORDS = {
    "raise": "KeyError: 'no such unit'",
    "type": "mine returned True, not a Score",
    "verdict": "not a Score",
}


def test_a_scorer_that_raises_hangs_or_returns_something_else_invents_no_verdict(
    tmp_path: Path,
) -> None:
    settings = solved(tmp_path, "fine", "hang", *WORDS)
    done = rft(*command("score", tmp_path / "runs", *ONLY_REFERENCE, *settings))
    assert done.returncode == 0, done.stderr
    assert "2 unknown" not in done.stderr and "4 unknown" in done.stderr
    run = tmp_path / "runs/quickstart"
    (folder,) = (p.resolve() for p in run.glob("sft/seed0/3_score_reference"))
    prompts = {p.id: p for p in rows.read(run / "sft/seed0/1_prompts/train", Prompt)}
    got = {prompts[row.prompt_id].question: row for row in rows.read(folder, ScoreRow)}
    assert {q: str(row.verdict) for q, row in got.items()} == {
        "fine": "correct",
        **dict.fromkeys(["hang", *WORDS], "unknown"),
    }
    assert {q: row.reason for q, row in got.items()} == {
        "fine": None,
        "hang": "timeout",
        **dict.fromkeys(WORDS, "error"),
    }
    for question, words in WORDS.items():
        assert words in (got[question].extracted or "")


def test_check_shows_what_a_scorer_raises_once_for_each_solution(tmp_path: Path) -> None:
    settings = solved(tmp_path, "fine", *WORDS)
    done = rft(*command("check", tmp_path / "runs", *ONLY_REFERENCE, *settings))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    told = " ".join(done.stdout.split())
    counts = re.search(r"scorer\.py:mine: (\d+) of (\d+) gold solutions are correct", told)
    assert counts and int(counts[2]) - int(counts[1]) == 3, told
    for question, words in WORDS.items():
        assert told.count(words) == (2 if question == "verdict" else 1), told
        assert f"question: {question}" in told
    assert "unknown (error)" in told


def test_a_gold_answer_that_cannot_be_read_stops_the_check(tmp_path: Path) -> None:
    settings = solved(tmp_path, "fine")
    with open(tmp_path / "data.jsonl", "a") as file:
        file.write("\n" + json.dumps({"question": "How long is the side?", "answer": "\\frac{1}{"}))
    done = rft(*command("check", tmp_path / "runs", *ONLY_REFERENCE, settings[0], "score=[math]"))
    fails(done, "score")
    done = rft(
        *command("check", tmp_path / "runs", *ONLY_REFERENCE, settings[0], "score=[{use: math}]")
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    told = " ".join(done.stdout.split())
    assert "1 gold answers or tests cannot be read" in told
    assert "unknown (bad_gold)" in told and "question: How long is the side?" in told


def test_half_a_surrogate_pair_in_the_data(tmp_path: Path) -> None:
    settings = solved(tmp_path, "fine")
    with open(tmp_path / "data.jsonl", "a") as file:
        file.write("\n" + json.dumps({"question": "half \ud83d", "answer": "1", "solution": "1"}))
    for verb in ("check", "score"):
        done = rft(*command(verb, tmp_path / "runs", *ONLY_REFERENCE, *settings))
        fails(done, "data.jsonl:2")
