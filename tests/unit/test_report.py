"""The report on a synthetic run: its figures recomputed, its words exact, hostile text harmless."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rft import rows
from rft.report import compare, evidence, examples, figures, load, words
from rft.stages import report
from rft.types import ChoiceRow, ProblemRow, RftError, ScoreRow
from tests.synthetic import HOSTILE, build

ARMS = ("base", "sft", "sft_matched", "random", "rft")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements, their attributes and text; fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        return "".join(data for tag, data in self.texts if tag != "style")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Job of five arms at three seeds with four samples a problem; its report is written."""
    root = tmp_path_factory.mktemp("many")
    job = build(root, ARMS, (0, 1, 2), problems=80, eval_n=4, k=(1, 2, 4, 8), resamples=500)
    report.run([job])
    return job


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    job = build(tmp_path_factory.mktemp("one"), resamples=500)
    report.run([job])
    return job


def _comparison(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(job["folder"]) / "comparison.json").read_text())
    return found


def _page(job: dict[str, Any]) -> Page:
    return Page((Path(job["folder"]) / "report.html").read_text())


def _without(job: dict[str, Any], *arms: str) -> dict[str, Any]:
    return {**job, "arms": [a for a in job["arms"] if a["arm"] not in arms]}


# Figures


def test_accuracies_and_differences_are_those_of_the_rows(many: dict[str, Any]) -> None:
    got = _comparison(many)
    rates: dict[tuple[str, int], dict[str, float]] = {}
    for entry in many["arms"]:
        read = list(rows.read(Path(entry["eval"]), ProblemRow))
        rates[entry["arm"], entry["seed"]] = {p.prompt_id: p.correct / p.n for p in read}
    for arm in got["arms"]:
        mine = rates[arm["arm"], arm["seed"]]
        assert arm["accuracy"]["value"] == pytest.approx(np.mean(list(mine.values())))
        assert arm["pass_at_k"]["1"]["value"] == pytest.approx(arm["accuracy"]["value"])
        assert set(arm["pass_at_k"]) == {"1", "2", "4"}, "k = 8 is above n = 4"
        assert arm["maj_at_k"]["4"]["low"] <= arm["maj_at_k"]["4"]["value"]
    # The rows of the arms lie in different orders: only a join by id gives these.
    pair = compare.find(got, "rft", "sft")
    by_problem = [
        np.mean([rates["rft", s][i] - rates["sft", s][i] for s in (0, 1, 2)])
        for i in rates["sft", 0]
    ]
    assert pair["difference"] == pytest.approx(np.mean(by_problem))
    assert pair["wins"] == sum(d > 1e-9 for d in by_problem)
    assert pair["losses"] == sum(d < -1e-9 for d in by_problem)
    assert pair["wins"] + pair["losses"] + pair["ties"] == pair["problems"] == 80
    assert pair["low"] < pair["difference"] < pair["high"]
    assert pair["seed_spread"] == pytest.approx(np.std(pair["seed_differences"], ddof=1))
    listed = [(c["arm"], c["baseline"]) for c in got["comparisons"] if c["seed"] is None]
    assert listed == [
        *[(arm, "sft") for arm in ("base", "sft_matched", "random", "rft")],
        *[("rft", arm) for arm in ("base", "sft_matched", "random")],
    ]


