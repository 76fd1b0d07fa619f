"""The commands and letters of an answer: fractions, roots, functions, variables, matrices."""

import math
from typing import TYPE_CHECKING, Any

from rft.scorers._math_poly import (
    IMAGINARY,
    TooBig,
    Unreadable,
    Value,
    divide,
    name,
    opaque,
    power,
    root,
)
from rft.scorers._math_tokens import FUNCTIONS, GREEK, INFINITY, Group

if TYPE_CHECKING:
    from rft.scorers._math_values import Reader


def fail() -> Any:
    raise Unreadable


def letters(reader: "Reader", token: str) -> Value:
    if token in ("pi", "infinity", "inf", "infty"):
        return name("pi") if token == "pi" else INFINITY
    if token == "sqrt":
        return root(reader.number_only(reader.primary()), 2)
    if token in FUNCTIONS:
        return function(reader, token)
    if len(token) > 1:  # letters side by side are factors
        if len(token) > 4:
            raise Unreadable
        reader.at -= 1
        reader.tokens[reader.at : reader.at + 1] = [(letter, False) for letter in token]
        reader.at += 1
        token = token[0]
    return symbol(reader, token)


def symbol(reader: "Reader", letter: str) -> Value:
    if reader.peek() == "_":
        reader.at += 1
        letter += "_" + subscript(reader)
    elif letter == "i":
        return IMAGINARY
    if reader.peek() == "'":
        raise Unreadable
    if len(letter) == 1 and letter in "fgh" and reader.peek() == "(":
        reader.at += 1
        value = reader.number_only(reader.sum())
        reader.expect(")")
        return opaque(letter, value)
    return name(letter)


def subscript(reader: "Reader") -> str:
    token = reader.take()
    if token == "{":
        token = reader.take()
        reader.expect("}")
    if not token.strip("\x01\x02").isalnum():
        raise Unreadable
    return token.strip("\x01\x02")


def command(reader: "Reader", word: str) -> Any:
    if word == "frac":
        top = reader.argument()
        return divide(top, reader.argument())
    if word == "sqrt":
        return square_root(reader)
    if word in FUNCTIONS:
        return function(reader, word)
    if word in ("pi", "infty"):
        return name("pi") if word == "pi" else INFINITY
    if word in GREEK:
        return symbol(reader, word)
    if word == "begin":
        return matrix(reader)
    if word == "binom":
        top, bottom = reader.argument(), reader.argument()
        if not isinstance(top, int) or not isinstance(bottom, int) or not 0 <= bottom <= top:
            raise Unreadable
        if top > 2500:
            raise TooBig
        return math.comb(top, bottom)
    if word in ("overline", "vec", "mathbf", "hat"):
        reader.expect("{")
        inside = reader.take()
        reader.expect("}")
        return name(f"{word} {inside}") if inside.isalpha() else fail()
    raise Unreadable


def square_root(reader: "Reader") -> Value:
    degree = 2
    if reader.peek() == "[":
        reader.at += 1
        digits = reader.take()
        degree = int(digits) if digits.isdigit() and len(digits) < 3 else fail()
        reader.expect("]")
    return root(reader.argument(), degree)


def function(reader: "Reader", word: str) -> Value:
    exponent = 1
    args: list[Value] = []
    if word == "log" and reader.peek() == "_":
        reader.at += 1
        args = [reader.argument()]
    if reader.peek() == "^":
        reader.at += 1
        digits = reader.take()
        if digits not in ("2", "3", "4"):  # `\sin^{-1}` is read in two ways
            raise Unreadable
        exponent = int(digits)
    if reader.peek() == "(":
        value = reader.number_only(reader.primary())
    else:
        value = reader.number_only(reader.factor())
        while reader.peek() and not reader.ends() and follows(reader):
            value = reader.scale(value, reader.factor())
    return power(opaque(word, value, *args), exponent)


def follows(reader: "Reader") -> bool:
    """Whether the next token still belongs to the argument of `\\sin 3x`."""
    token = reader.peek()
    return token in ("\\pi", "\\frac") or (len(token) == 1 and token.isalpha())


def matrix(reader: "Reader") -> Group:
    kinds = ("pmatrix", "bmatrix", "Bmatrix", "matrix", "array")
    reader.expect("{")
    kind = reader.take()
    reader.expect("}")
    if kind not in kinds:
        raise Unreadable
    if kind == "array":
        reader.expect("{")
        while reader.take() != "}":
            pass
    rows: list[tuple[Any, ...]] = []
    row = [reader.number_only(reader.sum())]
    while True:
        token = reader.take()
        if token == "&":
            row.append(reader.number_only(reader.sum()))
            continue
        rows.append(tuple(row))
        if token == "\\\\" and reader.peek() != "\\end":
            row = [reader.number_only(reader.sum())]
        elif token in ("\\end", "\\\\"):
            break
        else:
            raise Unreadable
    if token == "\\\\":
        reader.expect("\\end")
    reader.expect("{")
    reader.expect(kind)
    reader.expect("}")
    if len({len(r) for r in rows}) != 1:
        raise Unreadable
    return Group("matrix", tuple(Group("row", r) for r in rows))
