"""Exact arithmetic for answers: sums of rational * sqrt(n) * i^k * names, and quotients of them.

Square roots of different square-free numbers are linearly independent over the rationals, so two
values without functions are equal if and only if their terms are the same: no tolerance and no
simplifier. What has no such form (`\\cos 58^\\circ`, `\\sqrt{x-3}`, `2^n`) is kept as a name of its
own, an opaque atom: equal atoms are equal, and a float at two points shows most unequal ones. Every
operation is bounded, so that a tower of powers is refused and not computed.
"""

import cmath
import math
import zlib
from collections.abc import Hashable
from fractions import Fraction
from typing import Any, NamedTuple

Mono = tuple[int, int, frozenset[tuple[Hashable, int]]]
"""Square-free radicand, power of i (0 or 1), and names with their powers."""
Terms = dict[Mono, Any]
ONE: Mono = (1, 0, frozenset())
IMAGINARY: Terms = {(1, 1, frozenset()): 1}

BITS = 40_000
"""The largest whole number that is computed; 2004! has 19,000 bits."""
TERMS = 400
"""The most terms of a product."""
SPLIT = 10**12
"""The largest radicand that is taken apart into primes."""


class Unreadable(Exception):
    """The exact path can't read an answer."""


class Undefined(Exception):
    """An answer that has no value, such as 1/0."""


class TooBig(Exception):
    """An answer that costs too much to compute, here or in sympy."""


class Quotient(NamedTuple):
    """What a sum of several terms divides."""

    top: Any
    bottom: Any


Value = int | Fraction | Terms | Quotient


def name(text: str) -> Terms:
    return {(1, 0, frozenset(((text, 1),))): 1}


def opaque(function: str, *args: Value) -> Terms:
    """A function of values as a name of its own."""
    return {(1, 0, frozenset((((function, *map(freeze, args)), 1),))): 1}


def freeze(value: Value) -> Hashable:
    """A hashable form; equal for equal values, but for quotients."""
    if isinstance(value, dict):
        return frozenset(value.items())
    if isinstance(value, Quotient):
        return (freeze(value.top), freeze(value.bottom))
    return value


def is_number(value: Any) -> bool:
    return isinstance(value, int | Fraction)


def is_opaque(value: Value) -> bool:
    if isinstance(value, Quotient):
        return is_opaque(value.top) or is_opaque(value.bottom)
    if not isinstance(value, dict):
        return False
    return any(isinstance(atom, tuple) for _, _, names in value for atom, _ in names)


def _terms(value: Any) -> Terms:
    if isinstance(value, dict):
        return value
    return {ONE: value} if value else {}


def _tidy(terms: Terms) -> Value:
    terms = {mono: factor for mono, factor in terms.items() if factor}
    if not terms:
        return 0
    if len(terms) > TERMS:
        raise TooBig
    return terms[ONE] if len(terms) == 1 and ONE in terms else terms


