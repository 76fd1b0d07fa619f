"""Groups of problems: nobody lost, difficulty not told by who is compared, figures those of the rows."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rft import rows
from rft.report import slices
from rft.report.compare import compare
from rft.report.load import load
from rft.types import Prompt
from tests.synthetic import build

ARMS = ("base", "sft", "sft_matched", "rft")


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1]),
        ([0.4, 0.1, 0.3, 0.2, 0.5, 0.6, 0.7, 0.8], [2, 2, 2, 2]),
        # Equal values stay together, whatever the sizes.
        ([0.0] * 6 + [1.0] * 2, [6, 2]),
        ([0.0] * 9 + [0.5], [9, 1]),
        ([0.3] * 5, [5]),
    ],
)
def test_quantiles_part_no_equals(values: list[float], sizes: list[int]) -> None:
    got = slices.quantiles(np.array(values), 4)
    assert [len(group) for group in got] == sizes
    assert sorted(i for group in got for i in group) == list(range(len(values)))
    ends = [(min(values[i] for i in g), max(values[i] for i in g)) for g in got]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build(tmp_path_factory.mktemp("s"), ARMS, (0, 1), problems=90, eval_n=2, resamples=50)


def test_groups_are_those_of_the_rows(job: dict[str, Any]) -> None:
    runs = load(job)
    got = compare(job, runs)
    found = slices.gather(runs, got)
    by_arm = {arm: slices.mean_P(runs, arm) for arm in ARMS}
    kinds = {p.id: p.kind for p in rows.read(Path(job["arms"][0]["prompts"]) / "eval", Prompt)}
    names = np.array([kinds[p.prompt_id] for p in runs[0].problems])
    assert {one["name"] for one in found["kind"]["groups"]} == set(kinds.values())
    for one in found["kind"]["groups"]:
        mine = names == one["name"]
        assert one["problems"] == mine.sum()
        assert one["difference"]["value"] == pytest.approx(
            (by_arm["rft"] - by_arm["sft"])[mine].mean()
        )
        assert one["arms"]["base"]["value"] == pytest.approx(by_arm["base"][mine].mean())
    hard = found["difficulty"]
    assert hard["told_by"] == ["base", "sft_matched"] and not hard["compared_arms"]
    assert sum(one["problems"] for one in hard["groups"]) == 90
    rates = [one["rate"] for one in hard["groups"]]
    assert rates == sorted(rates)
    # Harder for the others is harder for these.
    assert hard["groups"][0]["arms"]["rft"]["value"] < hard["groups"][-1]["arms"]["rft"]["value"]


def test_two_arms_sort_problems_themselves_and_it_is_said(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft", "rft"), problems=40, eval_n=2, resamples=50)
    runs = load(job)
    found = slices.gather(runs, compare(job, runs))["difficulty"]
    assert found["told_by"] == ["rft", "sft"] and found["compared_arms"]


def test_no_labels_and_no_spread_give_no_groups(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft", "rft", "base"), problems=20, resamples=50)
    held = Path(job["arms"][0]["prompts"]) / "eval"
    plain = [Prompt(p.id, p.question, p.answer) for p in rows.read(held, Prompt)]
    rows.clear(held)
    rows.write_part(held, plain, Prompt)
    runs = load(job)
    assert slices.gather(runs, compare(job, runs))["kind"] is None


def test_many_kinds_share_a_row(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft", "rft"), problems=60, resamples=50)
    held = Path(job["arms"][0]["prompts"]) / "eval"
    many = [
        Prompt(p.id, p.question, p.answer, kind=f"kind {i % 20}" if i % 3 else None)
        for i, p in enumerate(rows.read(held, Prompt))
    ]
    rows.clear(held)
    rows.write_part(held, many, Prompt)
    runs = load(job)
    groups = slices.gather(runs, compare(job, runs))["kind"]["groups"]
    assert len(groups) == slices.MOST_KINDS
    assert sum(one["problems"] for one in groups) == 60
    assert {"(other)", "(no label)"} <= {one["name"] for one in groups}


def test_a_difference_that_varies_is_told_from_one_that_does_not() -> None:
    rng = np.random.default_rng(1)
    names = np.array(["a", "b"] * 200)
    same = rng.choice([-1.0, 0.0, 1.0], 400)
    assert slices._vary_p(same, names) > 0.05  # type: ignore[operator]
    assert slices._vary_p(np.where(names == "a", same + 0.5, same), names) < 0.01  # type: ignore[operator]
    # Under no difference about one in twenty is below 5%.
    low = sum(
        slices._vary_p(rng.choice([-1.0, 0.0, 1.0], 60), names[:60]) <= 0.05  # type: ignore[operator]
        for _ in range(100)
    )
    assert low <= 13
