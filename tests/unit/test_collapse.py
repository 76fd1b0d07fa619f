"""What is measured of a round's samples, and what counts as a sign of collapse."""

import dataclasses
from collections.abc import Iterator

import pytest

from rft.collapse import measure, signs
from rft.tallies import KEYS
from rft.types import Candidate, Finish, Group, Prompt, Score, Scored, Verdict

CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG


def group(name: str, *told: tuple[str, Verdict], finish: Finish = Finish.STOP) -> Group:
    members = tuple(
        Scored(
            Candidate(f"{name}{i}", name, i, text, (1,), (), finish, -2.0 * len(text)),
            Score(verdict),
            tokens=len(text),
        )
        for i, (text, verdict) in enumerate(told)
    )
    return Group(Prompt(name, "?"), members)


def test_figures_of_a_round() -> None:
    groups = [
        group("a", ("1 + 2 = 3", CORRECT), ("2 + 1 = 3", CORRECT), ("6 / 2 = 3", CORRECT)),
        group("b", ("1 + 1 = 2", WRONG), ("4 - 2 = 2", CORRECT), ("7 - 5 = 2", WRONG)),
        group("c", ("", WRONG), ("", WRONG), finish=Finish.LENGTH),
    ]
    got = measure(groups, KEYS["equations"])
    assert got is not None
    assert (got.samples, got.k, got.entropy) == (8, 2, 2.0)
    # Of the three pairs of right answers to `a` one is the same way twice.
    assert got.differ == pytest.approx(2 / 3)
    assert got.pass_1.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert got.pass_k.value == pytest.approx(2 / 3)
    assert got.cut == 0.25 and got.tokens == pytest.approx(54 / 8)
    assert got.as_dict()["pass_1"]["value"] == got.pass_1.value


def test_references_are_no_samples() -> None:
    given = group("a", ("1 + 2 = 3", CORRECT), finish=Finish.REFERENCE)
    assert measure([given], KEYS["text"]) is None


def pool(ways: int, right: int = 6, of: int = 8, length: int = 40) -> Iterator[Group]:
    """40 prompts with `right` correct answers of `of`, in so many ways."""
    for prompt in range(40):
        texts = [f"{i % ways} + {prompt} = 5".ljust(length) for i in range(of)]
        yield group(
            f"p{prompt}", *((text, CORRECT if i < right else WRONG) for i, text in enumerate(texts))
        )


def test_signs_of_collapse_are_named_and_the_healthy_have_none() -> None:
    way = KEYS["equations"]
    first = measure(pool(ways=6), way)
    assert first is not None and signs(first, first) == []
    same, longer = measure(pool(ways=1), way), measure(pool(ways=6, length=70), way)
    assert same is not None and longer is not None
    (found,) = signs(first, same)
    assert found.startswith("two right answers differ in 100% -> 0%")
    (found,) = signs(first, longer)
    assert found == "length 40 -> 70 tokens"
    calm = dataclasses.replace(first, entropy=first.entropy / 3, cut=0.2)
    assert [s.split()[0] for s in signs(first, calm)] == ["entropy", "cut"]


def test_pass_at_k_that_falls_while_pass_at_1_rises() -> None:
    """All prompts are solved sometimes; after it half of them always and the others never."""
    way = KEYS["equations"]
    before = measure(pool(ways=1, right=3), way)
    sharp = [*list(pool(ways=1, right=8))[:20], *list(pool(ways=1, right=0))[20:]]
    after = measure(sharp, way)
    assert before is not None and after is not None
    (found,) = signs(before, after)
    assert found == "pass@8 100.0% -> 50.0% (pass@1 37.5% -> 50.0%)"
