"""Selectors one by one and in a chain: nothing is lost, and chance and order play no part."""

import dataclasses
import math
import random as chance
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rft
from rft import rows
from rft.chat import Renderer
from rft.config import Chat, Model
from rft.equations import equations
from rft.rundir import StageDir
from rft.selectors.cap import cap
from rft.selectors.correct import correct
from rft.selectors.distinct_equations import distinct_equations
from rft.selectors.random import random
from rft.stages import select
from rft.types import (
    Candidate,
    Choice,
    ChoiceRow,
    Finish,
    Group,
    Prompt,
    RftError,
    Score,
    Scored,
    ScoreRow,
    TrainRow,
    Verdict,
)


def row(
    id: str, text: str = "", verdict: str = "correct", reason: str | None = None, ref: bool = False
) -> Scored:
    prompt_id, _, index = id.partition(".")
    finish = Finish.REFERENCE if ref else Finish.STOP
    candidate = Candidate(id, prompt_id, int(index), text, (), (), finish)
    return Scored(candidate, Score(Verdict(verdict), reason))


def groups(*members: Scored) -> list[Group]:
    by_prompt: dict[str, list[Scored]] = {}
    for member in members:
        by_prompt.setdefault(member.candidate.prompt_id, []).append(member)
    return [Group(Prompt(p, f"{p}?"), tuple(m)) for p, m in by_prompt.items()]


def reasons(choices: Iterable[Choice]) -> dict[str, str | None]:
    return {row.candidate.id: reason for row, reason in choices}


def fates(selectors: list[Any], given: Iterable[Group]) -> dict[str, str | None]:
    told: list[ChoiceRow] = []
    select.apply(selectors, given, told.append)
    assert len({choice.id for choice in told}) == len(told)
    return {choice.id: choice.reason for choice in told}


def test_correct_drops_under_the_reason() -> None:
    given = groups(
        row("a.0"),
        row("a.1", verdict="wrong"),
        row("a.2", verdict="wrong", reason="unit"),
        row("b.0", verdict="unknown", reason="truncated"),
        row("b.1", verdict="unknown"),
        row("b.2", verdict="wrong", ref=True),
        row("c.0", verdict="unknown", reason="no_gold", ref=True),
        row("c.1", verdict="unknown", reason="no_gold"),
    )
    assert reasons(correct(given)) == {
        "a.0": None,
        "a.1": "wrong",
        "a.2": "unit",
        "b.0": "truncated",
        "b.1": "unknown",
        "b.2": "wrong",
        "c.0": None,
        "c.1": "no_gold",
    }


def test_cap_counts_samples_for_each_prompt_and_no_references() -> None:
    given = groups(row("a.0", ref=True), *(row(f"a.{i}") for i in (1, 2, 3)), row("b.0"))
    assert reasons(cap(given, k=2)) == {
        "a.0": None,
        "a.1": None,
        "a.2": None,
        "a.3": "over_cap",
        "b.0": None,
    }


SAME = [
    ("3 + 4 = 7", "4 + 3 = 7"),
    ("3 + 4 = 7", "3+4=7"),
    ("3 * 4 = 12", "3 x 4 = 12"),
    ("3 * 4 = 12", "3 \u00d7 4 = 12"),
    ("8 - 3 = 5", "8 \u2212 3 = 5"),
    ("8 / 2 = 4", "8 \u00f7 2 = 4"),
    ("$1,000 + $5 = $1,005", "1000 + 5 = 1005"),
    ("3 + 4 = 7.0", "3.0 + 4 = 7"),
    ("1 + (2 + 3) = 6", "(1 + 2) + 3 = 6"),
    ("3 + 4 = 7\n7 * 2 = 14", "7 * 2 = 14, because 3 + 4 = 7"),
    ("He has 3 + 4 = 7.", "So, 3 + 4 = 7 apples"),
    ("48/2 = <<48/2=24>>24", "48 / 2 = 24"),
    ("1. 3 + 4 = 7", "3 + 4 = 7"),
    ("2) 3 + 4 = 7", "3 + 4 = 7"),
    ("There are 5. 3 + 4 = 7", "3 + 4 = 7"),
    ("no equation", "no   equation"),
]
DISTINCT = [
    ("3 + 4 = 7", "3 + 4 = 8"),
    ("3 + 4 = 7", "3 * 4 = 12"),
    ("8 - 3 = 5", "3 - 8 = 5"),
    ("8 / 2 = 4", "2 / 8 = 4"),
    ("2 * (3 + 4) = 14", "2 * 3 + 4 = 14"),
    ("8 - (3 - 1) = 6", "8 - 3 - 1 = 6"),
    ("3 + 4 = 7\n7 * 2 = 14", "3 + 4 = 7"),
    ("3 + 4 = 7", "34 = 7"),
    ("one way", "another way"),
]


