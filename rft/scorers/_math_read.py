"""From the text of a final answer to its clauses: values with commas, `and` or `or` between them,
each with what stands beside it, a name (`x =`), a relation or a unit.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from rft.scorers._math_poly import TooBig, Unreadable, freeze, is_number, name, negate, opaque
from rft.scorers._math_tokens import INFINITY, RELATIONS, Group, tokens_of
from rft.scorers._math_values import Reader


@dataclass(slots=True)
class Clause:
    """One member of an answer: a value, with the name and unit written beside it."""

    value: Any
    """A Value or a Group."""
    left: Any = None
    """What stands on the other side of `=`."""
    units: tuple[str, ...] = ()


def answer(reader: Reader) -> list[Clause]:
    """Everything: clauses with commas, `and` or `or` between them."""
    clauses = [clause(reader)]
    while reader.separator():
        clauses.append(clause(reader))
    if reader.peek():
        raise Unreadable
    return clauses


def clause(reader: Reader) -> Clause:
    reader.units = []
    sides = [called(reader) or reader.union()]
    relations: list[str] = []
    while (found := RELATIONS.get(reader.peek().lstrip("\\"))) is not None:
        reader.at += 1
        relations.append(found)
        sides.append(reader.union())
    units = tuple(reader.units)
    if not relations:
        return Clause(sides[0], None, units)
    if all(r == "=" for r in relations):
        return Clause(sides[-1], sides[0], units)
    if relations == ["in"]:
        return Clause(sides[1], sides[0], units)
    return inequality(sides, relations, units)


def called(reader: Reader) -> Any:
    """`f(x)` or `f^{-1}(x)` before an equals sign, which elsewhere is a product."""
    ahead = "".join(token for token, _ in reader.tokens[reader.at : reader.at + 10])
    match = re.match(r"([a-zA-Z])(\^\{?-1\}?)?\(([a-zA-Z])\)=", ahead)
    if not match:
        return None
    reader.at += len(match[0]) - 1  # here every token is one character
    return opaque(match[1] + ("~" if match[2] else ""), name(match[3]))


def inequality(sides: list[Any], relations: list[str], units: tuple[str, ...]) -> Clause:
    if all(r.startswith(">") for r in relations):
        sides, relations = sides[::-1], [r.replace(">", "<") for r in relations[::-1]]
    if any(not r.startswith("<") for r in relations) or any(isinstance(s, Group) for s in sides):
        raise Unreadable
    if len(sides) == 2:
        if is_name(sides[0]) and is_end(sides[1]):
            sides, relations = [negate(INFINITY), *sides], ["<", *relations]
        elif is_name(sides[1]) and is_end(sides[0]):
            sides, relations = [*sides, INFINITY], [*relations, "<"]
    if len(sides) != 3 or not (is_name(sides[1]) and is_end(sides[0]) and is_end(sides[2])):
        raise Unreadable
    opening = "[" if relations[0] == "<=" else "("
    closing = "]" if relations[1] == "<=" else ")"
    return Clause(Group(opening + closing, (sides[0], sides[2])), sides[1], units)


def is_name(value: Any) -> bool:
    """Whether a value is one variable."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    ((radicand, imaginary, names), factor) = next(iter(value.items()))
    if radicand != 1 or imaginary or factor != 1 or len(names) != 1:
        return False
    ((atom, exponent),) = names
    return exponent == 1 and isinstance(atom, str) and atom not in ("pi", "infinity", "\u00b0")


def is_end(value: Any) -> bool:
    """Whether a value can end an interval: a number without variables."""
    if is_number(value):
        return True
    return isinstance(value, dict) and all(
        not imaginary and all(atom in ("pi", "e", "infinity") for atom, _ in names)
        for _, imaginary, names in value
    )


def read(text: str) -> list[Clause]:
    """The clauses of a cleaned answer, both values of each `\\pm`. Raises Unreadable or TooBig."""
    tokens = tokens_of(text)
    if not tokens or len(tokens) > 400:
        raise Unreadable if not tokens else TooBig
    clauses = answer(Reader(list(tokens)))
    if any(token in ("\\pm", "\\mp") for token, _ in tokens):
        other = answer(Reader(list(tokens), -1))
        pairs = zip(clauses, other, strict=True)
        clauses = [
            c
            for pair in pairs
            for c in pair[: 1 + (frozen(pair[0].value) != frozen(pair[1].value))]
        ]
    return clauses


def frozen(value: Any) -> Hashable:
    """A hashable form of a value or a group, with the members of sets in no order."""
    if isinstance(value, Group):
        items = [frozen(item) for item in value.items]
        if value.tag in ("{}", "union"):
            return (value.tag, frozenset(items), len(items))
        return (value.tag, *items)
    return freeze(value)
