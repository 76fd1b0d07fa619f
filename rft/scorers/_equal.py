"""Whether two final answers are equal: an exact path first, math-verify behind it.

Equal means equal as mathematics, whatever the form: 1/\\sqrt2 is \\sqrt2/2, and a factored polynomial
is its expansion. It doesn't mean equal as an answer in every respect, so what only looks equal is
not called so: another unit (5 cm, 5 m), a share against a percentage (0.5, 50%), a rounded decimal
(0.333, 1/3), a point against a list ((1,2); 1,2). These are None, with the reason from `compare`.
"""

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Hashable
from fractions import Fraction
from typing import Any

from rft.scorers import _math_poly as poly
from rft.scorers import _math_verify
from rft.scorers._math_form import Form, form_of
from rft.scorers._math_read import frozen, is_end
from rft.scorers._math_tokens import Group
from rft.scorers._math_words import NAMES

Told = tuple[bool | None, str | None]
"""Whether two answers are equal, and why that can't be told."""
ASK: Told = (None, None)
"""The exact path can't tell, math-verify may."""


def key(answer: str) -> Hashable | None:
    """A canonical exact form: answers with equal keys are surely equal.

    None where the exact path can't read the answer. Answers with different keys may still be equal
    (`5` and `5` with a unit; `\\sqrt{4x}` and `2\\sqrt x`): `same` tells.
    """
    form = form_of(answer)
    if not isinstance(form, Form):
        return None
    if isinstance(form.value, poly.Quotient) or form.kind == "undefined":
        return None
    return (form.kind, _hashed(form), form.units, form.left is not None and frozen(form.left))


def same(answer: str, gold: str) -> bool | None:
    """Whether two final answers are equal; None where that can't be told. May be slow where the
    exact path can't tell, so call it where there is a deadline."""
    return compare(answer, gold)[0]


@functools.lru_cache(maxsize=1 << 16)
def compare(answer: str, gold: str) -> Told:
    """`same`, and the reason where it is None: percent, rounded, units, brackets, name, repeated,
    commas, ratio, equation, text, too_big or unparsed."""
    told = exact(answer, gold)
    if told != ASK:
        return told
    got = _math_verify.equal(answer.strip(), gold.strip())
    return (got, None) if got is not None else (None, "unparsed")


def readable(gold: str) -> bool:
    """Whether a gold answer can be compared with at all."""
    form = form_of(gold)
    if isinstance(form, Form):
        return form.kind != "undefined"
    if form == "too_big" or not _math_verify.is_safe(gold):
        return False
    try:
        return _math_verify.parsed(gold) is not None
    except Exception:
        return False


_KNOWN = re.compile(
    r"(?:[\s\d.,+\-*/^(){}\[\]a-zA-Z=$&]|\\[,;! \\{}]"
    r"|\\(?:[dtc]?frac|sqrt|pi|infty|cdot|times|left|right|cup|pm|text|begin|end|circ)(?![a-zA-Z]))*"
)
"""What the exact path knows every sign of: if it can't read that, it is broken or ambiguous, and
nothing that a guess of math-verify's should decide."""


def exact(answer: str, gold: str) -> Told:
    """What the exact path says; ASK where it can't tell."""
    one, two = form_of(answer), form_of(gold)
    if isinstance(one, str) or isinstance(two, str):
        return None, "too_big"
    if one is None or two is None:
        if answer.strip() == gold.strip():  # it needn't be read to be the same
            return True, None
        unread = [text for text, form in ((answer, one), (gold, two)) if form is None]
        return (None, "unparsed") if any(map(_KNOWN.fullmatch, unread)) else ASK
    told = _forms(one, two)
    if told[0] is False:
        for a, b in ((one.other, two), (one, two.other)):
            if a is not None and b is not None and _forms(a, b)[0]:
                return None, "commas"
    return told


# Comparing --------------------------------------------------------------------------------------


def _hashed(form: Form) -> Hashable:
    if form.kind == "list":
        return frozenset(Counter(frozen(value) for value in form.value).items())
    if form.kind in ("value", "group", "union"):
        return frozen(form.value)
    if form.kind == "equation":
        return frozen(form.value)
    return form.value


def _forms(one: Form, two: Form) -> Told:
    """An answer and the gold one, with their units."""
    told = _bare(one, two)
    if one.units == two.units:
        return told
    if one.units and two.units:
        if told[0] is None and told != ASK:
            return told
        return None, "percent" if "%" in one.units | two.units else "units"
    if told[0] is False:
        return _by_unit(one, two, told)
    if told[0] and "%" in one.units and not isinstance(two.value, int):
        return None, "percent"  # 0.5% and 0.5, or a percent sign behind what is no number
    return told


