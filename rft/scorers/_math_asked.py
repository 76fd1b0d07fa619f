"""Whether an answer is in another unit than the question asks for.

Many gold answers are bare numbers, and their unit stands in the question. An answer with a unit of
measure must then have the one that is asked for (`how many UNIT`, `in UNIT`). Where none of its kind is
asked for, it must be among those of its kind that the question names, if there are any.
"""

import re
from functools import lru_cache

from rft.scorers._math_form import Form, form_of
from rft.scorers._math_units import KINDS, UNITS, unit_of


def in_other_unit(question: str, text: str, said: str, gold: str, marker: str) -> bool:
    """Whether a final answer that equals the gold one has another unit than the question asks for."""
    unit = _unit(said, gold)
    if unit == "":
        unit = _beside(text, said, marker)
    return bool(unit) and _asks_for_other(question, unit)


@lru_cache(maxsize=1 << 16)
def _unit(said: str, gold: str) -> str | None:
    """The unit of an answer, "" for none; None where that of the gold one has decided."""
    one, two = form_of(said), form_of(gold)
    if not isinstance(two, Form) or two.units:
        return None
    return min(one.units, default="") if isinstance(one, Form) else ""


_BESIDE = re.compile(
    r"[}$ *~]*(?:\\[,; !])*(?:\\(?:text|mathrm|mbox|textbf)\s*\{ *)?"
    r"((?:square |cubic |sq\.? )?[A-Za-z]{1,12}(?:(?:/| per )[a-z]{1,8})?)"
)


def _beside(text: str, number: str, marker: str) -> str | None:
    """The unit behind a final answer that was taken without it."""
    at = text.find(marker) if marker else -1
    if at < 0:
        at = max(text.rfind("\\boxed"), text.rfind("nswer"))
    at = text.rfind(number) if at < 0 else text.find(number, at)
    match = _BESIDE.match(text, at + len(number)) if at >= 0 else None
    return _named_unit(match[1]) if match else None


@lru_cache(maxsize=1 << 12)
def _named_unit(words: str) -> str | None:
    return None if words == "in" else unit_of(words)


_PICTURE = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_ASKING = re.compile(r".*\b(?:how|what|find|calculate|compute|determine)\b", re.DOTALL)
_WORD = "(" + "|".join(re.escape(word) for word in UNITS if word != "in") + r")\b"
_ASKED = re.compile(
    r"\b(?:how many|number of|amount of|total) "
    rf"(?:(?!(?:per|an?|each|every|in|for|of|the|at|by|from|to|and)\b)[a-z]+ ){{0,2}}?{_WORD}"
    rf"|\bin (?:square |cubic |terms of |total |degrees )?(?!second\b){_WORD}"
)
_NAMED = re.compile(
    r"\\\$|\$(?=\s?\d[\d,.]*(?:\s+[a-z]|[.?!,;)]*(?:\s|$)))|%"
    r"|(?:(?:per|each|every) |[\d/] ?-?)second\b|(?:\d|\{) m\b|(?!(?:second|m|in)\b)(?<![a-z])[a-z]+"
)
"""What may be a unit: no `$` around a formula, no variable `m`, and no `second` that is an
ordinal."""


def _meant(word: str) -> set[str]:
    """The units that a word of a question names: `mph` is miles and hours."""
    if word[-1] == "$":
        return {"dollar"}
    word = {"circ": "degree"}.get(word) or word.split()[-1].lstrip("/-0123456789{")
    return set(UNITS.get(word, "").split("/")) - {""}


@lru_cache(maxsize=1 << 14)
def _units_in(question: str) -> tuple[frozenset[str], frozenset[str], bool]:
    """The units that a question asks for, those that it names, and whether it counts something."""
    text = " ".join(_PICTURE.sub(" ", question).lower().split())
    named = {u for m in _NAMED.finditer(text) for u in _meant(m[0])}
    match = _ASKING.match(text)
    at = match.end() if match else len(text) - 1
    asking = text[max(text.rfind(". ", 0, at), text.rfind("? ", 0, at)) + 1 :]
    asked = {u for m in _ASKED.finditer(asking) for u in _meant(m[1] or m[2])}
    counts = "how many " in asking and "percent" not in asking
    return frozenset(asked), frozenset(named), counts


@lru_cache(maxsize=1 << 16)
def _asks_for_other(question: str, unit: str) -> bool:
    asked, named, counts = _units_in(question)
    if unit == "%":  # a share is no answer to `how many`
        return counts
    first, *per = unit.rstrip("23").split("/")
    return _is_other(first, asked, named) or any(_is_other(u, frozenset(), named) for u in per)


def _is_other(unit: str, asked: frozenset[str], named: frozenset[str]) -> bool:
    """Whether units of this one's kind are asked for, or else named, and it is none of them."""
    kind = next((units.keys() for units in KINDS if unit in units), set[str]())
    found = asked & kind or named & kind
    return bool(found) and unit not in found
