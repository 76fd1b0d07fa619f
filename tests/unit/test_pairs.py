"""How often the scorers are wrong, by a table of answers that were judged by hand.

A false accept (a wrong answer called correct) trains on a mistake, so each one that is left has its
name and its reason here, and a new one fails the test. A right answer that is called wrong or unknown
only costs a row: that rate has a bound.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rft import components
from rft.config import Component
from rft.stats import wilson
from rft.types import Candidate, Finish, Prompt, Score, Verdict
from tests.tables.pairs import CORRECT, GROUPS, OPEN, PAIRS, WRONG, Pair

DATA = Path(os.environ.get("RFT_DATA") or Path(__file__).parents[3] / "shared" / "data")

Judge = Callable[[Prompt, Candidate], Score]


@dataclass
class Outcome:
    """What a scorer makes of the table, by what the hand said."""

    counts: Counter[str] = field(default_factory=Counter)
    accepted: list[Pair] = field(default_factory=list)
    """Wrong by hand, correct by the scorer."""
    rejected: list[Pair] = field(default_factory=list)
    """Correct by hand, wrong by the scorer."""
    missed: list[Pair] = field(default_factory=list)
    """Correct by hand, unknown by the scorer."""
    open_accepted: list[Pair] = field(default_factory=list)


def judged(judge: Judge, scorer: str) -> Outcome:
    outcome = Outcome()
    for pair in PAIRS:
        if scorer not in pair.scorers:
            continue
        outcome.counts[pair.verdict] += 1
        candidate = Candidate("c", "p", 0, pair.text, (), (), Finish.STOP)
        said = judge(Prompt("p", pair.question, pair.gold), candidate).verdict
        if pair.verdict == CORRECT and said is Verdict.WRONG:
            outcome.rejected.append(pair)
        elif pair.verdict == CORRECT and said is Verdict.UNKNOWN:
            outcome.missed.append(pair)
        elif pair.verdict == WRONG and said is Verdict.CORRECT:
            outcome.accepted.append(pair)
        elif pair.verdict == OPEN and said is Verdict.CORRECT:
            outcome.open_accepted.append(pair)
    return outcome


def math_verify_alone(prompt: Prompt, candidate: Candidate) -> Score:
    from math_verify import parse, verify

    said = parse(candidate.text)
    if not said:
        return Score(Verdict.UNKNOWN, "unparsed")
    same = verify(parse(f"${prompt.answer}$"), said)
    return Score(Verdict.CORRECT if same else Verdict.WRONG)


def report(name: str, outcome: Outcome) -> str:
    lines = [name]
    for title, pairs, hand in (
        ("false accepts", outcome.accepted, WRONG),
        ("false rejects", outcome.rejected, CORRECT),
        ("missed (unknown)", outcome.missed, CORRECT),
        ("open, accepted", outcome.open_accepted, OPEN),
    ):
        total = outcome.counts[hand]
        rate = wilson(len(pairs), total)
        lines.append(
            f"  {title}: {len(pairs)} of {total} = {100 * rate.value:.1f}% "
            f"(95% interval {100 * rate.low:.1f} to {100 * rate.high:.1f})"
        )
        lines += [f"    {p.name} gold {p.gold!r}: {p.text[-120:]!r}" for p in pairs]
    return "\n".join(lines)


def test_table_is_large_balanced_and_without_doubles() -> None:
    verdicts = Counter(p.verdict for p in PAIRS)
    assert len(PAIRS) >= 500
    assert 0.45 <= verdicts[WRONG] / len(PAIRS) <= 0.6
    assert verdicts[OPEN] / len(PAIRS) < 0.1
    assert len({(p.question, p.text) for p in PAIRS}) == len(PAIRS)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data sets in {DATA}")
def test_golds_are_those_of_the_data_sets() -> None:
    def plain(text: str) -> str:
        return " ".join(text.split())

    questions: dict[str, dict[str, str]] = {"gsm8k": {}, "math": {}}
    for line in (DATA / "gsm8k" / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        questions["gsm8k"][plain(row["question"])] = row["answer"].split("####")[1].strip()
    for line in (DATA / "math" / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        questions["math"][plain(row["problem"])] = row["solution"]
    for group in GROUPS:
        if group.source == "made":
            continue
        asked = questions[group.source]
        found = [a for q, a in asked.items() if q.startswith(plain(group.question))]
        assert len(found) == 1, group.question
        gold = group.gold if group.source == "gsm8k" else f"\\boxed{{{group.gold}}}"
        assert (gold == found[0]) if group.source == "gsm8k" else (gold in found[0]), group.question
