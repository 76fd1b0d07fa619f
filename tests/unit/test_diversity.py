"""Variety of training answers by hand, the gap to problems that were seen, and how both go together."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rft import rows
from rft.report import diversity, settings
from rft.report.compare import compare, find
from rft.report.load import ArmRun, Pool, load
from rft.tallies import KEYS
from rft.types import Candidate, Finish, Prompt, TrainRow
from tests.synthetic import build


def _run(root: Path, answers: dict[str, list[str]], solutions: dict[str, str]) -> ArmRun:
    """An arm trained on these samples and solutions, by problem."""
    asked = [
        Prompt(id, f"question {id}", "1", solutions.get(id))
        for id in {*answers, *solutions, "none"}
    ]
    rows.write_part(root / "prompts" / "train", asked, Prompt)
    drawn, kept = [], []
    for id, texts in answers.items():
        for i, text in enumerate(texts):
            key = f"{id}-{i}"
            drawn.append(Candidate(key, id, i, text, (1,), (2,), Finish.STOP))
            kept.append(TrainRow(key, id, (1,), (2,), False))
    drawn.append(
        Candidate("left-out", next(iter(answers)), 9, "9 + 9 = 18", (1,), (2,), Finish.STOP)
    )
    kept += [TrainRow(f"{id}-ref", id, (1,), (2,), True) for id in solutions]
    kept.append(TrainRow("unlearnt", next(iter(answers)), (1,), (2,), False, weight=-1.0))
    rows.write_part(root / "sample", drawn, Candidate)
    rows.write_part(root / "select" / "train", kept, TrainRow)
    pool = Pool("", root / "sample", root / "score", {}, {})
    folders = {"select": root / "select", "prompts": root / "prompts"}
    return ArmRun("rft", 0, folders, {}, (), (), (pool,))


def test_figures_by_hand(tmp_path: Path) -> None:
    answers = {
        "a": ["3 + 4 = 7", "4 + 3 = 7", "2 * 4 = 8 8 - 1 = 7", "3 + 4 = 7 so it is seven"],
        "b": ["5 + 5 = 10"],
    }
    run = _run(tmp_path, answers, {"b": "10 / 1 = 10", "c": "1 + 1 = 2"})
    got = diversity.measure(run, KEYS["equations"])
    assert got["answers"] == 7
    assert got["covered"] == 3 / 4
    assert got["per_problem"] == pytest.approx(7 / 3)
    # a: 3 + 4 = 7 three times and another; b: a sample and its solution; c: one.
    assert got["ways"] == pytest.approx((2 + 2 + 1) / 3)
    entropy_a = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert got["entropy"] == pytest.approx((entropy_a + 1 + 0) / 3)
    by_text = diversity.measure(run, KEYS["text"])
    assert by_text["ways"] == pytest.approx((4 + 2 + 1) / 3)
    assert got["alike"] is not None and 0 < got["alike"] < 1


@pytest.mark.parametrize(
    ("texts", "alike"),
    [
        (["one two three four", "one two three four"], 1.0),
        (["one two three", "four five six"], 0.0),
        # two of three pieces: (a b c, b c d) against (b c d, c d e)
        (["a b c d", "b c d e"], 1 / 3),
        (["a"], None),
        ([], None),
        (["", ""], 1.0),
        (["one two three", "one two three", "four five six"], 1 / 3),
    ],
)
def test_likeness(texts: list[str], alike: float | None) -> None:
    assert diversity._alike(texts) == (None if alike is None else pytest.approx(alike))


def test_arms_seeds_and_gaps(tmp_path: Path) -> None:
    arms = ("base", "sft", "sft_matched", "random", "rft")
    job = build(tmp_path, arms, (0, 1), problems=60, eval_n=2, resamples=50, seen=30)
    runs = load(job)
    comparison = compare(job, runs)
    got = diversity.gather(settings.resolved(job), runs, comparison)
    told = {one["arm"]: one for one in got["arms"]}
    assert set(told) == set(arms), "an arm that trains nothing has a gap as well"
    assert "ways" not in told["base"]
    for arm in ("sft", "rft"):
        mine = [run for run in runs if run.arm == arm]
        each = [diversity.measure(run, KEYS["equations"]) for run in mine]
        assert told[arm]["ways"] == pytest.approx(np.mean([one["ways"] for one in each]))
        seen = np.mean([run.seen.accuracy_P.mean() for run in mine if run.seen])
        assert told[arm]["seen"]["value"] == pytest.approx(seen)
        held = comparison["pooled"][arm]["accuracy"]["value"]
        gap = told[arm]["gap"]
        assert gap["low"] < gap["value"] < gap["high"]
        assert gap["value"] == pytest.approx(seen - held)
    assert told["sft"]["ways"] == 1 and told["sft"]["alike"] is None
    assert told["sft"]["gain"]["difference"] == 0
    assert told["rft"]["gain"]["difference"] == find(comparison, "rft", "sft")["difference"]
    assert got["ways_and_gain"]["arms"] == got["ways_and_gap"]["arms"] == 4
    assert got["ways_and_gap"]["spearman"] < 0, "made so: what was varied is learnt by heart less"


def test_without_seen_problems_there_is_no_gap(tmp_path: Path) -> None:
    job = build(tmp_path, ("base", "sft", "rft"), problems=30, resamples=50)
    runs = load(job)
    got = diversity.gather(settings.resolved(job), runs, compare(job, runs))
    assert [one["arm"] for one in got["arms"]] == ["sft", "rft"]
    assert all(one["gap"] is None for one in got["arms"])
    assert got["ways_and_gap"] is None


def test_seeds_that_saw_other_problems_have_no_gap(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft",), (0, 1), problems=30, resamples=50, seen=10)
    runs = load(job)
    other = dataclasses.replace(runs[1], seen=dataclasses.replace(runs[1].seen, problems=runs[1].seen.problems[:5]))  # type: ignore  # fmt: skip
    assert diversity._gap(runs, 0.95) is not None
    assert diversity._gap([runs[0], other], 0.95) is None


def test_many_problems_are_sampled_alike_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: dict[str, Any] = {f"p{i}": [f"{i} + 1 = {i + 1}"] * (1 + i % 3) for i in range(50)}
    run = _run(tmp_path, answers, {})
    monkeypatch.setattr(diversity, "MOST_PROMPTS", 10)
    first = diversity.measure(run, KEYS["text"])
    assert first == diversity.measure(run, KEYS["text"])
    assert first["answers"] == sum(map(len, answers.values())), "counts are of all"
    assert first["ways"] == 1