def _by_unit(one: Form, two: Form, told: Told) -> Told:
    """One has a unit and the other has none: unequal numbers may mean the same."""
    if one.kind != "value" or two.kind != "value":
        return told
    with_unit, bare = (one, two) if one.units else (two, one)
    for unit, factor, reason in _MEANINGS:
        if unit in with_unit.units:
            decimals = with_unit.decimals and with_unit.decimals + 2
            scaled = Form("value", poly.multiply(with_unit.value, factor), decimals=decimals)
            if _values(scaled, bare) != (False, None):
                return None, reason
    return told


_MEANINGS: tuple[tuple[str, poly.Value, str], ...] = (
    ("%", Fraction(1, 100), "percent"),
    ("\u00b0", poly.multiply(Fraction(1, 180), poly.name("pi")), "units"),
)
"""What a unit may stand for: the factor, and the reason to give."""


def _bare(one: Form, two: Form) -> Told:
    """Two forms without their units."""
    if "undefined" in (one.kind, two.kind):
        return (False, None) if one.kind != two.kind else (None, "unparsed")
    if "choice" in (one.kind, two.kind):
        return _choices(one, two)
    if one.kind == two.kind == "text":
        return _texts(one, two)
    if "text" in (one.kind, two.kind):
        return _text_and_other(one, two)
    if "equation" in (one.kind, two.kind) or (one.left is not None and two.left is not None):
        return _equations(one, two)
    if one.kind != two.kind:
        return _kinds(one, two)
    if one.kind == "value":
        return _values(one, two)
    if one.kind in ("group", "union"):
        return _groups(one.value, two.value)
    if one.kind == "list":
        return _lists(one.value, two.value)
    if one.kind == "time":
        return _times(one.value, two.value), None
    if one.kind == "named":
        return (True, None) if one.value == two.value else ASK
    return one.value == two.value, None  # a ratio, or a number in another base


def _choices(one: Form, two: Form) -> Told:
    """A letter, or a letter with what it chooses, against that or the chosen alone."""
    if one.kind == two.kind:
        return one.value == two.value, None
    choice, other = (one, two) if one.kind == "choice" else (two, one)
    if choice.other is not None:
        return _forms(choice.other, other)
    if other.kind == "value" and frozen(other.value) == frozen(poly.name(choice.value.lower())):
        return None, "text"
    return (None, "text") if choice.value in str(other.value).split() else (False, None)


def _times(one: tuple[int, int, str], two: tuple[int, int, str]) -> bool:
    """Whether 1:03, 1:03 pm or 13:03 are the same."""
    (h1, m1, half1), (h2, m2, half2) = one, two
    if half1 and half2:
        return one == two
    if not half1 and not half2:
        return (h1, m1) == (h2, m2)
    (hour, half), bare = ((h1, half1), h2) if half1 else ((h2, half2), h1)
    return m1 == m2 and bare in (hour, hour % 12 + (12 if half == "p" else 0))


def _values(one: Form, two: Form) -> Told:
    got = poly.equal(one.value, two.value)
    if got is not False:
        return (got, None) if got else ASK
    for short, long in ((one, two), (two, one)):
        if short.decimals and (long.decimals is None or long.decimals > short.decimals + 2):
            try:
                gap = abs(poly.evaluate(short.value, 0) - poly.evaluate(long.value, 0))
            except (ArithmeticError, ValueError, TypeError, LookupError):
                return False, None
            if gap <= 0.500001 * 10.0**-short.decimals:
                return None, "rounded"
    return False, None


def _groups(one: Group, two: Group) -> Told:
    if frozen(one) == frozen(two):
        return True, None
    if "union" in (one.tag, two.tag):
        return (False, None) if _is_plain(one) and _is_plain(two) else ASK
    if len(one.items) != len(two.items):
        return False, None
    told = [_item(a, b) for a, b in zip(one.items, two.items, strict=True)]
    if any(t[0] is False for t in told):
        return False, None
    if one.tag != two.tag:
        if any(_is_interval(group, surely=True) for group in (one, two)):
            return False, None
        # (1, 2) and [1, 2] are different intervals, but may be meant as the same point or vector.
        return None, "brackets"
    return next((t for t in told if t[0] is None), (True, None))


def _is_interval(group: Group, surely: bool = False) -> bool:
    """surely: it can't be meant as a point or a list, since it is open at one side or has no end."""
    if group.tag not in ("()", "[]", "(]", "[)") or len(group.items) != 2:
        return False
    if surely and group.tag in ("()", "[]"):
        return any(_end(item) in (math.inf, -math.inf) for item in group.items)
    low, high = map(_end, group.items)
    return low < high


def _end(value: Any) -> float:
    """The end of an interval as a float; nan where it is none."""
    if isinstance(value, Group) or not is_end(value):
        return math.nan
    if isinstance(value, dict) and any(("infinity", 1) in names for _, _, names in value):
        return math.inf if next(iter(value.values())) > 0 else -math.inf
    try:
        return poly.evaluate(value, 0).real
    except (ArithmeticError, ValueError, TypeError, LookupError):
        return math.nan


