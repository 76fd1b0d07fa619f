"""The final answer, extracted and compared as an exact number.

Numbers are compared as fractions, so 0.1 + 0.2 is 3/10 and 1,234.50 is 2469/2; a float comparison
would need a tolerance that is right for no data set. A gold answer that is not a number is compared
as text without case and spaces. Every pattern runs in linear time, and no text is evaluated.
"""

import re
from fractions import Fraction

from rft.types import Candidate, Prompt, Score, Verdict

_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,2}(?!\d))?(?:/\d+)?"
)
_PHRASE = re.compile(r"answer(?:\s+is|\s*[:=])", re.IGNORECASE)
_LONGEST = 60
"""Digits a number may have; a longer one is no answer to a word problem, only a cost."""


def answer(
    prompt: Prompt,
    candidate: Candidate,
    *,
    marker: str = "####",
    fallback: bool = True,
    tolerance: float = 0.0,
) -> Score:
    """Correct if the candidate's final answer equals the gold answer.

    The final answer is what follows the first `marker`; else, with `fallback`, the last
    `\\boxed{...}`, else what follows the last "answer is", else the last number of the text.
    tolerance: largest relative difference that still counts as equal; 0 is exact.
    Unknown for reasons `no_gold` and `unparsed`.
    """
    if prompt.answer is None:
        return Score(Verdict.UNKNOWN, "no_gold")
    gold = number(prompt.answer)
    said = extract(candidate.text, marker, fallback, is_number=gold is not None)
    if said is None:
        return Score(Verdict.UNKNOWN, "unparsed")
    if gold is None:
        same = _plain(said) == _plain(prompt.answer)
        return Score(Verdict.CORRECT if same else Verdict.WRONG, None, said)
    value = number(said)
    if value is None:
        return Score(Verdict.UNKNOWN, "unparsed", said)
    same = value == gold or abs(value - gold) <= Fraction(tolerance) * abs(gold)
    return Score(Verdict.CORRECT if same else Verdict.WRONG, None, str(value))


def extract(text: str, marker: str, fallback: bool, is_number: bool) -> str | None:
    """The final answer as text, or None if there is none to be found."""
    _, found, rest = text.partition(marker)
    if found:
        return _first(rest.lstrip().split("\n", 1)[0], is_number)
    if not fallback:
        return None
    if (boxed := _boxed(text)) is not None:
        return _first(boxed, is_number)
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        got = _first(text[phrases[-1].end() :].split("\n", 1)[0].rstrip(". "), is_number)
        if got is not None:
            return got
    if not is_number:
        return None
    numbers = [m.group() for m in _NUMBER.finditer(text) if m.group()]
    return numbers[-1] if numbers else None


def _first(text: str, is_number: bool) -> str | None:
    text = text.replace("\u2212", "-")
    if not is_number:
        return text.strip() or None
    # A sign or currency may stand apart from its digits: "- 3", "$-3", "-$3".
    found = next((m for m in _NUMBER.finditer(text) if m.group()), None)
    if found is None:
        return None
    sign = "-" if re.search(r"-\s*[$\u20ac\u00a3]?\s*$", text[: found.start()]) else ""
    return sign + found.group()


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return None


def number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, with sign, $, %, commas; else None."""
    text = text.strip().replace("\u2212", "-").replace(" ", "")
    text = text.strip("$\u20ac\u00a3%").rstrip(".").replace("-$", "-").replace(",", "")
    if not text or len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        return None
    top, _, bottom = text.partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top) / (int(bottom) if bottom else 1)


def _plain(text: str) -> str:
    return "".join(text.casefold().split()).strip(".$")
