"""The math scorer against its tables, against math-verify, and on MATH and GSM8K themselves."""

import itertools
import json
import os
import re
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import math_verify
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rft.scorers._equal import compare, exact, key, same
from rft.scorers._extract import final_answer, guess
from rft.scorers._math_verify import is_safe
from rft.scorers.answer import answer
from rft.scorers.math import math
from rft.types import Candidate, Finish, Prompt, Score, Verdict
from tests.tables.math import DIFFER, OTHER, QUESTION, SAME, TEXTS

DATA = Path(os.environ.get("RFT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def score(text: str, gold: str | None, question: str = "?", **args: Any) -> Score:
    candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
    return math(Prompt("p", question, gold), candidate, **args)


def judge(answer: str, gold: str) -> str:
    return str(score(f"\\boxed{{{answer}}}", gold).verdict)


# Tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer, gold, ours, theirs, why", DIFFER, ids=lambda v: repr(v)[:40])
def test_differences_from_math_verify(
    answer: str, gold: str, ours: str, theirs: bool, why: str
) -> None:
    assert judge(answer, gold) == ours
    parsed = [math_verify.parse(f"$\\boxed{{{text}}}$") for text in (gold, answer)]
    assert math_verify.verify(*parsed) is theirs, why


@pytest.mark.parametrize("answer, gold, reason", SAME, ids=lambda v: repr(v)[:40])
def test_equal_answers(answer: str, gold: str, reason: str | None) -> None:
    begun = time.monotonic()
    assert compare(answer, gold) == ((True, None) if reason is None else (None, reason))
    assert time.monotonic() - begun < 5  # importing sympy takes most of it
    if reason != "too_big":
        # Which of the two is gold makes no difference, but for a percent sign.
        assert same(gold, answer) == same(answer, gold) or "%" in answer + gold


@pytest.mark.parametrize("answer, gold", OTHER)
def test_unequal_answers(answer: str, gold: str) -> None:
    assert compare(answer, gold) == (False, None)
    assert compare(gold, answer)[0] is False or gold == "0"
    assert key(answer) is None or key(answer) != key(gold)


@pytest.mark.parametrize("text, gold, verdict, reason", TEXTS, ids=lambda v: repr(v)[:40])
def test_texts(text: str, gold: str | None, verdict: str, reason: str | None) -> None:
    begun = time.monotonic()
    got = score(text, gold, QUESTION)
    assert (str(got.verdict), got.reason) == (verdict, reason), got
    assert time.monotonic() - begun < 2


def test_tables_are_large() -> None:
    assert len(DIFFER) + len(SAME) + len(OTHER) + len(TEXTS) >= 180
    assert {verdict for _, _, verdict, _ in TEXTS} == {str(v) for v in Verdict}


# Arguments --------------------------------------------------------------------------------------


def test_rounded_answers_count_if_asked_for() -> None:
    text = r"\boxed{0.333333}"
    assert score(text, "1/3").reason == "rounded"
    assert score(text, "1/3", decimals=6).verdict is Verdict.CORRECT
    assert score(text, "1/3", decimals=7).reason == "rounded"
    assert score(r"\boxed{0.333334}", "1/3", decimals=2).verdict is Verdict.WRONG


MILES = "How many miles from home is he after 4 hours in $3 traffic?"
DEGREES = "It was 20 degrees Celsius in the second week. How warm is it?"
RENT = "A tenant paid \\$9 and 40 cents. How many cents is that?"


@pytest.mark.parametrize(
    "question, text, is_asked",
    [
        (MILES, r"\boxed{45 \text{ miles}}", True),
        (MILES, r"\boxed{45 \text{ km}}", False),
        (MILES, r"$\boxed{45}$ km", False),
        (MILES, r"\boxed{45 \text{ minutes}}", False),
        (MILES, r"\boxed{45 \text{ kg}}", True),  # no other mass is named
        (MILES, r"\boxed{45\%}", False),
        (MILES, "#### 45 mi", True),
        (MILES, "#### 45 km", False),
        (MILES, "#### 45\n\nQuestion: How far are 45 km?", True),
        (MILES, "The answer is 45 kilometers.", False),
        (MILES, "He is **45** feet away", False),
        (MILES, "He is 45 miles away", True),
        ("How far is it?", r"\boxed{45 \text{ km}}", True),
        ("At 40 mph, how far is it?", r"\boxed{45 \text{ km}}", False),
        ("At 40 mph, how fast is it?", r"\boxed{45 \text{ km/h}}", False),
        ("At 40 mph, how fast is it?", r"\boxed{45 \text{ miles per hour}}", True),
        ("At 40 mph, how fast is it?", r"\boxed{45 \text{ mi/s}}", False),
        ("In 3 hours, how many minutes are there?", "#### 45 hours", False),
        ("In 3 hours, how many minutes are there?", "#### 45 minutes", True),
        ("He works 3 hours and 2 minutes. How long is that?", "#### 45 minutes", True),
        ("Find the number of minutes in the trip of 1 week.", "#### 45 minutes", True),
        ("Her second song has 5 minutes. How long is the album?", "#### 45 seconds", False),
        ("If $m$ is 9, what is the area in square inches?", r"\boxed{45 \text{ in}^2}", True),
        ("If $m$ is 9, what is the area in square inches?", r"\boxed{45 \text{ ft}^2}", False),
        ("If $m$ is 9, what is the area?", r"\boxed{45 \text{ ft}^2}", True),
        ("[asy] dot(1pt); [/asy] How much tea is left?", "#### 45 gallons", True),
        ("It has 8 pints. How much tea is left?", "#### 45 gallons", False),
        ("Find the angle in radians.", r"\boxed{45^\circ}", False),
        (r"If $x = 9^\circ$, find the angle.", r"\boxed{45 \text{ radians}}", False),
        (r"If $x = 9^\circ$, find the angle.", r"\boxed{45^\circ}", True),
        (DEGREES, r"\boxed{45^\circ \text{F}}", False),
        (DEGREES, r"\boxed{45 \text{ degrees Celsius}}", True),
        (DEGREES, r"\boxed{45^\circ}", True),
        (RENT, r"\boxed{45 \text{ cents}}", True),
        (RENT, r"\boxed{\$45}", False),
        ("What percent is it of 20%?", r"\boxed{45\%}", True),
        ("How many percent are they of 20?", r"\boxed{45\%}", True),
        ("?", r"\boxed{45\%}", True),
    ],
)
def test_a_unit_must_be_the_one_that_the_question_asks_for(
    question: str, text: str, is_asked: bool
) -> None:
    for scorer in (math, answer()):
        got = scorer(Prompt("p", question, "45"), Candidate("c", "p", 0, text, (), (), Finish.STOP))
        if is_asked:
            assert got.verdict is Verdict.CORRECT, got
        else:
            assert (got.verdict, got.reason) == (Verdict.UNKNOWN, "units"), got


def test_a_gold_answer_with_a_unit_decides_alone() -> None:
    assert score(r"\boxed{45 \text{ km}}", r"45 \text{ km}", MILES).verdict is Verdict.CORRECT
    assert score(r"\boxed{45 \text{ miles}}", r"45 \text{ km}", MILES).reason == "units"
    assert score(r"\boxed{46 \text{ km}}", "45", MILES).verdict is Verdict.WRONG


def test_marker_and_fallback() -> None:
    assert score("Final: x+1", "x+1", marker="Final:").verdict is Verdict.CORRECT
    assert score("#### 5\n\\boxed{6}", "6", marker="").verdict is Verdict.CORRECT
    assert score("#### 5\n\\boxed{6}", "6").verdict is Verdict.WRONG
    assert score("The answer is 5.", "5", fallback=False).reason == "unparsed"
    assert score("It is 5", "5", fallback=False).reason == "unparsed"


# Bombs ------------------------------------------------------------------------------------------

BOMBS = (
    "9^{9^{9^{9}}}",
    "((9^{99})^{99})^{99}",
    "(((10!)!)!)!",
    "99999^{99999}",
    "x^{99999999}",
    "(x+1)^{1000}",
    "(a+b+c+d+e+f)^{20}",
    r"\sqrt{" * 200 + "2" + "}" * 200,
    r"\sqrt{" * 20 + "2" + "}" * 20,
    r"\frac{1}{" * 20 + "2" + "}" * 20,
    r"\sum_{n=1}^{10^9} n^n",
    r"\int_0^\infty x^x dx",
    r"\prod_{i=1}^{99} i!^{i!}",
    r"\def\a{\a\a}\a",
    "1" * 900,
    ".".join("1" * 400),
    "1," * 400 + "1",
    "-" * 900 + "1",
    "1e999999999",
    "{" * 400 + "}" * 400,
    r"\begin{pmatrix}" + "1&" * 300 + r"1\end{pmatrix}",
    "|" * 500,
    "2^" * 300 + "2",
    r"\sqrt[12]{9999999999999999999999}",
    r"\pm" * 300 + "1",
    r"\sqrt{999999999989 \cdot 999999999989}",
)


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda b: b[:20])
def test_bombs_cost_nothing_and_are_never_right(bomb: str) -> None:
    compare("2+x!", "x!+2")  # imports sympy
    begun = time.monotonic()
    assert judge(bomb, "5") != "correct"
    assert judge("5", bomb) != "correct"
    assert time.monotonic() - begun < 3


def test_what_sympy_must_not_see_is_refused() -> None:
    for text in ("2^{3^{4}}", "2^{99999}", "999!", "5!!", "x" * 301, "\uff15", "1\\text{ m}"):
        assert not is_safe(text), text
    for text in (r"\sqrt{x-3}+3", r"e^{x^2}", r"\log_2 8", r"\frac{x^2}{16}", r"\sin^2 x"):
        assert is_safe(text), text


# Rewritings and edits of made-up answers --------------------------------------------------------

integers = st.integers(-(10**12), 10**12)
fractions = st.fractions(max_denominator=10**4).filter(lambda f: abs(f) < 10**6)


def latex(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def forms(value: Fraction) -> list[str]:
    """The same rational in many forms."""
    top, bottom = value.numerator, value.denominator
    out = [
        f"{top}/{bottom}",
        latex(value),
        latex(value).replace("frac", "dfrac"),
        f"x = {top}/{bottom}",
    ]
    out += [
        latex(value).replace("frac", "tfrac"),
        f"$ {latex(value)} $",
        f"\\left({top}/{bottom}\\right)",
    ]
    out += [f"\\frac{{{top * 6}}}{{{bottom * 6}}}", f"{latex(value)} \\text{{ apples}}"]
    if bottom == 1:
        out += [
            str(top),
            f"{top:,}",
            f"{top:,}".replace(",", "{,}"),
            f"{top:,}".replace(",", ",\\!"),
        ]
        out += [f"{top}.0", f"{top}^\\circ", f"{top}\\text{{ cm}}", f"{top}\\%", f"{top}."]
    elif abs(value) > 1:
        whole, rest = divmod(abs(top), bottom)
        out.append(f"{'-' if top < 0 else ''}{whole}\\frac{{{rest}}}{{{bottom}}}")
    if 10**8 % bottom == 0:
        digits = f"{abs(top) * (10**8 // bottom):09d}"
        out.append(f"{'-' if top < 0 else ''}{digits[:-8]}.{digits[-8:]}".rstrip("0").rstrip("."))
    return out


@given(st.one_of(fractions, integers.map(Fraction)), fractions.filter(lambda f: f != 0))
def test_a_rational_equals_its_forms_and_nothing_else(value: Fraction, change: Fraction) -> None:
    said = forms(value)
    for form in said:
        for gold in (said[0], latex(value)):
            assert same(form, gold) is True, (form, gold)
            assert same(gold, form) is True or "%" in form, (form, gold)
        assert same(form, latex(value + change)) is not True, (form, value + change)
        assert same(form, latex(-value)) is not True or value == 0


@given(
    st.lists(integers.filter(lambda n: abs(n) < 1000), min_size=2, max_size=6, unique=True),
    st.data(),
)
def test_order_counts_in_points_and_not_in_sets(values: list[int], data: st.DataObject) -> None:
    other = data.draw(st.permutations(values))
    text, mixed = ", ".join(map(str, values)), ", ".join(map(str, other))
    assert same(text, f"\\{{{mixed}\\}}") is True
    assert same(mixed.replace(", ", " \\text{ and } "), text) is True
    assert same(f"({text})", f"\\left( {mixed} \\right)") is (values == other)
    assert same(text, ", ".join(map(str, [*values[1:], 1001]))) is False
    assert same(text, ", ".join(map(str, values[1:]))) is False
    assert same(f"({text})", text) is None


@given(st.integers(1, 999), st.integers(2, 60), st.integers(1, 99), st.integers(1, 9))
def test_roots(a: int, n: int, b: int, k: int) -> None:
    gold = f"{b}+{a}\\sqrt{{{n}}}"
    assert same(f"{a} \\sqrt{{{n}}} + {b}", gold) is True
    assert same(f"\\frac{{{a * k}\\sqrt{{{n}}} + {b * k}}}{{{k}}}", gold) is True
    assert same(f"{b} + \\sqrt{{{a * a * n}}}", gold) is True
    assert same(f"{b} - {a}\\sqrt{{{n}}}", gold) is False
    assert same(f"{b}+{a}\\sqrt{{{n + 1}}}", gold) is False
    assert same(f"{b}+{a}\\cdot{n}", gold) is not True


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9))
def test_polynomials(a: int, b: int, c: int) -> None:
    gold = f"x^2+({a + b})x+({a * b})"
    assert same(f"(x+({a}))(x+({b}))", gold) is True
    assert same(f"(x+({a}))(x+({b}))+({c})", gold) is (c == 0)
    assert same(f"y^2+({a + b})y+({a * b})", gold) is False