def test_maj_is_left_out_where_the_scorer_reads_no_answers(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft",), eval_n=4, k=(1, 2), resamples=50)
    run = load.load(job)[0]
    blind = tuple(
        ProblemRow(p.prompt_id, p.n, p.correct, 0, 0, ("",) * p.n, p.hits, p.tokens)
        for p in run.problems
    )
    blind_run = load.ArmRun("sft", 0, run.folders, run.manifests, blind, run.losses)
    assert compare.compare(job, [run])["arms"][0]["maj_at_k"]
    got = compare.compare(job, [blind_run])["arms"][0]
    assert not got["maj_at_k"]
    assert set(got["pass_at_k"]) == {"1", "2"}


@pytest.mark.parametrize(
    ("left_out", "headline"),
    [((), "rft"), (("rft",), "random"), (("rft", "random"), "sft_matched")],
)
def test_headline_goes_by_name_and_place(
    many: dict[str, Any], left_out: tuple[str, ...], headline: str
) -> None:
    runs = load.load(_without(many, *left_out))
    assert compare.headline_arm(runs, "sft") == headline


def test_different_problems_are_refused(tmp_path: Path) -> None:
    job = build(tmp_path / "a", ("sft", "rft"), problems=30, resamples=50)
    other = build(tmp_path / "b", ("sft", "rft"), problems=31, resamples=50)
    mixed = {**job, "arms": [job["arms"][0], other["arms"][1]]}
    with pytest.raises(RftError, match=r"arm rft \(seed 0\).*different problems.*1 only"):
        report.run([mixed])
    assert not Path(job["folder"]).exists()


def test_no_arm_and_no_row_are_refused(one: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RftError, match="no arm"):
        report.run([{**one, "arms": []}])
    rows.write_part(tmp_path, [], ProblemRow)
    with pytest.raises(RftError, match="no evaluated problem of arm base"):
        load.load({**one, "arms": [{**one["arms"][0], "eval": str(tmp_path)}]})


def test_torn_and_foreign_lines_of_a_loss_file_are_skipped(
    one: dict[str, Any], tmp_path: Path
) -> None:
    entry = next(a for a in one["arms"] if a["arm"] == "sft")
    shutil.copytree(entry["train"], tmp_path / "train")
    file = tmp_path / "train" / "metrics.jsonl"
    file.write_text('{"step": 2, "loss": 1.5}\n{"note": 1}\n{"step": 1, "loss": 2}\n{"step": 3, "l')
    run = load.load({"arms": [{**entry, "train": str(tmp_path / "train")}]})[0]
    assert run.losses == ((1, 2.0), (2, 1.5))


# Words


def _pair(difference: float, low: float, high: float, p: float, seeds: int = 1) -> dict[str, Any]:
    pair = {
        "arm": "rft", "baseline": "sft", "seed": None, "seeds": list(range(seeds)),
        "problems": 1000, "difference": difference, "low": low, "high": high, "p": p,
    }  # fmt: skip
    headline = {"arm": "rft", "baseline": "sft"}
    return {"level": 0.95, "headline": headline, "comparisons": [pair]}


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (
            _pair(0.041, 0.019, 0.063, 0.0004),
            "rft is better than sft by 4.1 points (95% interval 1.9 to 6.3, p = 0.0004) on the "
            "same 1,000 problems.",
        ),
        (
            _pair(-0.041, -0.063, -0.019, 0.00001, seeds=3),
            "rft is worse than sft by 4.1 points (95% interval 1.9 to 6.3, p < 0.0001) on the "
            "same 1,000 problems, averaged over 3 seeds.",
        ),
        (
            _pair(0.011, -0.012, 0.034, 0.37),
            "No difference between rft and sft can be shown on the same 1,000 problems: the "
            "difference is +1.1 points (95% interval -1.2 to +3.4, p = 0.37).",
        ),
        (
            _pair(-0.0001, -0.01, 0.01, 1.0),
            "No difference between rft and sft can be shown on the same 1,000 problems: the "
            "difference is 0.0 points (95% interval -1.0 to +1.0, p = 1).",
        ),
    ],
)
def test_sentence(pair: dict[str, Any], text: str) -> None:
    assert words.sentence(pair, "rft", "sft") == text


