"""The answer scorer against the table, then against every GSM8K and MATH solution there is here."""

import json
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rft.scorers.answer import answer, extract, number
from rft.types import Candidate, Finish, Prompt, Verdict
from tests.tables.answers import ROWS

DATA = Path(os.environ.get("RFT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def judge(text: str, gold: str | None, **args: Any) -> str:
    candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
    return str(answer(Prompt("p", "?", gold), candidate, **args).verdict)


@pytest.mark.parametrize("text, gold, verdict", ROWS, ids=lambda value: repr(value)[:40])
def test_table(text: str, gold: str | None, verdict: str) -> None:
    begun = time.monotonic()
    assert judge(text, gold) == verdict
    assert time.monotonic() - begun < 1


def test_table_is_large_and_uses_every_verdict() -> None:
    assert len(ROWS) >= 60
    assert {verdict for *_, verdict in ROWS} == {str(v) for v in Verdict}


def test_reasons_and_what_was_read() -> None:
    def score(text: str, gold: str | None) -> tuple[str | None, str | None]:
        candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
        got = answer(Prompt("p", "?", gold), candidate)
        return got.reason, got.extracted

    assert score("#### 5", None) == ("no_gold", None)
    assert score("nothing", "5") == ("unparsed", None)
    assert score("#### 2^3", "8") == ("unparsed", "2^3")
    assert score("#### 1,000.50", "5") == (None, "2001/2")
    assert score("#### 50%", "0.5") == ("percent", "50")


def test_tolerance_is_relative_and_off_by_default() -> None:
    assert judge("#### 0.3333", "1/3") == "wrong"
    assert judge("#### 0.3333", "1/3", tolerance=1e-3) == "correct"
    assert judge("#### 0.33", "1/3", tolerance=1e-3) == "wrong"
    assert judge("#### 1001", "1000", tolerance=1e-3) == "correct"
    assert judge("#### 1002", "1000", tolerance=1e-3) == "wrong"
    assert judge("#### 33.3%", "1/3", tolerance=1e-2) == "unknown"


def test_marker_and_fallback() -> None:
    assert judge("Final: 5", "5", marker="Final:", fallback=False) == "correct"
    assert judge("so 5", "5", fallback=False) == "unknown"
    assert extract("so 5", "####", True, is_number=True) == "5"
    assert judge("#### Final Answer\n5", "5", fallback=False) == "correct"
    assert judge("#### Step 1\nso \\boxed{5}", "5", fallback=False) == "unknown"
    # Only a marker that Markdown knows can be a heading.
    assert judge("=> Step 5:\nall done", "5", marker="=>") == "correct"


@pytest.mark.parametrize(
    "text, value",
    [
        ("0.1", Fraction(1, 10)),
        ("-1,234.5", Fraction(-2469, 2)),
        ("- $3", Fraction(-3)),
        ("-2 1/4", Fraction(-9, 4)),
        ("12%", Fraction(12)),
        ("-1 234.5", Fraction(-2469, 2)),
        ("1\u202f000\u202f000", Fraction(1_000_000)),
        ("1,2", None),
        ("1 23", None),
        ("1,234 567", None),
        ("12,34", None),
        ("1 2", None),
        ("5 apples", None),
        ("1/0", None),
        ("", None),
        ("-", None),
        ("9" * 61, None),
    ],
)
def test_number(text: str, value: Fraction | None) -> None:
    assert number(text) == value


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: set RFT_DATA to the folder that holds {name}")
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_every_gsm8k_solution_is_right_and_no_other_number_is() -> None:
    seen = rows("gsm8k/train.jsonl")
    assert len(seen) > 7000
    for row in seen:
        gold = row["answer"].rpartition("####")[2].strip()
        value = number(gold)
        assert value is not None, gold
        assert judge(row["answer"], gold) == "correct", row
        assert judge(row["answer"], str(value + 1)) == "wrong", row
        # The same without its marker: the answer ends the text, as a model's may.
        bare = row["answer"].replace("#### ", "The answer is ")
        assert judge(bare, gold) == "correct", row


@pytest.mark.parametrize("heading", ["Step {i}: {line}", "**Step {i}**", "{i}. {line}", "{i}) Add"])
def test_headings_over_every_line_of_gsm8k_change_no_verdict(heading: str) -> None:
    for row in rows("gsm8k/test.jsonl")[::4]:
        body, _, gold = row["answer"].rpartition("#### ")
        lines = [line for line in body.split("\n") if line.strip()]
        text = "\n".join(
            f"#### {heading.format(i=i, line=line)}\n{line}" for i, line in enumerate(lines, 1)
        )
        value = number(gold)
        assert value is not None
        for end in ("#### {}", "So it is \\boxed{{{}}}.", "#### Final Answer\n\n{}"):
            for rest in ("", "\n\nQuestion: 3 + 3?\n#### 6"):
                said = f"{text}\n{end.format(gold)}{rest}"
                assert judge(said, gold) == "correct", said
                assert judge(said, str(value + 1)) == "wrong", said


def test_math_solutions_are_right_against_their_own_box() -> None:
    seen = rows("math/test.jsonl")
    assert len(seen) > 4000
    numbers = 0
    for row in seen:
        solution = row["solution"]
        if "\\boxed{" not in solution:
            continue
        begin = solution.rindex("\\boxed{") + len("\\boxed{")
        depth, end = 1, begin
        while depth:
            depth += {"{": 1, "}": -1}.get(solution[end], 0)
            end += 1
        gold = solution[begin : end - 1]
        assert judge(solution, gold) == "correct", gold
        value = number(gold)
        if value is not None:
            numbers += 1
            assert judge(solution, str(value + 1)) == "wrong", gold
    assert numbers > 2000
