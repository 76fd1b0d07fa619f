"""The tokens of an answer, and the words that LaTeX and plain text have for functions and signs."""

import re
from dataclasses import dataclass
from typing import Any

from rft.scorers._math_poly import Unreadable, name

_TOKEN = re.compile(
    r"(?P<space>\s*)(?:(?P<num>\d+\.?\d*|\.\d+)|\\(?P<cmd>[a-zA-Z]+|[{}|%\\#])|(?P<word>[a-zA-Z]+)"
    r"|(?P<text>\x01[^\x02]*\x02)|(?P<op>\*\*|<=|>=|!=|[-+*/^_(){}\[\],;:=<>!|%'&]))",
    re.ASCII,
)
FUNCTIONS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan"),
    *("sinh", "cosh", "tanh", "ln", "log", "exp"),
}
GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "kappa"),
    *("lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega"),
    *("Delta", "Gamma", "Theta", "Lambda", "Sigma", "Phi", "Psi", "Omega", "ell"),
}
RELATIONS = {
    **{sign: sign for sign in ("=", "<", ">", "<=", ">=", "in")},
    **dict.fromkeys(("le", "leq", "leqslant"), "<="),
    **dict.fromkeys(("ge", "geq", "geqslant"), ">="),
    "lt": "<",
    "gt": ">",
}
OPEN = {"(": ")", "[": "]", "\\{": "\\}", "\\lbrace": "\\rbrace", "\\langle": "\\rangle"}
CLOSE = {")", "]", "\\}", "\\rbrace", "\\rangle"}
INFINITY = name("infinity")
PLAIN = {"pi", "sqrt", "infinity", "inf", "infty", *FUNCTIONS}


@dataclass(frozen=True, slots=True)
class Group:
    """Several values in brackets: a point, an interval, a set, or a row of a matrix."""

    tag: str
    """Both brackets, `matrix`, or `union`."""
    items: tuple[Any, ...]


def tokens_of(text: str) -> list[tuple[str, bool]]:
    """(token, whether a space stands before it); raises Unreadable."""
    found: list[tuple[str, bool]] = []
    at = 0
    for match in _TOKEN.finditer(text):
        if match.start() != at:
            raise Unreadable
        at = match.end()
        kind = match.lastgroup
        assert kind is not None
        token = match.group(kind)
        found.append(("\\" + token if kind == "cmd" else token, bool(match["space"])))
    if text[at:].strip():
        raise Unreadable
    return found