@pytest.mark.parametrize(
    ("low", "high", "p", "shown"),
    [
        (0.01, 0.05, 0.03, True),
        (-0.05, -0.01, 0.05, True),
        (0.001, 0.05, 0.06, False),
        (-0.001, 0.05, 0.04, False),
        (0.0, 0.05, 0.01, False),
    ],
)
def test_interval_and_test_must_agree(low: float, high: float, p: float, shown: bool) -> None:
    assert compare.is_shown({"low": low, "high": high, "p": p}, 0.95) is shown


def test_a_control_is_one_of_several_comparisons() -> None:
    comparison = _pair(0.041, 0.019, 0.063, 0.02)
    comparison["headline"]["baseline"] = "base"
    comparison["comparisons"][0] |= {"family": 3, "p_holm": 0.06}
    said = words.sentence(comparison, "rft", "sft")
    assert said.startswith("No difference between rft and sft can be shown")
    assert said.endswith("interval +1.9 to +6.3, p = 0.02, adjusted for 3 comparisons p = 0.06).")


def _said(job: dict[str, Any]) -> str:
    got = compare.compare(job, load.load(job))
    got["answer"] = words.answer(got)
    assert words.markdown(got) and words.terminal(got)
    return " ".join([got["answer"], *words.notes(got)])


def _rows(run: load.ArmRun, correct: int) -> load.ArmRun:
    """The same run with so many samples of each problem correct."""
    problems = tuple(
        dataclasses.replace(
            p,
            correct=correct,
            hits=tuple(i < correct for i in range(p.n)),
            answers=("7",) * correct + ("3",) * (p.n - correct),
        )
        for p in run.problems
    )
    return dataclasses.replace(run, problems=problems)


def test_several_seeds_are_told_of_with_what_others_would_give(many: dict[str, Any]) -> None:
    got = compare.compare(many, load.load(many))
    pair = compare.find(got, "rft", "sft")
    over, able = pair["over_seeds"], pair["power"]
    assert over["value"] == pytest.approx(pair["difference"])
    assert over["low"] <= pair["low"] + 0.01
    assert 1 <= over["df"] <= 2 * 79
    assert sum(able["shares"].values()) == pytest.approx(1)
    assert set(able["shares"]) == {"problem", "seed", "interaction", "sample"}
    assert pair["bootstrap"]["low"] == pytest.approx(pair["low"], abs=0.02)
    said = _said(many)
    for text in (
        "Counting what other training seeds would give as well: rft minus sft is +",
        "so few seeds make it rough",
        "In 80 of 100 such experiments a true difference of ",
        "Where the variance of rft minus sft comes from: problems ",
        "Adjusted for all 4 (Holm): base ",
    ):
        assert text in said


def test_arms_are_adjusted_among_themselves(many: dict[str, Any]) -> None:
    pooled = [c for c in _comparison(many)["comparisons"] if c["seed"] is None]
    assert [c["family"] for c in pooled] == [4] * 4 + [3] * 3
    for c in pooled:
        assert c["p"] <= c["p_holm"] <= min(1.0, 4 * c["p"]) + 1e-12
        assert c["joint_low"] < c["low"] < c["high"] < c["joint_high"]
    assert all("p_holm" not in c for c in _comparison(many)["comparisons"] if c["seed"] is not None)


def test_one_seed_is_told_in_words(one: dict[str, Any]) -> None:
    pair = compare.find(compare.compare(one, load.load(one)), "rft", "sft")
    assert pair["over_seeds"] is None
    assert pair["power"]["variance"]["seed"] is None
    said = _said(one)
    assert (
        "with one seed, this report cannot say how much another training run would differ" in said
    )
    assert "Counting what other training seeds" not in said


