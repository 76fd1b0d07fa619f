"""Mathematical answers, LaTeX or plain, compared as mathematics.

Most comparisons take exact arithmetic only (`_equal`): the answer's form is read once, each distinct
(answer, gold) pair is compared once for all candidates, and sympy is not even imported. math-verify
decides the rest. What the two can't decide is unknown, and so is what only looks equal.
"""

import functools
from typing import Annotated

from pydantic import Field

from rft.scorers._equal import compare, key, readable
from rft.scorers._extract import final_answer, guess
from rft.scorers._math_asked import in_other_unit
from rft.scorers._math_form import LONGEST, Form, form_of
from rft.types import Candidate, Prompt, Score, Verdict

_NO_GOLD = Score(Verdict.UNKNOWN, "no_gold")
_BAD_GOLD = Score(Verdict.UNKNOWN, "bad_gold")
_UNPARSED = Score(Verdict.UNKNOWN, "unparsed")
_TOO_BIG = Score(Verdict.UNKNOWN, "too_big")


def math(
    prompt: Prompt,
    candidate: Candidate,
    *,
    marker: str = "####",
    fallback: bool = True,
    decimals: Annotated[int, Field(ge=1, le=15)] | None = None,
) -> Score:
    """Correct if the candidate's final answer equals the gold answer as mathematics.

    Integers, decimals, fractions, roots, multiples of pi, complex numbers, polynomials, points,
    intervals, sets, lists, matrices, equations, choices and words are compared exactly; anything else
    by math-verify. The form doesn't count: 1/2 is 0.5, and an expansion is its factors.

    The final answer is what follows the first marker that is no heading, else the last
    `\\boxed{...}`, else what follows the last "answer is". Boxes with only "and" or a comma between
    them are one answer, and a text that says another answer after its box has none. What is inside
    `<think>`, what repeats the question, and what follows the heading of one more problem is left
    out. Of a text with none of these the last number, or the formula or bold word of its last line,
    counts if it equals the gold answer; if not, that says nothing (`unparsed`).

    The gold answer may be a whole worked solution: its final answer counts. For MATH that is
    `prompts.args: {question: problem, answer: solution}`.

    marker: what the answer follows, on its line or the next; "" is none.
    fallback: whether an answer counts that has neither marker nor box.
    decimals: how many decimals a rounded number must have to equal an exact one (0.333333 and 1/3);
    without it a rounded number is unknown.

    Unknown for reasons `no_gold`, `bad_gold` (the gold answer can't be read), `unparsed`, `too_big`
    (sympy would take hours), and where the two are equal but for something that may count: `percent`
    (50% and 0.5), `units` (5 cm and 5 m, or 5 cm to `how many metres`), `rounded`, `brackets`
    ((1,2) and 1,2), `repeated` (1,1,2 and 1,2), `commas` (100,200), `name` (x = 5 and y = 5),
    `equation`, `ratio`, `base`, `text`.
    """
    if prompt.answer is None:
        return _NO_GOLD
    gold, is_number = _gold(prompt.answer)
    if gold is None:
        return _BAD_GOLD
    text = candidate.text
    if _may_echo(prompt.question, marker):
        text = text.replace(prompt.question, " ")
    said = final_answer(text, marker=marker, fallback=fallback, is_number=is_number)
    is_guess = said is None and fallback
    if is_guess:
        said = guess(text, is_number, marker)
    if said is None:
        return _UNPARSED
    if len(said) > LONGEST:
        return _UNPARSED if is_guess else _TOO_BIG
    score = _judge(said, gold, decimals)
    if score.verdict is not Verdict.CORRECT:
        return _UNPARSED if is_guess else score
    if in_other_unit(prompt.question, text, said, gold, marker):
        return Score(Verdict.UNKNOWN, "units", said)
    return score


@functools.lru_cache(maxsize=1 << 14)
def _gold(answer: str) -> tuple[str | None, bool]:
    """The gold answer out of its text, or None if it can't be read; and whether it is a number."""
    if "\\boxed" in answer or "####" in answer:
        answer = final_answer(answer) or ""
    answer = answer.strip()
    form = form_of(answer)
    is_number = isinstance(form, Form) and form.kind == "value" and not isinstance(form.value, dict)
    return (answer if readable(answer) else None), is_number and key(answer) is not None


@functools.lru_cache(maxsize=1 << 14)
def _may_echo(question: str, marker: str) -> bool:
    """Whether a text that repeats the question would hold what looks like an answer."""
    return "\\boxed" in question or "nswer" in question or (marker != "" and marker in question)


@functools.lru_cache(maxsize=1 << 16)
def _judge(said: str, gold: str, decimals: int | None) -> Score:
    equal, reason = compare(said, gold)
    if reason == "rounded" and decimals is not None:
        forms = (form_of(said), form_of(gold))
        written = [form.decimals for form in forms if isinstance(form, Form) and form.decimals]
        equal = True if min(written) >= decimals else None
    if equal is None:
        return Score(Verdict.UNKNOWN, reason, said)
    return Score(Verdict.CORRECT if equal else Verdict.WRONG, None, said)