@pytest.mark.parametrize("one, other", SAME)
def test_same_equations(one: str, other: str) -> None:
    got = reasons(distinct_equations(groups(row("a.0", one), row("a.1", other), row("b.0", one))))
    assert got == {"a.0": None, "a.1": "same_equations", "b.0": None}


@pytest.mark.parametrize("one, other", DISTINCT)
def test_distinct_equations(one: str, other: str) -> None:
    got = reasons(distinct_equations(groups(row("a.0", one), row("a.1", other))))
    assert got == {"a.0": None, "a.1": None}


def test_order_of_operands_can_count() -> None:
    given = groups(row("a.0", "3 + 4 = 7"), row("a.1", "4 + 3 = 7"), row("a.2", "3+4=7"))
    assert list(reasons(distinct_equations(given, commutative=False)).values()) == [
        None,
        None,
        "same_equations",
    ]


def test_sample_that_repeats_the_reference_is_dropped() -> None:
    given = groups(row("a.0", "3 + 4 = 7", ref=True), row("a.1", "4 + 3 = 7"))
    assert reasons(distinct_equations(given)) == {"a.0": None, "a.1": "same_equations"}


@pytest.mark.parametrize(
    "text",
    [
        "(" * 199 + "1=1",
        "1+" * 100_000 + "1=1",
        "9" * 100_000 + "=1",
        "1=" + "9" * 100_000,
        "- " * 99 + "1=1",
    ],
)
def test_hostile_text_costs_little(text: str) -> None:
    begun = time.monotonic()
    equations(text)
    assert time.monotonic() - begun < 2


def many() -> list[Group]:
    members = [row(f"p{i}.0", ref=True) for i in range(5)]
    members += [row(f"p{i % 5}.{i}", verdict="wrong" if i % 2 else "correct") for i in range(5, 45)]
    return groups(*members)


def test_random_has_exactly_its_rows_and_the_references() -> None:
    for count in (1, 7, 40):
        got = reasons(random(many(), rows=count))
        kept = [i for i, reason in got.items() if reason is None]
        assert len(kept) == count + 5
        assert all(f"p{i}.0" in kept for i in range(5))
        assert len(got) == 45 and set(got.values()) <= {None, "not_drawn"}


def test_random_follows_its_seed_and_not_the_order() -> None:
    first = reasons(random(many(), rows=10))
    shuffled = [Group(g.prompt, tuple(reversed(g.rows))) for g in many()]
    chance.Random(1).shuffle(shuffled)
    assert reasons(random(shuffled, rows=10)) == first
    assert reasons(random(many(), rows=10, seed=1)) != first
    # Not the verdict's doing: both kinds are drawn.
    kept = {
        i for s in range(20) for i, r in reasons(random(many(), rows=10, seed=s)).items() if not r
    }
    assert len(kept) > 40


def test_random_refuses_to_be_smaller_than_what_it_is_matched_with() -> None:
    with pytest.raises(ValueError, match="41 rows are asked for, and there are 40"):
        list(random(many(), rows=41))


def test_chain_passes_on_what_is_kept() -> None:
    given = groups(
        row("a.0", "3 + 4 = 7", ref=True),
        row("a.1", "4 + 3 = 7"),
        row("a.2", "2 + 5 = 7"),
        row("a.3", "2 + 5 = 8", verdict="wrong"),
        row("a.4", "1 + 6 = 7"),
        row("b.0", "9", verdict="unknown", reason="truncated"),
    )
    seen: list[list[str]] = []

    def spy(groups: Iterable[Group]) -> Iterator[Choice]:
        for group in groups:
            seen.append([m.candidate.id for m in group.rows])
            yield from ((m, None) for m in group.rows)

    got = fates([correct, distinct_equations, spy, lambda g: cap(g, k=1)], given)
    assert got == {
        "a.0": None,
        "a.1": "same_equations",
        "a.2": None,
        "a.3": "wrong",
        "a.4": "over_cap",
        "b.0": "truncated",
    }
    assert seen == [["a.0", "a.2", "a.4"]]


def backwards(groups: Iterable[Group]) -> Iterator[Choice]:
    """As a selector that ranks over all prompts may give them back."""
    every = [m for group in groups for m in group.rows]
    yield from (
        (m, None) for m in sorted(every, key=lambda m: (-m.candidate.index, m.candidate.id))
    )


def test_order_that_a_selector_gives_rows_back_in_changes_nothing() -> None:
    given = groups(*(row(f"{p}.{i}") for p in "ab" for i in range(3)))
    after = fates([backwards, lambda g: cap(g, k=2)], given)
    assert after == reasons(cap(given, k=2))