def _bits(number: int | Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def add(a: Value, b: Value) -> Value:
    if isinstance(a, Quotient) or isinstance(b, Quotient):
        (p, q), (r, s) = _parts(a), _parts(b)
        return divide(add(multiply(p, s), multiply(r, q)), multiply(q, s))
    if not isinstance(a, dict) and not isinstance(b, dict):
        return a + b
    out = dict(_terms(a))
    for mono, factor in _terms(b).items():
        out[mono] = out.get(mono, 0) + factor
    return _tidy(out)


def _parts(value: Value) -> Quotient:
    return value if isinstance(value, Quotient) else Quotient(value, 1)


def negate(value: Value) -> Value:
    return multiply(-1, value)


def multiply(a: Value, b: Value) -> Value:
    if isinstance(a, Quotient) or isinstance(b, Quotient):
        (p, q), (r, s) = _parts(a), _parts(b)
        return divide(multiply(p, r), multiply(q, s))
    if not isinstance(a, dict) and not isinstance(b, dict):
        if _bits(a) + _bits(b) > BITS:
            raise TooBig
        return a * b
    left, right = _terms(a), _terms(b)
    if len(left) * len(right) > TERMS * 4:
        raise TooBig
    out: Terms = {}
    for (r1, i1, n1), f1 in left.items():
        for (r2, i2, n2), f2 in right.items():
            if _bits(f1) + _bits(f2) > BITS:
                raise TooBig
            factor = f1 * f2
            common = math.gcd(r1, r2)
            radicand = r1 * r2 // (common * common)
            factor *= common
            if i1 and i2:
                factor = -factor
            names = _join(n1, n2) if n1 and n2 else n1 or n2
            mono = (radicand, i1 ^ i2, names)
            out[mono] = out.get(mono, 0) + factor
    return _tidy(out)


def _join(a: frozenset[Any], b: frozenset[Any]) -> frozenset[Any]:
    powers = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return frozenset((atom, power) for atom, power in powers.items() if power)


def divide(a: Value, b: Value) -> Value:
    if isinstance(b, Quotient):
        return divide(multiply(a, b.bottom), b.top)
    if isinstance(a, Quotient):
        return divide(a.top, multiply(a.bottom, b))
    if not b:
        raise Undefined
    if not isinstance(b, dict):
        if isinstance(a, dict):
            return multiply(a, Fraction(1, 1) / b)
        if isinstance(a, int) and isinstance(b, int) and a % b == 0:
            return a // b
        return Fraction(a) / b
    if len(b) == 1:
        ((radicand, imaginary, names), factor) = next(iter(b.items()))
        flipped = frozenset((atom, -power) for atom, power in names)
        factor = Fraction(-1 if imaginary else 1) / (factor * radicand)
        return multiply(a, {(radicand, imaginary, flipped): factor})
    if len(b) == 2 and not any(names for _, _, names in b):
        (mono, factor), (other, second) = b.items()
        conjugate: Terms = {mono: factor, other: -second}
        whole = multiply(b, conjugate)
        if is_number(whole):
            return multiply(a, divide(conjugate, whole))
    if freeze(a) == freeze(b):
        return 1
    return Quotient(a, b)


def power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, int):
        if isinstance(base, int | Fraction):
            if base not in (-1, 0, 1) and abs(exponent) * _bits(base) > BITS:
                raise TooBig
            if base == 0 and exponent <= 0:
                raise Undefined
            return _whole(Fraction(base) ** exponent) if exponent < 0 else base**exponent
        if exponent < 0:
            return divide(1, power(base, -exponent))
        if isinstance(base, dict) and len(base) == 1:
            ((radicand, imaginary, names), factor) = next(iter(base.items()))
            if exponent > 1000:
                raise TooBig
            out: Value = multiply(power(factor, exponent), power(radicand, exponent // 2))
            if imaginary and exponent % 4 >= 2:
                out = negate(out)
            rest = frozenset((atom, p * exponent) for atom, p in names)
            kept = (radicand if exponent % 2 else 1, imaginary * (exponent % 2), rest)
            return multiply(out, _tidy({kept: 1}) if exponent else 1)
        if exponent > 20:
            raise TooBig
        result: Value = 1
        for _ in range(exponent):
            result = multiply(result, base)
        return result
    if isinstance(exponent, Fraction) and is_number(base) and exponent.denominator <= 12:
        return root(power(base, exponent.numerator), exponent.denominator)
    return opaque("pow", base, exponent)


def root(value: Value, degree: int) -> Value:
    """The real root, or i times one; opaque where it has no exact form."""
    if not isinstance(value, int | Fraction) or not 2 <= degree <= 12:
        return opaque("pow", value, Fraction(1, degree))
    if value < 0:
        if degree == 2:
            return multiply(IMAGINARY, root(-value, 2))
        if degree % 2:
            return negate(root(-value, degree))
        return opaque("pow", value, Fraction(1, degree))
    below = value.denominator
    whole, rest = _split(value.numerator * below ** (degree - 1), degree)
    outside = Fraction(whole, below)
    if rest == 1:
        return _whole(outside)
    if degree == 2:
        return _tidy({(rest, 0, frozenset()): _whole(outside)})
    return multiply(_whole(outside), opaque("pow", rest, Fraction(1, degree)))


def _whole(number: Fraction) -> int | Fraction:
    return number.numerator if number.denominator == 1 else number


def _split(number: int, degree: int) -> tuple[int, int]:
    """(a, b) with a^degree * b = number, and b without such powers."""
    if number == 0:
        return 0, 1
    outside, inside, prime = 1, 1, 2
    if number > SPLIT:
        exact = round(number ** (1 / degree)) if number < 10**300 else 0
        for guess in (exact - 1, exact, exact + 1):
            if guess > 0 and guess**degree == number:
                return guess, 1
        raise Unreadable
    while prime**degree <= number:
        count = 0
        while number % prime == 0:
            number //= prime
            count += 1
        outside *= prime ** (count // degree)
        inside *= prime ** (count % degree)
        if prime > 10_000:  # what is left has at most two more primes
            exact = math.isqrt(number)
            if degree == 2 and exact * exact == number:
                return outside * exact, inside
            if degree == 2:
                break
        prime += 1 if prime == 2 else 2
    return outside, inside * number


def equal(a: Value, b: Value) -> bool | None:
    """Whether two values are equal; None where that takes more than exact arithmetic."""
    if freeze(a) == freeze(b):
        return True
    try:
        if isinstance(a, Quotient) or isinstance(b, Quotient):
            (p, q), (r, s) = _parts(a), _parts(b)
            if freeze(multiply(p, s)) == freeze(multiply(r, q)):
                return True
    except TooBig:
        return None
    if not is_opaque(a) and not is_opaque(b):
        return False
    for point in (0, 1):
        try:
            one, two = evaluate(a, point), evaluate(b, point)
        except (ArithmeticError, ValueError, TypeError, LookupError):
            return None
        size = max(abs(one), abs(two))
        if not math.isfinite(size):
            return None
        if abs(one - two) > 1e-7 * max(size, 1e-3):
            return False
    return None


def evaluate(value: Any, point: int) -> complex:
    """A float for a value or a frozen one, each name at a number between 0.5 and 1.5."""
    if isinstance(value, int | Fraction):
        return complex(float(value))
    if isinstance(value, tuple):
        return evaluate(value[0], point) / evaluate(value[1], point)
    total = 0j
    for (radicand, imaginary, names), factor in value.items() if isinstance(value, dict) else value:
        term = complex(float(factor) * math.sqrt(radicand)) * (1j if imaginary else 1)
        for atom, exponent in names:
            term *= _atom(atom, point) ** exponent
        total += term
    return total


_CONSTANTS = {"pi": math.pi, "e": math.e, "\u00b0": math.pi / 180}
_FUNCTIONS: dict[str, Any] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "ln": cmath.log,
    "log": lambda x, base=10: cmath.log(x) / cmath.log(base),
    "exp": cmath.exp,
    "pow": lambda base, exponent: base**exponent,
    "abs": lambda x: complex(abs(x)),
}


def _atom(atom: Any, point: int) -> complex:
    if isinstance(atom, tuple):
        return complex(_FUNCTIONS[atom[0]](*(evaluate(arg, point) for arg in atom[1:])))
    if atom in _CONSTANTS:
        return complex(_CONSTANTS[atom])
    return complex(0.5 + zlib.crc32(f"{atom} {point}".encode()) / 2**32)
