"""Text answers made comparable.

After SQuAD's evaluation (Rajpurkar et al., 2016), which takes away case, punctuation and the articles
a, an, the. That makes `-5` and `5`, `1.5` and `15`, `vitamin A` and `vitamin`, `C++` and `C` equal, so
here signs and points of numbers, operators, and an article that is no article stay.
"""

import re
import unicodedata

_ARTICLE = re.compile(
    r"(?:(?<=\s)|^)(?:a|an|the)(?=\s+(?:\d|\w\w))|^\W*(?:A|An|The|THE)(?=\s+(?:\d|\w\w))"
)
"""`A` counts as one only where a text begins: elsewhere it is a name, as in `plan A`."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_KEPT = (
    r"(?<=\d)[.,:/-](?=\d)|(?<!\d)\.(?=\d)"  # 1.5, 1,2, 3:30, 1/2, 3-4 and .5
    r"|[-*](?=\s*(?:\.?\d|[^\W\d_]\b|\())"  # -5, x - 1, 2 * (x + y), and not well-known
    r"|(?<=\w)\#+|[+=<>^/%&@~|\\\u00d7\u00f7\u221a\u00b1\u00ac]"
)
_PUNCTUATION = re.compile(rf"({_KEPT})|[^\w\s]|_")
_FORMULA = re.compile(rf"({_KEPT}|[()\[\]{{}}!])|[^\w\s]")
"""Brackets and `!` count where numbers or operators are."""


def comparable(text: str) -> str:
    """A text without case, punctuation, articles and extra spaces."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").strip()
    plain = _ARTICLE.sub(" ", text)
    signs = _FORMULA if re.search(r"[\d=^*/]", plain) else _PUNCTUATION
    plain = signs.sub(lambda found: found[1] or "", _THOUSANDS.sub("", plain.casefold()))
    # A text of nothing but signs is compared as it is.
    return " ".join(plain.split()) or text


def holds(text: str, part: str) -> bool:
    """Whether the words of `part` stand in `text` one after the other; both comparable."""
    return f" {part} " in f" {text} "
