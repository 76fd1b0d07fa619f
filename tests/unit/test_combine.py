"""The truth tables of rft/combine.py, word for word, and that settled means settled."""

import itertools
import re
from pathlib import Path

import pytest

from rft import combine
from rft.combine import settled
from rft.config import Arm, Combine
from rft.types import Score, Verdict

LETTER = {"C": Verdict.CORRECT, "W": Verdict.WRONG, "U": Verdict.UNKNOWN}
RULES = ["all", "any", "first", "veto", "weighted"]


def said(letters: str) -> list[Score]:
    return [Score(LETTER[c], f"{i}{c}") for i, c in enumerate(letters)]


def verdict(rule: Combine, letters: str) -> str:
    got = combine.combine(rule, said(letters)).verdict
    return {v: c for c, v in LETTER.items()}[got]


def table(rule: str) -> dict[str, str]:
    """The rule's table as the module's docstring prints it."""
    lines = (combine.__doc__ or "").split("\n")
    head = next(i for i, line in enumerate(lines) if line.strip().startswith("all "))
    at = lines[head].index(rule)
    found = {}
    for line in lines[head + 1 : head + 4]:
        first, *cells = re.split(r" +", line[at : at + 16].strip())
        found |= {first + second: cell for second, cell in zip("CWU", cells, strict=True)}
    return found


@pytest.mark.parametrize("rule", ["all", "any", "first", "veto"])
def test_as_the_table_says(rule: str) -> None:
    told = table(rule)
    assert len(told) == 9
    for pair, expected in told.items():
        assert verdict(Combine(rule=rule), pair) == expected, pair  # type: ignore[arg-type]


def test_docs_have_the_same_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text()
    lines = (combine.__doc__ or "").split("\n")
    head = next(i for i, line in enumerate(lines) if line.strip().startswith("all "))
    assert "\n".join(lines[head : head + 4]) in page


@pytest.mark.parametrize(
    "weights, threshold, letters, expected",
    [
        (None, 0.5, "CW", "C"),
        (None, 0.51, "CW", "W"),
        (None, 0.5, "CUW", "U"),
        (None, 0.3, "CUW", "C"),
        (None, 0.7, "CUW", "W"),
        ([3, 1], 0.5, "WC", "W"),
        ([3, 1], 0.5, "CW", "C"),
        ([3, 1], 0.8, "CW", "W"),
        ([3, 1], 0.8, "CU", "U"),
        ([0.1, 0.2, 0.7], 0.3, "CCW", "C"),
        (None, 0, "WW", "W"),
        (None, 0, "WU", "U"),
        (None, 0, "WC", "C"),
    ],
)
def test_weighted(
    weights: list[float] | None, threshold: float, letters: str, expected: str
) -> None:
    rule = Combine(rule="weighted", weights=weights, threshold=threshold)
    assert verdict(rule, letters) == expected


@pytest.mark.parametrize("rule", RULES)
def test_settled_is_what_no_further_word_changes(rule: str) -> None:
    how = Combine(rule=rule)  # type: ignore[arg-type]
    for letters in itertools.chain(*(itertools.product("CWU", repeat=n) for n in (1, 2))):
        begun = "".join(letters)
        after = {
            verdict(how, begun + "".join(more))
            for n in (0, 1, 2)
            for more in itertools.product("CWU", repeat=n)
        }
        if settled(how, said(begun)):
            assert len(after) == 1, begun
        elif rule != "weighted":
            assert len(after) > 1, begun


@pytest.mark.parametrize("rule", RULES)
def test_one_that_only_gives_a_number_abstains(rule: str) -> None:
    how = Combine(rule=rule)  # type: ignore[arg-type]
    number = Score(Verdict.UNKNOWN, combine.UNJUDGED, None, 0.25)
    for letters in "CWU":
        got = combine.combine(how, [number, *said(letters)])
        assert (got.verdict, got.value) == (LETTER[letters], 0.25)
    alone = combine.combine(how, [number])
    assert (alone.verdict, alone.reason) == (Verdict.UNKNOWN, combine.UNJUDGED)


def test_reason_and_answer_are_of_the_one_that_decided() -> None:
    scores = [
        Score(Verdict.UNKNOWN, "unparsed"),
        Score(Verdict.CORRECT, None, "5", 1.0),
        Score(Verdict.WRONG, "format:tags", None, 2.0),
    ]
    got = combine.combine(Combine(), scores)
    assert (got.verdict, got.reason, got.extracted, got.value) == (
        Verdict.WRONG,
        "format:tags",
        "5",
        2.0,
    )
    got = combine.combine(Combine(rule="first"), scores)
    assert (got.verdict, got.reason, got.extracted) == (Verdict.CORRECT, None, "5")
    # Not asked is not a word.
    assert combine.combine(Combine(), [None, scores[1]]).verdict is Verdict.CORRECT


def test_weights_must_fit() -> None:
    body = {"model": {"base": "x"}, "prompts": {"use": "jsonl"}}
    with pytest.raises(ValueError, match="2 for 1 scorers"):
        Arm(**body, combine={"rule": "weighted", "weights": [1, 2]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only with rule: weighted"):
        Arm(**body, combine={"weights": [1]})  # type: ignore[arg-type]