class Many:
    """Groups made anew each time that they are gone through, as from disk: 60 MB of text."""

    def __iter__(self) -> Iterator[Group]:
        for p in range(1500):
            yield from groups(*(row(f"p{p}.{i}", f"{p}.{i}" + "x" * 10_000) for i in range(4)))


@pytest.mark.parametrize("before", [[], [correct]])
def test_going_over_all_prompts_twice_holds_no_text(before: list[Any]) -> None:
    tracemalloc.start()
    try:
        chain = [*before, lambda g: random(g, rows=100)]
        told: list[ChoiceRow] = []
        select.apply(chain, Many(), told.append)
        kept = sum(choice.reason is None for choice in told)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept == 100
    assert peak < 10 << 20


@pytest.mark.parametrize("wrong", ["a.0", None, ("a.0", None), (1, 2, 3)])
def test_selector_that_yields_something_else(wrong: Any) -> None:
    with pytest.raises(RftError, match=r"select\.0: .*yield \(row, reason\)"):
        fates([lambda g: [wrong for group in g for _ in group.rows]], groups(row("a.0")))


def test_selector_that_loses_or_repeats_or_makes_up_rows() -> None:
    given = groups(row("a.0"), row("a.1"))
    with pytest.raises(RftError, match=r"select\.1: 1 candidates vanished .* a\.1"):
        fates([correct, lambda g: [(next(iter(g)).rows[0], None)]], given)
    with pytest.raises(RftError, match=r"select\.0: candidate a\.0 came back twice"):
        fates([lambda g: [(next(iter(g)).rows[0], None)] * 2], given)
    with pytest.raises(RftError, match=r"select\.0: candidate z\.0"):
        fates([lambda g: [(row("z.0"), None)]], given)
    with pytest.raises(RftError, match=r"select\.0: a reason must be text or None, not True"):
        fates([lambda g: [(m, True) for group in g for m in group.rows]], given)
    with pytest.raises(RftError, match=r"select\.0: ValueError: 3 rows are asked for"):
        fates([lambda g: random(g, rows=3)], given)


def job(root: Path, verdict: str, **more: Any) -> dict[str, Any]:
    made = [Candidate(f"c{i}", "p", i, "text", (1,), (2,), Finish.STOP) for i in range(3)]
    told = [ScoreRow(c.id, "p", Verdict(verdict), None, None, None, "[]") for c in made]
    rows.write_part(root / "prompts", [Prompt("p", "?", "5")], Prompt)
    rows.write_part(root / "sample", made, Candidate)
    rows.write_part(root / "score", told, ScoreRow)
    return {
        "folder": str(root / "select"),
        "label": "select (rft, seed 0)",
        "prompts": str(root / "prompts"),
        "pools": [{"sample": str(root / "sample"), "score": str(root / "score")}],
        "selectors": [{"use": "correct", "args": {}, "counts": {}}],
        "model": {"base": "nowhere"},
        "chat": {},
        "must_sample": True,
        **more,
    }


def test_nothing_left_stops_the_run_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(RftError) as fault:
        select.run([job(tmp_path, "wrong")])
    for word in ("select (rft, seed 0)", "no candidate of 3", "3 wrong", "Nothing was trained"):
        assert word in str(fault.value)
    assert StageDir(tmp_path / "select").manifest() is None


def test_empty_pools(tmp_path: Path) -> None:
    given = job(tmp_path, "wrong")
    given["pools"] = [{"sample": str(tmp_path / "no"), "score": str(tmp_path / "none")}]
    with pytest.raises(RftError, match="no candidate of 0 is left"):
        select.run([given])


def test_a_sample_of_two_pools_is_one_row_of_the_first(tmp_path: Path) -> None:
    """Pools of one policy with the same settings, of which one has more: their ids are the same."""
    model = str(Path(rft.__file__).parent / "embedded" / "model")
    given = job(tmp_path, "correct", model={"base": model})
    parts = list(rows.read(tmp_path / "sample", Candidate))
    more = [*parts[:2], dataclasses.replace(parts[0], id="c9", index=9)]
    rows.write_part(
        tmp_path / "more", [dataclasses.replace(c, pool="more") for c in more], Candidate
    )
    told = [ScoreRow(c.id, "p", Verdict.CORRECT, None, None, None, "[]") for c in more]
    rows.write_part(tmp_path / "morescore", told, ScoreRow)
    given["pools"].append({"sample": str(tmp_path / "more"), "score": str(tmp_path / "morescore")})
    for pool in given["pools"]:
        pool |= {"own_tokens": True, "own_prompts": True}
    select.run([given])
    written = list(rows.read(tmp_path / "select" / "train", TrainRow))
    assert [(row.id, row.pool) for row in written] == [
        ("c0", ""), ("c1", ""), ("c2", ""), ("c9", "more"),
    ]  # fmt: skip
    manifest = StageDir(tmp_path / "select").manifest()
    assert manifest is not None and manifest["funnel"]["in"] == 4