@pytest.mark.parametrize("correct", [0, 1])
def test_all_or_none_correct_is_told_in_words(one: dict[str, Any], correct: int) -> None:
    runs = [_rows(run, correct) for run in load.load(one)]
    got = compare.compare({**one, "margin": 0.1}, runs)
    pair = compare.find(got, "rft", "sft")
    assert (pair["p"], pair["p_exact"], pair["power"]) == (1.0, 1.0, None)
    assert pair["low"] < 0 < pair["high"]
    got["answer"] = words.answer(got)
    evidence.gather(one, runs, got)
    assert got["slices"]["difficulty"] is None, "no problem is harder than another"
    assert {c["state"] for c in got["claims"] if c["arm"]} == {"open"}
    assert evidence.parts(got)
    assert got["answer"].startswith("No difference between rft and sft can be shown")
    said = words.markdown(got) + words.terminal(got)
    assert (
        "rft minus sft is 0.0 points on every problem, so what this experiment could have" in said
    )


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_one_problem_is_told_in_words(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    job = build(tmp_path, ("sft", "rft"), seeds, problems=1, resamples=50, margin=0.1)
    said = _said(job)
    assert "One problem says nothing of others: no variance can be told." in said
    assert "rft is not shown to be no worse than sft by 10.0 points or more" in said
    report.run([job])


def test_a_margin_is_answered(tmp_path: Path) -> None:
    job = build(tmp_path, ("base", "sft", "rft"), problems=200, eval_n=4, resamples=50, margin=0.05)
    said = _said(job)
    assert re.search(
        r"rft is shown to be no worse than sft by 5\.0 points or more \(p [=<] [\d.e-]+\), and not "
        r"to be equivalent within them \(p = 1\)\.",
        said,
    )
    assert (
        compare.compare({**job, "margin": None}, load.load(job))["comparisons"][0]["equivalence"]
        is None
    )


def test_best_of_k_by_each_scorer_that_gives_numbers(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft", "rft"), eval_n=4, k=(1, 2, 4), scorers=("answer", "reward_model"))
    arms = compare.compare(job, load.load(job))["arms"]
    for arm in arms:
        assert set(arm["best_of_k"]) == {"reward_model"}
        best = {k: arm["best_of_k"]["reward_model"][k]["value"] for k in ("1", "2", "4")}
        assert best["1"] == pytest.approx(arm["accuracy"]["value"])
        # Its numbers put each right sample above each wrong one.
        for k, value in best.items():
            assert value == pytest.approx(arm["pass_at_k"][k]["value"])
    plain = build(tmp_path / "plain", ("sft",), eval_n=4)
    assert compare.compare(plain, load.load(plain))["arms"][0]["best_of_k"] == {}


def test_a_scorer_that_was_asked_about_some_samples_has_no_best_of_k(tmp_path: Path) -> None:
    job = build(tmp_path, ("sft",), eval_n=4, k=(1, 2), scorers=("answer", "reward_model"))
    folder = Path(job["arms"][0]["eval_score"])
    told = list(rows.read(folder, ScoreRow))
    told = [
        dataclasses.replace(r, each=json.dumps([json.loads(r.each)[0], None]), value=None)
        if r.verdict == "wrong"
        else r
        for r in told
    ]
    rows.clear(folder)
    rows.write_part(folder, told, ScoreRow)
    assert load.load(job)[0].values == {}


def test_all_outputs_give_one_answer(
    many: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    answer = _comparison(many)["answer"]
    assert re.match(r"rft is better than sft by [\d.]+ points .*averaged over 3 seeds\.$", answer)
    assert f"**{answer}**" in (Path(many["folder"]) / "report.md").read_text()
    assert _page(many).text.count(answer) == 1
    report.run([many])
    said = capfd.readouterr().err
    assert answer in " ".join(said.split())
    assert "\x1b" not in said, "no colour where it is not a terminal"
    assert max(map(len, said.splitlines()[:-1])) <= 100


def test_without_a_baseline_the_answer_is_an_accuracy(one: dict[str, Any]) -> None:
    job = _without(one, "sft", "base")
    got = compare.compare(job, load.load(job))
    assert got["comparisons"] == []
    assert re.fullmatch(
        r"rft solves [\d.]+% of 60 problems \(95% interval .*%\)\.", words.answer(got)
    )
    got["answer"] = words.answer(got)
    assert "points vs" not in words.markdown(got) + words.terminal(got)


@pytest.mark.parametrize("arms", [("sft",), ("base",), ("rft",), ("sft", "sft_matched")])
def test_every_mix_of_arms_gives_a_page(tmp_path: Path, arms: tuple[str, ...]) -> None:
    job = build(tmp_path, arms, problems=20, resamples=50)
    report.run([job])
    assert _page(job).tags["h1"] == 1


def test_headline_is_shown_for_every_seed(one: dict[str, Any], many: dict[str, Any]) -> None:
    got = compare.compare(many, load.load(many))
    got["answer"] = words.answer(got)
    lines = words.by_seed(got)
    assert len(lines) == len({entry["seed"] for entry in many["arms"]}) > 1
    for shown in (words.terminal(got), words.markdown(got)):
        assert [line in shown for line in lines] == [True] * len(lines)
    # In Markdown a list right under a table, without a blank line, is taken for one of its rows.
    assert f"\n\n- {lines[0]}\n" in words.markdown(got)
    assert words.by_seed(compare.compare(one, load.load(one))) == []
    assert "\n\n\n" not in words.markdown(got)


def test_markdown_tables_are_square(many: dict[str, Any]) -> None:
    lines = (Path(many["folder"]) / "report.md").read_text().splitlines()
    tables = [
        list(block)
        for is_row, block in itertools.groupby(lines, key=lambda line: line.startswith("|"))
        if is_row
    ]
    assert len(tables[0]) == 2 + len(ARMS)
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1, table[0]
    assert "<b>" not in lines[0]


# The page


def test_hostile_text_stays_text(many: dict[str, Any]) -> None:
    page = _page(many)
    for tag in ("script", "img", "iframe", "object", "form", "a", "base"):
        assert page.tags[tag] == 0, tag
    assert page.tags["h1"] == 1
    assert not [a for a in page.attributes if a[1].startswith("on")]
    links = [a for a in page.attributes if a[1] in ("src", "href", "srcset", "action", "data")]
    assert links == [("link", "href", "data:,")]
    # Shown, letter by letter: what no one sees could not have been tested.
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2], "{{ 7 * 7 }} {% raw %}"):
        assert text in page.text
    assert "synthetic <b>run</b>" in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    policy = [v for _, name, v in page.attributes if name == "content" and "default-src" in v]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_style_asks_for_nothing(one: dict[str, Any]) -> None:
    style = "".join(data for tag, data in _page(one).texts if tag == "style")
    assert "prefers-color-scheme: dark" in style
    assert not re.search(r"url\(|@import|https?:", style)


def test_figures_are_labelled(many: dict[str, Any]) -> None:
    source = (Path(many["folder"]) / "report.html").read_text()
    for kind in ("whisker", "ruler", "plot", "bars"):
        heads = re.findall(rf'<svg class="{kind}[^>]*>', source)
        assert heads, kind
        assert all('role="img"' in h and re.search(r'aria-label="[^"]{8,}', h) for h in heads)
    for text in ("training loss (nats per token)", "optimizer step", "pass@k (%)",
                 "accuracy on held-out problems (%)", "number of problems", "difference in accuracy (percentage points)"):  # fmt: skip
        assert text in source


def test_a_second_writing_is_the_same_page(one: dict[str, Any]) -> None:
    def written() -> str:
        return re.sub(r"Written [\d: -]+", "", (Path(one["folder"]) / "report.html").read_text())

    before = written()
    report.run([one])
    assert written() == before


def test_examples_are_spread_over_the_reasons(one: dict[str, Any]) -> None:
    run = next(r for r in load.load(one) if r.arm == "rft")
    shown = examples.candidates(run)
    pool = rows.ids(run.pools[0].sample)
    choices = [c for c in rows.read(run.folders["select"] / "choices", ChoiceRow) if c.id in pool]
    counts = Counter(one["reason"] for one in shown)
    assert len(shown) == 20
    assert set(counts) == {c.reason or "" for c in choices}
    have = Counter(c.reason or "" for c in choices)
    # Evenly, as far as there are enough of each.
    full = [n for reason, n in counts.items() if n < have[reason]]
    assert max(full) - min(full) <= 1
    for example in shown:
        assert example["kept"] == (example["reason"] == "")
        assert not example["kept"] or example["verdict"] == "correct"
    assert shown != examples.candidates(run, seed=1)


def test_changed_problems_show_what_changed(many: dict[str, Any]) -> None:
    runs = {r.arm: r for r in load.load(many) if r.seed == 0}
    got = examples.changed(runs["rft"], runs["sft"])
    pair = next(
        c for c in _comparison(many)["comparisons"]
        if (c["arm"], c["baseline"], c["seed"]) == ("rft", "sft", 0)
    )  # fmt: skip
    assert (got["fixed_count"], got["broken_count"]) == (pair["wins"], pair["losses"])
    assert len(got["fixed"]) == len(got["broken"]) == 5
    verdicts = {
        (arm, row.prompt_id, row.verdict)
        for arm in ("rft", "sft")
        for row in rows.read(runs[arm].folders["eval_score"], ScoreRow)
    }
    for name, better in (("fixed", "rft"), ("broken", "sft"), ("still", None)):
        for example in got[name]:
            for answer in example["answers"]:
                assert (answer["arm"], example["id"], answer["verdict"]) in verdicts
                assert (answer["verdict"] == "correct") == (answer["arm"] == better)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("1\u00a0000\u2009m\u3000é 漢", "1\u00a0000\u2009m\u3000é 漢"),
        ("\x1b[31m\x00\u202e\u2066", "\ufffd[31m\ufffd\ufffd\ufffd"),
        ("x" * 4000, "x" * 4000),
        ("x" * 5500, "x" * 4000 + "\n[1,500 more characters]"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert examples.clean(text) == shown


# Drawing


@pytest.mark.parametrize(
    ("values", "start_at", "ends"),
    [
        ([35.7, 62.8], 0.0, (0, 80)),
        ([-41.7, 62.8], 0.0, (-50, 75)),
        ([0.0], 0.0, (0, 1)),
        ([3.0, 3.0], None, (2.5, 4.0)),
        ([1e-6, 3e-6], None, (1e-6, 3e-6)),
    ],
)
def test_axis_holds_its_values(
    values: list[float], start_at: float | None, ends: tuple[float, float]
) -> None:
    got = figures.axis(values, 5, start_at)
    assert got.low <= min(values)
    assert got.high >= max(values)
    assert 2 <= len(got.ticks) <= 9
    steps = np.diff(got.ticks)
    assert steps == pytest.approx(np.full(len(steps), steps[0]))
    assert (got.low, got.high) == pytest.approx(ends)


@pytest.mark.parametrize("highest", [0, 1, 4, 8, 9, 16, 100])
def test_histogram_loses_nobody(highest: int) -> None:
    values = list(range(highest + 1)) * 3
    bins = figures.histogram(values, highest)
    assert sum(count for _, count in bins) == len(values)
    assert bins[0] == ("0", 3)
    assert len(bins) <= 9


def test_thinned_curves_keep_their_mean() -> None:
    points = [(float(i), math.sin(i) + i) for i in range(1600)]
    got = figures.thin(points)
    assert len(got) == 160
    assert np.mean([y for _, y in got]) == pytest.approx(np.mean([y for _, y in points]))
    assert figures.thin(points[:160]) == points[:160]


def test_text_in_figures_is_escaped() -> None:
    name = "<script>x</script>\" onload='y"
    drawn = [
        figures.whisker(figures.axis([0, 1]), 0, 0.5, 1, [0.4], 1, name),
        figures.ruler(figures.axis([0, 1]), name),
        figures.curves([figures.Series(name, 1, [(1, 2), (2, 3)])], name, name, name),
        figures.bars([(name, 3)], name, name, name, 2),
    ]
    for svg in drawn:
        root = ET.fromstring(f"<div>{svg}</div>")
        kinds = {element.tag for element in root.iter()}
        assert kinds <= {"svg", "div", "line", "circle", "text", "polyline", "rect", "g"}
        assert not [a for element in root.iter() for a in element.attrib if a.startswith("on")]


def test_a_pool_tells_only_the_pass_at_k_that_no_verdict_has_touched() -> None:
    hits = [[True, False, False, True], [False] * 4, [True] * 4]
    even = words.pool_pass_at_k(hits, {"shows_answer": False})
    assert even.startswith("pass@1 50.0% (") and "pass@4 66.7% (" in even
    adapted = words.pool_pass_at_k([one + [True] * 5 for one in hits], {"allocation": {"first": 4}})
    assert adapted.startswith(even.removesuffix(".")) and "no larger k can be told" in adapted
    for manifest in ({"allocation": {"first": 0}}, {"shows_answer": True}):
        assert words.pool_pass_at_k(hits, manifest).startswith("No pass@k can be told")


def test_number_formats_are_paired_with_the_arms_first(tmp_path: Path) -> None:
    job = build(tmp_path, seeds=(0, 1), eval_n=2, resamples=300, dtypes=("float16", "int8"))
    report.run([job])
    runs = load.load(job)
    told = _comparison(job)["formats"]
    assert [(one["arm"], one["format"]) for one in told] == [
        (arm, name) for arm in ("base", "sft", "rft") for name in ("auto", "fp16", "int8")
    ]
    for i, one in enumerate(told):
        mine = [run.formats[i % 3] for run in runs if run.arm == one["arm"]]
        first = [run.formats[0] for run in runs if run.arm == one["arm"]]
        means = [float(np.mean([run.accuracy_P for run in some])) for some in (mine, first)]
        assert one["accuracy"]["value"] == pytest.approx(means[0])
        if i % 3 == 0:
            # What no engine has told is not made up.
            assert one["pair"] is one["weights_gb"] is one["peak_gb"] is one["tokens_per_s"] is None
            continue
        pair = one["pair"]
        assert (pair["arm"], pair["baseline"]) == (one["format"], "auto")
        assert pair["difference"] == pytest.approx(means[0] - means[1])
        assert pair["low"] <= pair["difference"] <= pair["high"]
        assert pair["problems"] == 60 and pair["seeds"] == [0, 1]
        assert one["weights_gb"] == 0.5 / (i % 3) and one["peak_gb"] == 2.5
        assert one["tokens_per_s"] == 100 * (i % 3) + 0.5
    cells = words.format_cells(_comparison(job))
    assert all(len(row) == len(cells[0]) for row in cells[1])
    text = (Path(job["folder"]) / "report.md").read_text()
    page = _page(job).text
    for row in cells[1]:
        assert "| " + " | ".join(row) + " |" in text
        assert row[1] in page and row[-1] in page
    for shown in (text, page, words.terminal(_comparison(job))):
        assert "all through transformers" in " ".join(shown.split())


def test_a_run_in_one_format_has_no_table_of_formats(one: dict[str, Any]) -> None:
    assert _comparison(one)["formats"] == []
    assert "Number formats of inference" not in _page(one).text


def test_formats_must_answer_the_same_problems(tmp_path: Path) -> None:
    job = build(tmp_path, arms=("base",), problems=8, dtypes=("float16",))
    other = build(tmp_path / "other", arms=("base",), problems=6)
    job["arms"][0]["formats"][1]["eval"] = other["arms"][0]["eval"]
    with pytest.raises(RftError, match="different problems"):
        load.load(job)
