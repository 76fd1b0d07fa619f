"""One value of an answer, read from LaTeX or plain text: a number, an expression, a point, a matrix.

It reads what it surely understands and refuses the rest (`Unreadable`), which then goes to
math-verify. Nothing is evaluated but by the bounded arithmetic of `_math_poly`.
"""

import math
import re
from fractions import Fraction
from typing import Any

from rft.scorers._math_commands import command, fail, letters
from rft.scorers._math_poly import (
    TooBig,
    Unreadable,
    Value,
    add,
    divide,
    is_number,
    multiply,
    name,
    negate,
    opaque,
    power,
)
from rft.scorers._math_tokens import CLOSE, INFINITY, OPEN, PLAIN, RELATIONS, Group
from rft.scorers._math_units import UNITS

DEEPEST = 24
"""Levels of nesting that are read."""
VECTORS = ("matrix", "row", "()")
"""Groups that can be multiplied by a number."""


class Reader:
    """Recursive descent over the tokens of one answer. sign: which of the two a `\\pm` stands for."""

    def __init__(self, tokens: list[tuple[str, bool]], sign: int = 1) -> None:
        self.tokens = tokens
        self.at = 0
        self.sign = sign
        self.depth = 0
        self.units: list[str] = []

    def peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise Unreadable
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable

    def separator(self) -> bool:
        start = self.at
        while self.peek() in (",", ";", "and", "or"):
            self.at += 1
        return self.at > start and bool(self.peek())

    def union(self) -> Any:
        parts = [self.sum()]
        while self.peek() in ("\\cup", "\\bigcup"):
            self.at += 1
            parts.append(self.sum())
        if len(parts) == 1:
            return parts[0]
        if not all(isinstance(part, Group) and part.tag != "matrix" for part in parts):
            raise Unreadable
        return Group("union", tuple(parts))

    # Arithmetic ---------------------------------------------------------------------------------

    def sum(self) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise TooBig
        total: Any = None
        while True:
            token = self.peek()
            sign = {"+": 1, "-": -1, "\\pm": self.sign, "\\mp": -self.sign}.get(token)
            if sign is not None:
                self.at += 1
            elif total is not None:
                self.depth -= 1
                return total
            term = self.product()
            if isinstance(term, Group):
                if total is not None or (sign is not None and term.tag not in VECTORS):
                    raise Unreadable
                total = self.scale(-1, term) if sign == -1 else term
                continue
            if isinstance(total, Group):
                raise Unreadable
            term = negate(term) if sign == -1 else term
            total = term if total is None else add(total, term)

    def product(self) -> Any:
        value = self.factor()
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times", "\\ast"):
                self.at += 1
                value = self.scale(value, self.signed())
            elif token in ("/", "\\div"):
                self.at += 1
                below = self.signed()
                if isinstance(value, Group) or isinstance(below, Group):
                    raise Unreadable
                value = divide(value, below)
            elif unit := self.unit():
                self.units.append(unit)
                if self.peek() and not self.ends():
                    raise Unreadable
            elif not token or self.ends() or token in ("+", "-", "\\pm", "\\mp", "|"):
                return value
            elif self.starts_number():
                value = self.mixed(value)
            else:
                value = self.scale(value, self.factor())

    def scale(self, a: Any, b: Any) -> Any:
        if isinstance(a, Group):
            a, b = b, a
        if isinstance(a, Group):
            raise Unreadable
        if not isinstance(b, Group):
            return multiply(a, b)
        if b.tag not in VECTORS:
            raise Unreadable
        return Group(b.tag, tuple(self.scale(a, item) for item in b.items))

    def signed(self) -> Any:
        if self.peek() == "-":
            self.at += 1
            return negate(self.number_only(self.factor()))
        return self.factor()

    def number_only(self, value: Any) -> Any:
        if isinstance(value, Group):
            raise Unreadable
        return value

    def ends(self) -> bool:
        token = self.peek()
        return (
            token in (",", ";", "and", "or", "}", "&", "\\\\", "\\cup", "\\end", "\\rfloor")
            or token in CLOSE
            or token in ("\\rceil", "\\bigcup", ":")
            or token.lstrip("\\") in RELATIONS
        )

    def starts_number(self) -> bool:
        """Whether a fraction or number follows a value without a sign: a mixed number, or nothing."""
        return self.peek()[:1].isdigit() or self.peek() in ("\\frac", ".")

    def mixed(self, whole: Any) -> Any:
        """`1\\frac{2}{3}` and `1 2/3`, which are sums; a product such as `2\\frac{x}{3}` else."""
        before = self.tokens[self.at - 1][0]
        after_digits = before.isdigit() and (
            self.at < 2
            or self.tokens[self.at - 2][0] not in ("^", "_", "\\frac", "\\sqrt", "/", "*")
        )
        if self.peek() == "\\frac":
            part = self.factor()
            if after_digits and is_number(part) and is_number(whole):
                if not 0 < part < 1:
                    raise Unreadable
                return add(whole, part) if whole >= 0 else add(whole, -part)
            return self.scale(whole, part)
        if before == ")":  # `(1+2i)6`
            return self.scale(whole, self.factor())
        if not (after_digits and is_number(whole) and whole.denominator == 1):
            raise Unreadable
        top = self.take()
        self.expect("/")
        bottom = self.take()
        if not (top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom)):
            raise Unreadable
        return add(whole, Fraction(int(top), int(bottom)))

    def unit(self) -> str | None:
        """A unit or a word after a value: `\\text{ cm}^2`, `cm`, `dollars`."""
        token = self.peek()
        text = " ".join(token[1:-1].split()) if token[:1] == "\x01" else token
        if token[:1] != "\x01":
            is_word = token.isalpha() and len(token) > 1 and token not in ("and", "or")
            spaced = is_word and self.tokens[self.at][1] and len(token) > 2
            if not is_word or not (token.lower() in UNITS or spaced) or token in PLAIN:
                return None
        elif text in ("and", "or", ""):
            return None
        self.at += 1
        while token[:1] != "\x01" and self.peek().isalpha() and self.peek() not in ("and", "or"):
            text += " " + self.take()
        if self.peek() == "^":
            self.at += 1
            braced = self.peek() == "{"
            text += " ^" + self.take() if not braced else " ^" + self.tokens[self.at + 1][0]
            self.at += 3 if braced else 0
        if self.peek() == "/":  # km/h
            self.at += 1
            text += "/" + self.take().strip("\x01\x02 ")
        return text if re.fullmatch(r"[a-zA-Z .,^0-9/'()-]+", text) and text else fail()

    def factor(self) -> Any:
        value = self.primary()
        while True:
            token = self.peek()
            if token == "!":
                self.at += 1
                value = self.factorial(value)
            elif token in ("^", "**"):
                self.at += 1
                if self.peek() == "\\circ" or (
                    self.peek() == "{" and self.tokens[self.at + 1 :][:1] == [("\\circ", False)]
                ):
                    self.at += 3 if self.peek() == "{" else 1
                    value = self.scale(value, name("\u00b0"))
                    continue
                exponent = self.argument()
                if isinstance(value, Group):
                    raise Unreadable
                value = power(value, exponent)
            elif token == "\\degree":
                self.at += 1
                value = self.scale(value, name("\u00b0"))
            elif token in ("%", "\\%"):
                self.at += 1
                self.units.append("%")
                if self.peek() and not self.ends():
                    raise Unreadable
            else:
                return value

    def factorial(self, value: Any) -> Value:
        if not isinstance(value, int):
            raise Unreadable
        if value < 0 or self.peek() == "!":
            raise Unreadable
        if value > 2500:
            raise TooBig
        return math.factorial(value)

    def argument(self) -> Any:
        """What a command or `^` takes: a group in braces, one digit, one letter, or a command."""
        token = self.peek()
        if token == "{":
            self.at += 1
            value = self.number_only(self.sum())
            self.expect("}")
            return value
        if token == "-":  # `x^-1`
            self.at += 1
            return negate(self.argument())
        if token.isdigit() and len(token) > 1:
            before = self.tokens[self.at - 1][0]
            if before in ("^", "**"):  # plain text: `2^10`
                self.at += 1
                return int(token)
            if before == "\\sqrt":  # `\sqrt10` is 0 for LaTeX, and the root of 10 for its author
                raise Unreadable
            self.tokens[self.at : self.at + 1] = [(digit, False) for digit in token]
        return self.number_only(self.primary())

    def primary(self) -> Any:
        token, _ = self.tokens[self.at] if self.at < len(self.tokens) else ("", False)
        self.at += 1
        if token[:1].isdigit() or token[:1] == ".":
            return self.number(token)
        if token in OPEN:
            return self.brackets(token)
        if token == "{":
            value = self.sum()
            self.expect("}")
            return value
        if token in ("|", "\\lvert", "\\vert"):
            value = self.number_only(self.sum())
            self.expect({"|": "|", "\\lvert": "\\rvert", "\\vert": "\\vert"}[token])
            return abs(value) if isinstance(value, int | Fraction) else opaque("abs", value)
        if token[:1] == "\\":
            return command(self, token[1:])
        if token.isalpha():
            return letters(self, token)
        raise Unreadable

    def number(self, token: str) -> Value:
        if self.peek() == "\\overline" and "." in token:
            self.at += 1
            repeated = self.repeating()
            digits = len(token.partition(".")[2])
            unit = Fraction(1, 10**digits)
            return Fraction(token if token[-1] != "." else token + "0") + unit * Fraction(
                int(repeated), 10 ** len(repeated) - 1
            )
        if token.isdigit():
            return int(token)
        value = Fraction(token if token[-1] != "." else token[:-1])
        return value.numerator if value.denominator == 1 else value

    def repeating(self) -> str:
        self.expect("{")
        digits = self.take()
        self.expect("}")
        return digits if digits.isdigit() else fail()

    def brackets(self, opening: str) -> Any:
        items = [self.union()]
        while self.separator():
            items.append(self.union())
        closing = self.take()
        if closing not in CLOSE:
            raise Unreadable
        tag = (opening + closing).replace("\\lbrace", "{").replace("\\rbrace", "}")
        tag = tag.replace("\\", "")
        if len(items) == 1 and tag in ("()", "[]"):
            return items[0]
        if tag not in ("()", "[]", "(]", "[)", "{}", "langlerangle"):
            raise Unreadable
        tag = "()" if tag == "langlerangle" else tag
        if len(items) == 2 and tag != "{}":  # sloppy: nothing is closed at infinity
            first = "(" if items[0] in (INFINITY, negate(INFINITY)) else tag[0]
            tag = first + (")" if items[1] == INFINITY else tag[-1])
        elif tag in ("(]", "[)"):
            raise Unreadable
        return Group(tag, tuple(items))
