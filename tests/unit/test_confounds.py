"""Every confound is found where it is, and not where it is not."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rft import rows
from rft.report import confounds, evidence, load
from rft.report.compare import compare
from rft.rundir import StageDir, to_json
from rft.types import ProblemRow, Prompt
from tests.synthetic import build

ARMS = ("base", "sft", "sft_matched", "rft")


def _found(job: dict[str, Any], *more: load.ArmRun) -> dict[str, dict[str, Any]]:
    runs = [*load.load(job), *more]
    got = compare(job, runs)
    evidence.gather(job, runs, got)
    return {one["name"]: one for one in got["confounds"]}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return build(tmp_path / "one" / "run", ARMS, problems=60, eval_n=2, resamples=100)


def _edit(job: dict[str, Any], arm: str, change: Callable[[ProblemRow], ProblemRow]) -> None:
    folder = Path(next(e for e in job["arms"] if e["arm"] == arm)["eval"])
    changed = [change(row) for row in rows.read(folder, ProblemRow)]
    rows.clear(folder)
    rows.write_part(folder, changed, ProblemRow)


def test_every_kind_is_looked_for(job: dict[str, Any]) -> None:
    found = _found(job)
    assert set(found) == set(evidence.NAMES)
    assert {one["state"] for one in found.values()} <= {"flagged", "clear", "unknown"}
    for one in found.values():
        assert one["text"]
        assert bool(one["fix"]) == (one["state"] != "clear")


def test_other_training_problems_and_other_decoding_are_named(job: dict[str, Any]) -> None:
    clear = _found(job)
    assert clear["problems"]["state"] == clear["decoding"]["state"] == "clear"
    own = job["config"]["arms"]
    own["base"] |= {"eval": {"chat": {"shots": 4}, "max_tokens": 99, "engine": {"max_num_seqs": 7}}}
    own["sft_matched"] |= {"prompts": {"limit_train": 10}}
    found = _found(job)
    assert found["problems"]["figures"]["arms"] == {"sft_matched": ["limit_train"]}
    # How many sequences are decoded together changes no answer.
    assert found["decoding"]["figures"]["arms"] == {"base": ["chat.shots", "eval.max_tokens"]}
    assert (
        "base (chat.shots 4 instead of 0, eval.max_tokens 99 instead of 512)"
        in found["decoding"]["text"]
    )


def test_other_samplers_and_formats_are_named(job: dict[str, Any]) -> None:
    assert _found(job)["formats"]["state"] == "clear"
    folder = Path(job["arms"][0]["eval_sample"])
    manifest = StageDir(folder).manifest() or {}
    rows.write_bytes(folder / "manifest.json", to_json({**manifest, "dtype": "bfloat16"}))
    job["config"]["arms"]["sft"] |= {"eval": {"use": "transformers"}}
    found = _found(job)["formats"]
    assert found["state"] == "flagged"
    assert found["figures"]["arms"]["base"] == "vllm in bfloat16"
    assert found["figures"]["arms"]["sft"] == "transformers in auto"


def test_overlaps_are_counted_and_taken_out(job: dict[str, Any]) -> None:
    prompts = Path(job["arms"][0]["prompts"])
    train = list(rows.read(prompts / "train", Prompt))
    held = list(rows.read(prompts / "eval", Prompt))
    # Those with a solution are trained on by every arm.
    taught = next(p for p in train if p.solution)
    alike = taught.question.replace("[train", "[once more")
    # The question that is met has changed since the run; its id has not.
    held = [
        dataclasses.replace(p, question=f"{i} entirely other words") for i, p in enumerate(held)
    ]
    rows.clear(prompts / "eval")
    rows.write_part(prompts / "eval", held, Prompt)
    assert _found(job)["contamination"]["state"] == "clear"
    held[7] = dataclasses.replace(held[7], question=alike)
    rows.clear(prompts / "eval")
    rows.write_part(prompts / "eval", held, Prompt)
    found = _found(job)["contamination"]
    assert found["state"] == "flagged"
    assert (found["figures"]["overlapping"], found["figures"]["held_out"]) == (1, 60)
    runs = load.load(job)
    kept = [i for i, p in enumerate(runs[0].problems) if p.prompt_id != held[7].id]
    by_arm = {run.arm: run.accuracy_P for run in runs}
    without = found["figures"]["without"]
    assert without["problems"] == 59
    assert without["difference"] == pytest.approx(np.mean((by_arm["rft"] - by_arm["sft"])[kept]))


def test_what_is_not_known_is_not_called_clear(job: dict[str, Any]) -> None:
    """One arm's selected rows were left behind, of another nothing but verdicts is there."""
    next(one for one in job["arms"] if one["arm"] == "sft")["select"] = None
    found = _found(job)
    assert found["contamination"]["state"] == "unknown"
    assert "of sft that is not known" in found["contamination"]["text"]
    assert found["problems"]["state"] == found["formats"]["state"] == "clear"
    bare = dataclasses.replace(load.load(job)[-1], arm="other", folders={}, manifests={}, pools=())
    found = _found(job, bare)
    for name in ("problems", "formats", "contamination"):
        assert found[name]["state"] == "unknown"
        assert "other" in found[name]["text"]


