"""The form of an answer: what kind it is, its exact value, its name and its unit."""

import functools
import re
from collections.abc import Hashable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from rft.scorers import _math_poly as poly
from rft.scorers._math_read import Clause, frozen, is_name, read
from rft.scorers._math_tokens import Group
from rft.scorers._math_units import unit_of
from rft.scorers._math_words import choice_of, clean, inside_text, words_of

LONGEST = 1000
"""Characters that an answer may have."""


@dataclass(frozen=True, slots=True)
class Form:
    """An answer as the exact path reads it."""

    kind: str
    """value, group, list, union, named, equation, text, choice, time, ratio,
    base or undefined."""
    value: Any
    names: frozenset[Hashable] = frozenset()
    """What stands before `=`, where the answer is a value with a name."""
    left: Any = None
    units: frozenset[str] = frozenset()
    decimals: int | None = None
    """How many decimals it is written with, where it is one decimal number."""
    letters: str = ""
    other: "Form | None" = None
    """What it is if its commas separate members and not thousands; of a choice, what it chooses."""


_HEATS = {"F": "fahrenheit", "C": "celsius"}
"""What these letters are behind degrees."""
_WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,29})", re.ASCII)
_DECIMAL = re.compile(r"-?\d*\.(\d+)", re.ASCII)


@functools.lru_cache(maxsize=1 << 14)
def form_of(text: str) -> Form | str | None:
    """The form of an answer; None where the exact path can't read it, "too_big" where it won't."""
    if _WHOLE.fullmatch(text):
        return Form("value", int(text))
    if len(text) > LONGEST:
        return "too_big"
    try:
        cleaned, units, commas = clean(text)
        form = _form(cleaned, units)
        if commas is not None:
            return replace(form, other=_form(commas, units))
        return form
    except poly.TooBig:
        return "too_big"
    except poly.Undefined:
        return Form("undefined", None)
    except (poly.Unreadable, ArithmeticError, ValueError, IndexError, RecursionError):
        return None


def _form(text: str, units: tuple[str, ...]) -> Form:
    if (choice := choice_of(text)) is not None:
        letter, rest = choice
        try:
            return Form("choice", letter, other=_form(rest, ()) if rest else None)
        except poly.Unreadable:
            return Form("choice", letter)
    if (words := words_of(text)) is not None:
        kind, value = words
        return Form(kind, value, letters=_letters(text))
    if (inside := inside_text(text)) is not None:
        text = inside
    clauses = read(text)
    found = set(units)
    members = []
    for clause in clauses:
        clause.value, degrees = _without_degrees(clause.value)
        if degrees:
            found.add(next((_HEATS[u] for u in clause.units if u in _HEATS), "\u00b0"))
        for unit in clause.units:
            if known := unit_of(unit):
                found.add(known)
        members.append(_member(clause))
    return _joined(members, frozenset(found), text)


def _letters(text: str) -> str:
    return "".join(ch for ch in text if ch.isalpha()).lower()


def _without_degrees(value: Any) -> tuple[Any, bool]:
    """A value whose every term is in degrees, as its number."""
    mark = ("\u00b0", 1)
    if isinstance(value, Group):
        items = [_without_degrees(item) for item in value.items]
        is_all = bool(items) and all(degrees for _, degrees in items)
        return (
            (Group(value.tag, tuple(item for item, _ in items)), True) if is_all else (value, False)
        )
    if isinstance(value, dict) and all(mark in names for _, _, names in value):
        bare = {(r, i, names - {mark}): factor for (r, i, names), factor in value.items()}
        return poly.add(bare, 0), True
    return value, False


def _member(clause: Clause) -> Form:
    """One clause as a form."""
    value, left = clause.value, clause.left
    kind = "group" if isinstance(value, Group) else "value"
    if kind == "group" and value.tag == "union":
        kind = "union"
    if left is None:
        return Form(kind, value)
    if isinstance(left, Group):
        raise poly.Unreadable
    if is_name(left) or _is_call(left):
        return Form(kind, value, names=frozenset((frozen(left),)), left=left)
    if kind != "value":
        raise poly.Unreadable
    if poly.is_number(left) and poly.equal(left, value):
        return Form(kind, value)
    return Form("equation", poly.add(left, poly.negate(value)))


def _is_call(value: Any) -> bool:
    """Whether a value is `f(x)`."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    ((_, _, names),) = value
    return len(names) == 1 and all(
        isinstance(atom, tuple) and len(atom[0].rstrip("~")) == 1 for atom, _ in names
    )


def _joined(members: list[Form], units: frozenset[str], text: str) -> Form:
    letters = _letters(text)
    if len(members) == 1:
        (one,) = members
        if one.kind == "group" and one.value.tag == "{}":
            return _list([Form("value", v) for v in one.value.items], one, units, letters)
        decimals = None
        if one.kind == "value" and isinstance(one.value, int | Fraction):
            match = _DECIMAL.search(text)
            decimals = len(match[1]) if match and "/" not in text and "frac" not in text else None
        if one.kind == "equation":
            return Form(one.kind, one.value, units=units, letters=letters)
        return Form(one.kind, one.value, one.names, one.left, units, decimals, letters)
    if any(member.kind == "equation" for member in members):
        raise poly.Unreadable
    names = frozenset().union(*(member.names for member in members))
    if len(names) > 1:
        pairs = frozenset((frozen(m.left), frozen(m.value)) for m in members if m.left is not None)
        if len(pairs) != len(members):
            raise poly.Unreadable
        return Form("named", pairs, letters=letters)
    intervals = [m for m in members if m.kind == "group" and m.left is not None]
    if intervals:  # `x < 3 or x > 5`
        if len(intervals) != len(members) or not re.search(r"\bor\b", text):
            raise poly.Unreadable
        union = Group("union", tuple(m.value for m in members))
        return Form("union", union, names, members[0].left, units, letters=letters)
    left = next((m.left for m in members if m.left is not None), None)
    return _list(members, Form("", None, names, left), units, letters)


def _list(members: list[Form], of: Form, units: frozenset[str], letters: str) -> Form:
    """Values in no order. A set of one is its member, as are equal ones."""
    values = tuple(member.value for member in members)
    if len({frozen(value) for value in values}) == 1:  # `1/2 or 0.5` is one answer
        values = values[:1]
    if len(values) == 1:
        kind = "group" if isinstance(values[0], Group) else "value"
        return Form(kind, values[0], of.names, of.left, units, letters=letters)
    return Form("list", values, of.names, of.left, units, letters=letters)