PIECES = (
    "0 1 2 3 4 5 6 7 8 9 + - * / ^ _ ( ) { } [ ] | ! , . ; : = < > % & $ x y i C A \\frac \\sqrt \\pi "
    "\\pm \\text{cm} \\begin{pmatrix} \\end{pmatrix} \\\\ \\boxed{ \\left( \\cup \\infty \\cos ^\\circ "
    "\\% \\$ \\{ \\} and or #### answer: </think>"
)
pieces = st.sampled_from([*PIECES.split(), " ", "\n", "The answer is "])
anything = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=14).map("".join))


@given(anything, anything)
@example("\\frac", "0")
@example("{\\pm}", "1")
def test_no_exception_escapes_and_order_does_not_matter(one: str, two: str) -> None:
    told = exact(one, two)
    assert told[0] in (True, False, None)
    if "%" not in one + two and "percent" not in one + two:
        assert exact(two, one)[0] == told[0]
    assert exact(one, one)[0] is not False
    hash(key(one))
    if key(one) is not None and key(one) == key(two):
        assert told[0] is not False
    for is_number in (False, True):
        said = final_answer(one, is_number=is_number)
        assert said is None or said
        guess(one, is_number)
    score(one, "5")
    score(one, "x+1")


# The data sets ----------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: set RFT_DATA to the folder that holds {name}")
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def last_box(solution: str) -> str:
    """The gold answer of a MATH row: the last box's content."""
    begin = solution.index("{", solution.rindex("\\boxed")) + 1
    depth, end = 1, begin
    while depth:
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        end += 1
    return solution[begin : end - 1]


