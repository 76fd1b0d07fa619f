"""Controls are told by their settings, a claim rests on its control, and what is missing can be added."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rft.config import Arm, Experiment, merge
from rft.report import controls, evidence, load, settings
from rft.report.compare import compare, find
from rft.stages import report
from tests.synthetic import build, config

ALL = ("base", "sft", "sft_matched", "random", "rft_repeats", "rft")


def _arms(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return settings.resolved({"config": told, "arms": [{"arm": name} for name in told["arms"]]})


def _experiment(arms: dict[str, dict[str, Any]], **body: Any) -> dict[str, Any]:
    told = {**config(()), **body, "arms": arms}
    return Experiment.model_validate(told).model_dump(mode="json")


def _gathered(job: dict[str, Any]) -> dict[str, Any]:
    runs = load.load(job)
    got = compare(job, runs)
    evidence.gather(job, runs, got)
    return got


@pytest.mark.parametrize(
    ("own", "role"),
    [
        ({"train": None}, "base"),
        ({"sample": {"use": "reference"}}, "sft"),
        ({"sample": {"use": "reference"}, "train": {"epochs": 9}}, "sft"),
        ({"sample": {"use": "reference"}, "train": {"match": "arm:mine"}}, "sft_matched"),
        ({"sample": {"use": "reference"}, "train": {"match": "arm:x"}}, None),
        ({"select": [{"use": "random", "args": {"rows": "arm:mine"}}]}, "random"),
        ({"select": [{"use": "random", "args": {"rows": 40}}]}, None),
        ({"select": [{"use": "random", "args": {"rows": "arm:x"}}]}, None),
        # Chance among right answers says nothing of the filter.
        ({"select": [{"use": "random", "args": {"rows": "arm:mine"}}, {"use": "correct"}]}, None),
        ({"select": [{"use": "correct"}]}, "repeats"),
        ({"select": [{"use": "correct"}, {"use": "cap", "args": {"k": 9}}]}, "repeats"),
        ({"select": [{"use": "correct"}, {"use": "dedupe"}]}, None),
        ({"select": [{"use": "top", "args": {"k": 1}}]}, None),
        # Another model, other problems or other samples: other things differ as well.
        ({"train": None, "model": {"base": "other"}}, None),
        ({"sample": {"use": "reference"}, "prompts": {"limit_train": 9}}, None),
        ({"select": [{"use": "correct"}], "sample": {"n": 99}}, None),
    ],
)
def test_a_control_is_told_by_its_settings(own: dict[str, Any], role: str | None) -> None:
    # Its name says something else each time.
    arms = {"mine": {}, "rft": own}
    select = [{"use": "correct"}, {"use": "distinct_equations"}, {"use": "cap", "args": {"k": 4}}]
    got = controls.roles(_arms(_experiment(arms, select=select)), "mine")
    assert {key: names for key, names in got.items() if names} == ({role: ["rft"]} if role else {})


@pytest.mark.parametrize("key", [one.key for one in controls.CONTROLS])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"sample": {"n": 32}, "train": {"lr": 1e-5, "epochs": 7}, "chat": {"system": "Be brief."}},
        {"select": [{"use": "correct"}, {"use": "diverse", "args": {"k": 4}}], "rounds": 3},
        {"prompts": {"limit_train": 50}, "model": {"base": "other"}},
    ],
)
def test_the_lines_that_are_given_add_the_control(key: str, own: dict[str, Any]) -> None:
    # The name is taken, by an arm that is no such control.
    arms = {"mine": own, key: {"sample": {"n": 3}}}
    told = _experiment(arms)
    lines = yaml.safe_load(controls.missing(told, key, "mine"))
    more = Experiment.model_validate(merge(told, lines)).model_dump(mode="json")
    assert len(more["arms"]) == 3, "none is replaced"
    got = controls.roles(_arms(more), "mine")
    assert got[key] == list(lines["arms"])


def test_every_claim_rests_on_its_control(tmp_path: Path) -> None:
    job = build(tmp_path, ALL, (0, 1), problems=80, eval_n=4, resamples=200)
    got = _gathered(job)
    rows = {one["control"]: one for one in got["claims"]}
    assert {key: one["arm"] for key, one in rows.items()} == {
        "base": "base",
        "sft": "sft",
        "sft_matched": "sft_matched",
        "random": "random",
        "repeats": "rft_repeats",
    }
    for one in rows.values():
        pair = find(got, "rft", one["arm"])
        assert one["pair"]["difference"] == pair["difference"]
        # The headline pair was named beforehand; the controls are adjusted among themselves.
        main = one["arm"] == "sft"
        assert one["pair"]["p"] == (pair["p"] if main else pair["p_holm"])
        assert one["pair"]["adjusted"] == (None if main else 4)
        shown = one["pair"]["p"] <= 0.05 and pair["low"] > 0
        assert one["state"] == ("shown" if shown else "open")
    assert rows["base"]["state"] == rows["sft"]["state"] == "shown"


@pytest.mark.parametrize("left_out", [*ALL[:5], None])
def test_a_claim_without_its_control_cannot_be_made(
    tmp_path: Path, left_out: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    arms = tuple(arm for arm in ALL if arm != left_out)
    job = build(tmp_path, arms, problems=30, resamples=50)
    job["baseline"] = "sft" if left_out != "sft" else "base"
    report.run([job])
    folder = Path(job["folder"])
    got = json.loads((folder / "comparison.json").read_text())
    missing = [one for one in got["claims"] if one["state"] == "missing"]
    said = " ".join(capfd.readouterr().err.split())
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    if left_out is None:
        assert not missing and "missing control" not in said
        return
    assert [one["arm"] for one in missing] == [None]
    about = missing[0]["about"]
    assert said.count("missing control") == 1
    assert f"missing control: {about}. Cannot be claimed" in said
    assert "cannot be claimed: no arm is this control" in text and "cannot be claimed" in page
    name = missing[0]["lines"].splitlines()[1]
    assert f"    {name}" in text and name.strip().split(":")[0] in page


def test_repeats_are_no_matter_where_none_are_removed(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft", "rft"), problems=20, resamples=50)
    job["config"]["select"] = [{"use": "correct", "args": {}}]
    states = {one["control"]: one["state"] for one in _gathered(job)["claims"]}
    assert states["repeats"] == "idle" and states["base"] == "missing"


def test_repeats_that_are_more_answers_are_told_of(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft", "rft_repeats", "rft"), problems=20, resamples=50)
    rows = {one["control"]: one for one in _gathered(job)["claims"]}
    before = rows["repeats"]["also"]
    job["config"]["arms"]["rft_repeats"]["select"] = [
        {"use": "correct", "args": {}},
        {"use": "cap", "args": {"k": 9}},
    ]
    (more,) = [one for one in _gathered(job)["claims"] if one["control"] == "repeats"]
    assert [one["path"] for one in before] == []
    assert [one["path"] for one in more["also"]] == ["how many answers select keeps"]


@pytest.mark.parametrize("label", ["", "mine/"])
def test_of_several_runs_the_lines_are_for_that_of_the_headline_arm(
    tmp_path: Path, label: str
) -> None:
    job = build(tmp_path, ("sft", "rft"), problems=20, resamples=50)
    told = job["config"]
    told["arms"]["rft"] = {"train": {"lr": 0.5}}
    for entry in job["arms"]:
        whole = merge(told, told["arms"][entry["arm"]])
        entry["settings"] = {key: whole[key] for key in Arm.model_fields if key in whole}
        entry["arm"] = label + entry["arm"]
    job["baseline"], job["headline"] = f"{label}sft", f"{label}rft"
    job["config"] = {"runs": {"other": {"arms": {"sft": {}}}, "mine": told}}
    rows = {one["control"]: one["lines"] for one in _gathered(job)["claims"]}
    lines = yaml.safe_load(rows["random"])["arms"]["random"]
    assert lines["train"] == {"lr": 0.5}
    assert lines["select"] == [{"use": "random", "args": {"rows": "arm:rft"}}]
    del job["config"]["runs"]["mine"]
    assert {one["lines"] for one in _gathered(job)["claims"]} == {None}


def test_what_else_a_control_differs_in_is_told(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft", "sft_matched", "rft"), problems=20, resamples=50)
    job["config"]["arms"]["sft"]["train"] = {"epochs": 32, "lr": 1e-5}
    job["config"]["arms"]["sft_matched"]["train"]["lr"] = 1e-5
    rows = {one["control"]: one for one in _gathered(job)["claims"]}
    assert [one["path"] for one in rows["sft"]["also"]] == ["train.epochs", "train.lr"]
    # A matched arm has no epochs of its own.
    assert [one["path"] for one in rows["sft_matched"]["also"]] == ["train.lr"]
    assert rows["sft"]["also"][0] == {"path": "train.epochs", "control": 32.0, "headline": 3.0}


@pytest.mark.parametrize("told", [{}, {"name": "elsewhere"}, {"arms": {"rft": {"trian": 1}}}])
def test_unknown_settings_are_told_in_words(tmp_path: Path, told: dict[str, Any]) -> None:
    job = build(tmp_path, ("base", "sft", "rft"), problems=20, resamples=50)
    job["config"] = told
    report.run([job])
    got = json.loads((Path(job["folder"]) / "comparison.json").read_text())
    assert got["claims"] == []
    assert "no arm can be told to be a control" in (Path(job["folder"]) / "report.md").read_text()


def test_an_arm_that_samples_nothing_has_no_such_claims(tmp_path: Path) -> None:
    job = build(tmp_path, ("base", "sft", "sft_matched"), problems=20, resamples=50)
    assert _gathered(job)["claims"] == []