def test_other_data_under_the_same_settings_is_named(job: dict[str, Any], tmp_path: Path) -> None:
    other = build(tmp_path / "two" / "run", ARMS, problems=60, eval_n=2, resamples=100)
    mine = next(one for one in job["arms"] if one["arm"] == "rft")
    moved = Path(mine["prompts"]).with_name("prompts-another")
    shutil.copytree(next(iter(other["arms"]))["prompts"], moved)
    mine["prompts"] = str(moved)
    found = _found(job)["problems"]
    assert (found["state"], found["figures"]["arms"]) == ("flagged", {"rft": []})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("truncation", lambda p: dataclasses.replace(p, truncated=1, unknown=1)),
        ("unknown", lambda p: dataclasses.replace(p, truncated=0, unknown=1)),
    ],
)
def test_rates_that_differ_are_told_from_rates_that_do_not(
    job: dict[str, Any], name: str, change: Callable[[ProblemRow], ProblemRow]
) -> None:
    for arm in ARMS:
        _edit(job, arm, lambda p: dataclasses.replace(p, truncated=0, unknown=0))
    assert _found(job)[name]["state"] == "clear"
    _edit(job, "base", change)
    found = _found(job)
    assert found[name]["state"] == "flagged"
    assert found[name]["figures"]["rates"] == {"base": 0.5, "sft": 0, "sft_matched": 0, "rft": 0}
    # Against the baseline, and the headline arm against it; the others do not differ.
    assert [
        (d["arm"], d["baseline"], d["difference"]) for d in found[name]["figures"]["differ"]
    ] == [
        ("base", "sft", 0.5),
        ("rft", "base", -0.5),
    ]
    other = {"truncation": "unknown", "unknown": "truncation"}[name]
    assert found[other]["state"] == "clear", "what is cut off is counted once"


def _begin(stages: Path, kind: str, key: str, inputs: dict[str, Any]) -> Path:
    folder = stages / f"{kind}-{key[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    told = {"kind": kind, "key": key, "inputs": {"kind": kind, **inputs}}
    rows.write_bytes(folder / "stage.json", json.dumps(told).encode())
    if StageDir(folder).manifest() is None:
        StageDir(folder).commit(0.0)
    return folder


def _evaluated(stages: Path, name: str, questions: str) -> Path:
    sample = _begin(stages, "sample", f"sample{name}".ljust(24, "0"), {"questions": questions})
    key = f"score{name}".ljust(24, "0")
    _begin(stages, "score", key, {"candidates": f"sample{name}".ljust(24, "0")})
    assert sample.name == f"sample-{f'sample{name}'.ljust(24, '0')[:12]}"
    return _begin(stages, "eval", f"eval{name}".ljust(24, "0"), {"scores": key})


def test_other_evaluations_of_the_same_problems_are_counted(job: dict[str, Any]) -> None:
    assert _found(job)["tuning"]["state"] == "unknown", "a run that tells no keys"
    stages = Path(job["arms"][0]["eval"]).parent
    for i, entry in enumerate(job["arms"]):
        made = _evaluated(stages, f"own{i}", "same")
        for part in rows.parts(Path(entry["eval"])):
            (made / part.name).write_bytes(part.read_bytes())
        entry["eval"] = str(made)
    found = _found(job)["tuning"]
    assert (found["state"], found["figures"]) == ("clear", {"stale": 0, "runs": {}})
    _evaluated(stages, "old", "same")
    _evaluated(stages, "seen", "training problems")
    beside = stages.parents[1] / "earlier" / "stages"
    _evaluated(beside, "a", "same")
    _evaluated(beside, "b", "same")
    _evaluated(beside, "own0", "same")  # the same settings and seed: nothing new was learnt of them
    _evaluated(stages.parents[1] / "unrelated" / "stages", "c", "others")
    found = _found(job)["tuning"]
    assert found["state"] == "flagged"
    assert found["figures"] == {"stale": 1, "runs": {"earlier": 2}}
    assert "1 other run in this folder (earlier)" in found["text"]


@pytest.mark.parametrize(("steps", "state"), [(120, "clear"), (121, "clear"), (60, "flagged")])
def test_a_matched_control_that_is_not_matched_is_named(
    job: dict[str, Any], steps: int, state: str
) -> None:
    entry = next(e for e in job["arms"] if e["arm"] == "sft_matched")
    folder = Path(entry["train"])
    manifest = StageDir(folder).manifest() or {}
    rows.write_bytes(folder / "manifest.json", to_json({**manifest, "steps": steps}))
    found = _found(job)["matching"]
    assert found["state"] == state
    assert f"trained for {steps:,} steps, rft for 120" in found["text"]


def test_too_many_questions_are_not_looked_through(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confounds, "MOST_TEXTS", 50)
    found = _found(job)["contamination"]
    assert found["state"] == "unknown" and "decontaminate" in found["fix"]