EXCEPTIONS = {
    3883: "the problem has numbered questions, and `Question 1:` may open one more problem",
    414: "two boxes, `-2` and `1`, are one answer; the last alone is not gold",
    2703: "two boxes, `3` and `2/5`: the same",
    2716: "two boxes, `(10, 0)` and `(0,0)`: the same",
    4860: r"two boxes, `\frac{\pi}{4}` and `\frac{5\pi}{4}`: the same",
}


def test_every_math_solution_is_right_but_for_named_exceptions() -> None:
    seen = rows("math/test.jsonl")
    assert len(seen) == 5000
    wrong = {}
    for row in seen:
        gold = last_box(row["solution"])
        assert exact(gold, gold)[0] is True, gold
        got = score(row["solution"], gold, row["problem"])
        if got.verdict is not Verdict.CORRECT:
            wrong[row["idx"]] = got
    assert set(wrong) == set(EXCEPTIONS), wrong


def test_every_gsm8k_solution_is_right_and_no_other_number_is() -> None:
    seen = rows("gsm8k/train.jsonl") + rows("gsm8k/test.jsonl")
    assert len(seen) == 8792
    for row in seen:
        body, _, gold = row["answer"].rpartition("#### ")
        assert score(row["answer"], gold, row["question"]).verdict is Verdict.CORRECT, row
        other = str(int(gold.replace(",", "")) + 1)
        assert score(row["answer"], other, row["question"]).verdict is Verdict.WRONG, row
        boxed = f"{body}So it is $\\boxed{{{gold}}}$."
        assert score(boxed, gold, row["question"]).verdict is Verdict.CORRECT, row