def test_references_alone_are_not_taken_for_samples(tmp_path: Path) -> None:
    given = job(tmp_path, "wrong")
    ref = Candidate("r", "p", 0, "text", (1,), (2,), Finish.REFERENCE)
    rows.write_part(tmp_path / "ref", [ref], Candidate)
    rows.write_part(
        tmp_path / "refscore",
        [ScoreRow("r", "p", Verdict.CORRECT, None, None, None, "[]")],
        ScoreRow,
    )
    given["pools"].append({"sample": str(tmp_path / "ref"), "score": str(tmp_path / "refscore")})
    with pytest.raises(RftError, match="no sampled candidate of 4 is left"):
        select.run([given])


def test_reasons_are_counted_by_their_word(tmp_path: Path) -> None:
    """A detail for each row (what it overlaps with) must not make a line of the funnel each."""
    given = job(tmp_path, "correct")
    own = tmp_path / "own.py"
    own.write_text(
        "def own(groups):\n"
        "    for group in groups:\n"
        "        for row in group.rows:\n"
        "            yield row, f'overlap:{row.candidate.id}'\n"
    )
    given["selectors"] = [{"use": f"{own}:own", "args": {}, "counts": {}}]
    with pytest.raises(RftError, match=r"\(3 overlap\)"):
        select.run([given])


def test_weights_wrong_samples_and_log_probabilities_go_into_the_rows(tmp_path: Path) -> None:
    """Of four samples two are kept, two are wrong, and one of these is unlearnt."""
    model = str(Path(rft.__file__).parent / "embedded" / "model")
    loss = {
        "negatives": {"per_prompt": 1, "weight": 0.5},
        "reward": {"beta": 2.0},
        "logprobs": True,
    }
    given = job(tmp_path, "correct", model={"base": model}, loss=loss)
    given["pools"][0] |= {"own_tokens": True, "own_prompts": True}
    rows.clear(tmp_path / "sample")
    rows.clear(tmp_path / "score")
    *ids, eos = Renderer(Model(base=model), Chat()).completion_ids("text")
    known = tuple(-1.0 - i for i in range(len(ids)))
    made = [
        Candidate(f"c{i}", "p", i, "text", (1,), tuple(ids), Finish.STOP, sum(known), known)
        for i in range(4)
    ]
    made.append(Candidate("r", "p", 0, "ref", (1,), (7,), Finish.REFERENCE))
    told = [
        ("c0", "correct", 1.0),
        ("c1", "wrong", 0.0),
        ("c2", "wrong", 0.0),
        ("c3", "correct", 3.0),
    ]
    told.append(("r", "correct", None))
    rows.write_part(tmp_path / "sample", made, Candidate)
    rows.write_part(
        tmp_path / "score",
        [ScoreRow(id, "p", Verdict(v), None, None, value, "[]") for id, v, value in told],
        ScoreRow,
    )
    select.run([given])
    written = {row.id: row for row in rows.read(tmp_path / "select" / "train", TrainRow)}
    (against,) = {"c1", "c2"} & set(written)
    weights = {id: row.weight for id, row in written.items()}
    assert weights == pytest.approx({"r": 1.0, "c0": math.exp(-1), "c3": 1.0, against: -0.5})
    assert written["r"].logprobs == ()
    # The EOS that these lack is learnt, and was not sampled.
    assert written["c0"].token_ids == (*ids, eos)
    assert written["c0"].logprobs == known
    manifest = StageDir(tmp_path / "select").manifest()
    assert manifest is not None
    counted = {k: manifest[k] for k in ("rows", "sampled", "prompts", "negatives")}
    assert counted == {"rows": 3, "sampled": 2, "prompts": 1, "negatives": 1}
    # Wrong answers stay what they are to everyone else.
    fate = {c.id: c.reason for c in rows.read(tmp_path / "select" / "choices", ChoiceRow)}
    assert fate[against] == "wrong"


def test_clipping_without_log_probabilities_is_refused(tmp_path: Path) -> None:
    model = str(Path(rft.__file__).parent / "embedded" / "model")
    given = job(tmp_path, "correct", model={"base": model}, loss={"logprobs": True})
    given["pools"][0] |= {"own_tokens": True, "own_prompts": True}
    with pytest.raises(RftError, match=r"train\.loss\.clip: candidate c0 .* logprobs: tokens"):
        select.run([given])
