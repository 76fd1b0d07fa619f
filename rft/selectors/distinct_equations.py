"""Keeps one candidate for each distinct way of calculating.

The RFT paper (arXiv 2308.01825, section 3.2) keeps a sampled path only if its list of equations is
new, and finds that the number of distinct paths, not of samples, carries the gain. Here the key is
the set of a text's equations in canonical form: numbers by value, `x` and a middle dot as `*`,
operands of a sum or a product sorted, so that 3 + 4 = 7 and 4 + 3 = 7 are one way unless
`commutative: false` says otherwise.
"""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction

from rft.types import Choice, Group

_EQUATION = re.compile(r"([-+*/().\d ]{1,200})=[ ]*(-?\d[\d.]*)")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[-+*/()]")


def distinct_equations(groups: Iterable[Group], *, commutative: bool = True) -> Iterator[Choice]:
    """Drops a candidate as `same_equations` if an earlier one of its prompt has the same equations.

    References come first in a group, so a sample that repeats the reference's way is dropped. A
    text without equations is compared by its words.

    commutative: count 3 + 4 = 7 and 4 + 3 = 7 as the same equation.
    """
    for group in groups:
        seen: set[frozenset[str]] = set()
        for row in group.rows:
            found = equations(row.candidate.text, commutative)
            key = found or frozenset([" ".join(row.candidate.text.split())])
            yield row, "same_equations" if key in seen else None
            seen.add(key)


def equations(text: str, commutative: bool = True) -> frozenset[str]:
    """Canonical forms of the equations in a text, such as `3+4=7`."""
    text = text.replace("\u00d7", "*").replace("\u00b7", "*").replace("\u00f7", "/")
    text = text.replace("\u2212", "-").replace(",", "").replace("$", "")
    text = re.sub(r"(?<=[\d)\s])[xX](?=[\d(\s])", "*", text)
    found = set()
    for left, right in _EQUATION.findall(text):
        tokens = _TOKEN.findall(left)
        if any(t in "+-*/" for t in tokens):
            # `2. 3 + 4 = 7`: what stands before the calculation is the number of a list.
            trees = (_parse(tokens[i:]) for i in range(len(tokens)))
            tree = next((t for t in trees if isinstance(t, tuple)), None)
            shown = _canonical(tree, commutative) if tree else "".join(map(_number, tokens))
            found.add(f"{shown}={_number(right.rstrip('.'))}")
    return frozenset(found)


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
