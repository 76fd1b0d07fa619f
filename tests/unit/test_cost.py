"""Costs: what an arm needs of others counts for it, what is shared counts once, prices are given."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from rft.report import analyses, cost, settings
from rft.report.compare import compare, find
from rft.report.load import load
from rft.rundir import StageDir
from tests.synthetic import build

ARMS = ("base", "sft", "random", "rft")


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return build(tmp_path, ARMS, (0, 1), problems=200, eval_n=4, resamples=100)


def _cost(job: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, Any]]:
    runs = load(job)
    got = compare(job, runs)
    told = cost.gather(job, settings.resolved(job), runs, got)
    return {one["arm"]: one for one in told["arms"]}, told, got


def _seconds(*folders: str) -> float:
    return sum((StageDir(Path(folder)).manifest() or {})["seconds"] for folder in folders)


def test_an_arm_needs_the_policy_that_it_samples_from(job: dict[str, Any]) -> None:
    alone = _cost(job)[0]
    entry = next(e for e in job["arms"] if e["arm"] == "rft" and e["seed"] == 0)
    teacher = next(e for e in job["arms"] if e["arm"] == "sft" and e["seed"] == 0)
    pool = entry["pools"][0]
    own = _seconds(pool["sample"], pool["score"], entry["select"], entry["train"])
    assert alone["rft"]["seconds"] == pytest.approx(own)
    assert alone["base"]["seconds"] == 0
    job["config"]["sample"]["policy"] = "arm:sft"
    taught = _cost(job)[0]
    more = _seconds(teacher["select"], teacher["train"])
    assert taught["rft"]["seconds"] == pytest.approx(own + more)
    assert taught["rft"]["by_stage"]["train"] == _seconds(entry["train"], teacher["train"])
    # References are not sampled by a policy.
    assert taught["sft"]["seconds"] == alone["sft"]["seconds"] == pytest.approx(more)
    assert (
        taught["rft"]["tokens_sampled"]
        == (StageDir(Path(pool["sample"])).manifest() or {})["tokens"]
    )
    assert taught["rft"]["evaluation_seconds"] == _seconds(
        *(entry[s] for s in ("eval_sample", "eval_score", "eval"))
    )


def test_a_round_needs_those_before_it(job: dict[str, Any]) -> None:
    runs = load(job)
    runs = [dataclasses.replace(r, arm="rft@1") if r.arm == "random" else r for r in runs]
    got = compare(job, runs)
    told = {one["arm"]: one for one in cost.gather(job, settings.resolved(job), runs, got)["arms"]}
    both = [next(e for e in job["arms"] if e["arm"] == arm) for arm in ("rft", "random")]
    # They share their pool.
    own = [_seconds(e["select"], e["train"]) for e in both]
    pool = _seconds(both[0]["pools"][0]["sample"], both[0]["pools"][0]["score"])
    assert told["rft"]["seconds"] == pytest.approx(sum(own) + pool)
    assert told["rft@1"]["seconds"] == pytest.approx(own[1] + pool)


def test_policies_that_need_one_another_end(job: dict[str, Any]) -> None:
    job["config"]["arms"]["random"]["sample"] = {"pools": {"x": {"policy": "arm:rft"}}}
    job["config"]["arms"]["rft"]["sample"] = {"policy": "arm:sft"}
    told = _cost(job)[0]
    assert told["random"]["seconds"] > told["rft"]["seconds"] > told["sft"]["seconds"]


def test_the_whole_run_counts_what_is_shared_once(job: dict[str, Any]) -> None:
    told = _cost(job)[1]
    folders = {
        value
        for entry in job["arms"]
        for key, value in entry.items()
        if key in ("prompts", "select", "train", "eval_sample", "eval_score", "eval") and value
    } | {pool[k] for e in job["arms"] for pool in e["pools"] for k in ("sample", "score")}
    assert told["total"]["seconds"] == pytest.approx(_seconds(*folders))


def test_energy_and_money_follow_from_the_prices(job: dict[str, Any]) -> None:
    plain, told, got = _cost(job)
    assert all(one["kwh"] is one["money"] is None for one in plain.values())
    assert told["total"]["money"] is None
    job["config"]["compare"]["cost"] = {
        "watts": 100, "price_per_kwh": 0.5, "price_per_hour": 2.0, "currency": "EUR"
    }  # fmt: skip
    priced = _cost(job)[0]
    for arm, one in priced.items():
        hours = plain[arm]["seconds"] / 3600
        assert one["kwh"] == pytest.approx(0.1 * hours)
        assert one["money"] == pytest.approx((2.0 + 0.05) * hours)
    pair = find(got, "rft", "sft")
    assert pair["low"] > 0
    extra = plain["rft"]["seconds"] - plain["sft"]["seconds"]
    per = priced["rft"]["per_point"]
    assert per["seconds"]["value"] == pytest.approx(extra / (100 * pair["difference"]))
    assert per["seconds"]["low"] < per["seconds"]["value"] < per["seconds"]["high"]
    assert per["money"]["high"] == pytest.approx(2.05 * extra / 3600 / (100 * pair["low"]))
    # Worse, or no dearer: there is nothing to divide.
    assert priced["base"]["per_point"] is priced["sft"]["per_point"] is None
    assert priced["random"]["per_point"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.04, "0.0 s"), (3.14, "3.1 s"), (48, "48 s"), (60, "1.0 min"), (186, "3.1 min"),
     (3600, "1.0 h"), (360000, "100.0 h"), (5_000_000, "1,388.9 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert analyses.duration(seconds) == text