OTHER_UNIT = {
    "minutes": "hours",
    "hours": "minutes",
    "seconds": "minutes",
    "days": "weeks",
    "weeks": "days",
    "months": "years",
    "years": "months",
    "miles": "km",
    "meters": "cm",
    "feet": "inches",
    "inches": "feet",
    "pounds": "ounces",
    "ounces": "pounds",
    "dollars": "cents",
    "cents": "dollars",
    "liters": "ml",
    "gallons": "liters",
}


def test_every_gsm8k_answer_is_right_in_the_unit_asked_for_and_in_no_other() -> None:
    asked = re.compile(rf"how many ({'|'.join(OTHER_UNIT)})\b[^.?]*\?$")
    count = 0
    for row in rows("gsm8k/train.jsonl") + rows("gsm8k/test.jsonl"):
        if (match := asked.search(row["question"].strip().lower())) is None:
            continue
        count += 1
        gold, unit = row["answer"].rpartition("#### ")[2], match[1]
        for form in ("\\boxed{%s \\text{ %s}}", "The answer is %s %s.", "So it takes %s %s in all"):
            got = score(form % (gold, unit), gold, row["question"])
            assert got.verdict is Verdict.CORRECT, (row, form)
            got = score(form % (gold, OTHER_UNIT[unit]), gold, row["question"])
            assert got.reason == "units", (row, form)
    assert count > 800


def test_no_math_answer_is_taken_for_another() -> None:
    """All distinct gold answers against their neighbours: equal only where the value is."""
    golds = sorted({last_box(row["solution"]) for row in rows("math/test.jsonl")})
    keys: dict[Any, list[str]] = {}
    for gold in golds:
        keys.setdefault(key(gold), []).append(gold)
    assert sum(len(same_key) for same_key in keys.values()) == len(golds)
    for one, two in itertools.pairwise(golds):
        if exact(one, two)[0]:
            a, b = key(one), key(two)
            assert a is None or a[:2] == b[:2], (one, two)  # a unit may stand at one of them
        elif key(one) == key(two):
            assert key(one) is None, (one, two)
