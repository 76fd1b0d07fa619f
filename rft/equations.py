"""Reads the equations out of a text, as a key of the way it calculates.

Numbers count by value, and `x` and a middle dot as `*`. With `commutative` the operands of a sum or
a product are sorted, so that 3 + 4 = 7 and 4 + 3 = 7 are one equation.
"""

import functools
import re
from fractions import Fraction

_EQUATION = re.compile(r"([-+*/().\d ]{1,200})=[ ]*(-?\d[\d.]*)")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[-+*/()]")


def equations(text: str, commutative: bool = True) -> tuple[str, ...]:
    """Canonical forms of a text's equations, such as `(3+4)=7`, in the text's order."""
    text = text.replace("\u00d7", "*").replace("\u00b7", "*").replace("\u00f7", "/")
    text = text.replace("\u2212", "-").replace(",", "").replace("$", "")
    text = re.sub(r"(?<=[\d)\s])[xX](?=[\d(\s])", "*", text)
    found = (
        # Texts of one prompt share most equations. A hostile one may be long: it is not remembered.
        (_equation if len(right) < 40 else _equation.__wrapped__)(left, right, commutative)
        for left, right in _EQUATION.findall(text)
    )
    return tuple(e for e in found if e)


@functools.lru_cache(maxsize=8192)
def _equation(left: str, right: str, commutative: bool) -> str | None:
    """The canonical form of one equation; None where nothing is calculated."""
    tokens = _TOKEN.findall(left)
    if not any(t in "+-*/" for t in tokens):
        return None
    # `2. 3 + 4 = 7`: what stands before the calculation is the number of a list.
    trees = (_parse(tokens[i:]) for i in range(len(tokens)))
    tree = next((t for t in trees if isinstance(t, tuple)), None)
    shown = _canonical(tree, commutative) if tree else "".join(map(_number, tokens))
    return f"{shown}={_number(right.rstrip('.'))}"


def _number(token: str) -> str:
    try:
        return str(Fraction(token))
    except ValueError:
        return token


Tree = str | tuple[str, "Tree", "Tree"]


def _parse(tokens: list[str]) -> "Tree | None":
    """Precedence climbing over + - * / and brackets; None if the text is no whole expression."""
    position = 0

    def atom(depth: int) -> "Tree | None":
        nonlocal position
        if position >= len(tokens) or depth > 40:
            return None
        token = tokens[position]
        position += 1
        if token == "(":
            inner = level(0, depth + 1)
            if inner is None or position >= len(tokens) or tokens[position] != ")":
                return None
            position += 1
            return inner
        if token == "-":
            inner = atom(depth + 1)
            return None if inner is None else ("-", "0", inner)
        return None if token in "+*/)" else _number(token)

    def level(rank: int, depth: int) -> "Tree | None":
        nonlocal position
        if rank == 2:
            return atom(depth)
        tree = level(rank + 1, depth)
        while (
            tree is not None and position < len(tokens) and tokens[position] in ("+-", "*/")[rank]
        ):
            operator = tokens[position]
            position += 1
            right = level(rank + 1, depth)
            tree = None if right is None else (operator, tree, right)
        return tree

    tree = level(0, 0)
    return tree if position == len(tokens) else None


def _canonical(tree: "Tree", commutative: bool) -> str:
    if isinstance(tree, str):
        return tree
    operator, left, right = tree
    if operator in "+*":
        # A chain of one operator is flat, so that (1 + 2) + 3 and 1 + (2 + 3) are the same.
        terms = [_canonical(t, commutative) for t in _flat(operator, tree)]
        return "(" + operator.join(sorted(terms) if commutative else terms) + ")"
    return f"({_canonical(left, commutative)}{operator}{_canonical(right, commutative)})"


def _flat(operator: str, tree: "Tree") -> list["Tree"]:
    if isinstance(tree, tuple) and tree[0] == operator:
        return [*_flat(operator, tree[1]), *_flat(operator, tree[2])]
    return [tree]