def _is_plain(group: Group) -> bool:
    """Whether an interval, or a union of them, is written in its only form: no two that touch."""
    parts = group.items if group.tag == "union" else (group,)
    if not all(isinstance(part, Group) and _is_interval(part) for part in parts):
        return False
    ends = sorted((_end(part.items[0]), _end(part.items[1])) for part in parts)
    # Two that share an end touch only if one of them is closed there.
    return all(
        high < low - 1e-9 or (high == low and {part.tag for part in parts} == {"()"})
        for (_, high), (low, _) in itertools.pairwise(ends)
    )


def _item(a: Any, b: Any) -> Told:
    if isinstance(a, Group) and isinstance(b, Group):
        return _groups(a, b)
    if isinstance(a, Group) or isinstance(b, Group):
        return False, None
    got = poly.equal(a, b)
    return (got, None) if got is not None else ASK


def _lists(one: tuple[Any, ...], two: tuple[Any, ...]) -> Told:
    a, b = Counter(map(frozen, one)), Counter(map(frozen, two))
    if a == b:
        return True, None
    if set(a) == set(b):
        return None, "repeated"
    left = [v for v in one if frozen(v) not in b]
    right = [v for v in two if frozen(v) not in a]
    unsure = [v for v in left + right if isinstance(v, Group | poly.Quotient) or poly.is_opaque(v)]
    if len(one) != len(two) and not unsure:
        return False, None
    # A member that equals none of the others, in any form.
    for mine, others in ((left, right), (right, left)):
        for v in mine:
            if all(_item(v, w)[0] is False for w in others):
                return False, None
    return ASK


def _kinds(one: Form, two: Form) -> Told:
    """Forms of different kinds."""
    kinds = {one.kind, two.kind}
    if kinds == {"list", "group"}:
        items = (one if one.kind == "group" else two).value.items
        values = (one if one.kind == "list" else two).value
        if _lists(items, values)[0] is False:
            return False, None
        return None, "brackets"  # a point, or two answers?
    if kinds == {"list", "union"}:
        return None, "brackets"
    if kinds == {"group", "union"}:
        return _groups(one.value, two.value)
    if "base" in kinds:
        based, other = (one, two) if one.kind == "base" else (two, one)
        digits, base = based.value
        if other.kind != "value" or not isinstance(other.value, int):
            return ASK if other.kind == "value" else (False, None)
        if digits == str(other.value):
            return None, "base"
        try:
            return (None, "base") if int(digits, base) == other.value else (False, None)
        except ValueError:
            return False, None
    if "ratio" in kinds or "time" in kinds:
        return None, "ratio"
    if "named" in kinds:
        return ASK
    return False, None


def _equations(one: Form, two: Form) -> Told:
    if one.left is not None and two.left is not None:
        if one.kind != two.kind:
            return _kinds(one, two)
        told = _bare(_unnamed(one), _unnamed(two))
        if one.names == two.names and told[0] is not False:
            return told
        if told[0] and one.kind == "value":
            return None, "name"
        if one.kind != "value":
            return told if one.names == two.names else (None, "name")
    a, b = _zero(one), _zero(two)
    if a is None or b is None:
        return None, "equation"
    if frozen(a) == frozen(b):
        return True, None
    if not isinstance(a, dict) or not isinstance(b, dict):
        return ASK
    mono = next(iter(a))
    if mono in b:
        scale = Fraction(b[mono]) / a[mono]
        if frozen(poly.multiply(a, scale)) == frozen(b):
            return True, None
    return (False, None) if _is_linear(a) and _is_linear(b) else ASK


def _unnamed(form: Form) -> Form:
    return Form(form.kind, form.value, units=form.units, decimals=form.decimals)


def _zero(form: Form) -> Any:
    """What an equation says is zero; None for an answer that is no equation."""
    if form.kind == "equation":
        return form.value
    if form.left is None or form.kind != "value":
        return None
    return poly.add(form.left, poly.negate(form.value))


def _is_linear(terms: poly.Terms) -> bool:
    return all(
        sum(power for _, power in names) <= 1
        and all(isinstance(atom, str) and power == 1 for atom, power in names)
        for _, _, names in terms
    )


def _texts(one: Form, two: Form) -> Told:
    if one.value == two.value:
        return True, None
    a, b = set(str(one.value).lower().split()), set(str(two.value).lower().split())
    return (None, "text") if a <= b or b <= a or one.letters == two.letters else (False, None)


def _text_and_other(one: Form, two: Form) -> Told:
    """A word against a formula: letters side by side may be a word that was not set as text."""
    text, other = (one, two) if one.kind == "text" else (two, one)
    if other.kind == "value" and isinstance(other.value, dict):
        if text.letters == other.letters:
            is_choice = len(text.letters) == 1
            return (
                (None, "text")
                if is_choice and frozen(other.value) != frozen(poly.name(str(text.value)))
                else (True, None)
            )
        return (None, "text") if sorted(text.letters) == sorted(other.letters) else (False, None)
    if str(text.value) in NAMES:
        return None, "text"
    return (None, "text") if other.letters == text.letters and text.letters else (False, None)
