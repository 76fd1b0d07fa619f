"""math-verify and sympy behind the exact path, for what that can't read or can't decide.

sympy computes what it parses, so what would cost it hours is refused before it sees it; what slips
through meets the deadline of the worker process, which is why math-verify's own signal timeouts are
off: they hang on some inputs and vanish outside the main thread. A "not equal" counts only if floats
differ as well, since sympy also says it of what it can't simplify or failed at.
"""

import functools
import logging
import re
from typing import Any

LONGEST = 300
_POWER = re.compile(r"\^\s*\{?\s*-?\s*\d{3,}")
_TOWER = re.compile(
    r"\d\s*\}?\s*(?:\^|\*\*)\s*[\{(]?\s*-?[\d.]+\s*[\})]?\s*(?:\^|\*\*|!)|\^\s*\w+\s*\^"
)
_TOWER_IN = re.compile(r"(?:\^|\*\*)\s*[\{(][^{}()]*(?:\^|\*\*)[^{}()]*(?:\^|\*\*)")
_COSTLY = re.compile(
    r"\\(?:int|sum|prod|lim|def|newcommand|input|include|write|csname)|\d{3,}\s*!|!\s*!"
    # Of letters: sympy multiplies it out.
    r"|\\[dt]?binom(?!\s*\{\d{1,3}\}\s*\{\d{1,3}\})"
)

_WORDS = re.compile(
    r"\\(?:text|mbox|mathrm|operatorname|hbox)|(?<![\\a-zA-Z{])[a-zA-Z]{4,}(?<!sqrt)"
    r"|(?<!_)\d\s+\d|\d\s*_|%|\$|:|[\d}\s]\s*(?:[cdghlmost]|[a-zA-Z]{2,})\s*$"
)
"""What math-verify drops, divides or multiplies: to it `210\\text{ ways}\\sqrt{2}` is 210, `42_5` is
`42_7`, `4t` is 4, and `1:2` is 1/2."""
_NAMED = re.compile(r"\s*[a-zA-Z](?:\([a-zA-Z]\))?\s*=[^=]*")


def is_safe(text: str) -> bool:
    """Whether sympy may see an answer."""
    return (
        0 < len(text) <= LONGEST
        and text.isascii()
        and text.count("^") + text.count("**") <= 16
        and text.count("!") <= 3
        and _depth(text) <= 10
        and not _WORDS.search(text)
        and sum(map(text.count, "([{")) == sum(map(text.count, ")]}"))
        and not re.search(r"\d{60}", text)
        and not _POWER.search(text)
        and not _TOWER.search(text)
        and not _TOWER_IN.search(text)
        and not _COSTLY.search(text)
    )


def _depth(text: str) -> int:
    deepest = depth = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    return deepest


@functools.cache
def _library() -> Any:
    """math_verify, imported when it is first needed: sympy costs a second."""
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it warns that its timeouts are off
    return math_verify


@functools.lru_cache(maxsize=1024)
def parsed(text: str) -> Any:
    """The sympy object for an answer, or None."""
    library = _library()
    config = [library.LatexExtractionConfig(boxed_match_priority=0)]
    # raise_on_error: a failure must not look like an empty answer.
    found = library.parse(f"$\\boxed{{{text}}}$", config, parsing_timeout=None, raise_on_error=True)
    return next((one for one in found if not isinstance(one, str)), None)


def equal(answer: str, gold: str) -> bool | None:
    """Whether two answers are equal to math-verify; None if it can't read or can't tell."""
    if not is_safe(answer) or not is_safe(gold):
        return None
    if answer.count("circ") != gold.count("circ"):  # it drops degrees
        return None
    if ("=" in answer) != ("=" in gold):  # it takes the right side of any equation for the answer
        if not _NAMED.fullmatch(answer if "=" in answer else gold):
            return None
    try:
        one, two = parsed(answer), parsed(gold)
        if one is None or two is None:
            return None
        if _library().verify(two, one, strict=True, timeout_seconds=None, raise_on_error=True):
            return None if _differ(one, two) else True
        return False if _differ(one, two) else None
    except (MemoryError, RecursionError):
        return None
    except Exception:  # whatever sympy raises on text that is no mathematics
        return None


def _differ(one: Any, two: Any) -> bool:
    """Whether two expressions surely differ, in kind or as floats where their names have values."""
    import sympy

    if not isinstance(one, sympy.Expr) or not isinstance(two, sympy.Expr):
        return False
    names = sorted(one.free_symbols | two.free_symbols, key=str)
    for start in (0.61, 1.37):
        values = {name: start + 0.217 * i for i, name in enumerate(names)}
        a, b = complex(one.subs(values).evalf()), complex(two.subs(values).evalf())
        if abs(a - b) > 1e-6 * max(abs(a), abs(b), 1e-3):
            return True
    return False
