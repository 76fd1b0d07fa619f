"""The words of an answer: LaTeX that only sets type, text answers, times and ratios."""

import re
from collections.abc import Hashable
from fractions import Fraction

_SPACING = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits|phantom\{[^{}]*\})(?![a-zA-Z])"
    r"|\\!|\\(?:bf|rm|it)(?![a-zA-Z])"
)
_GAP = re.compile(r"(?<!\\)\\(?:[,;:> ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~|&nbsp;")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_WORDS = re.compile(
    r"\\(?:text|mbox|hbox|mathrm|textrm|textup|textnormal|operatorname|textit|mathit|emph|rm)\s*\{([^{}]*)\}"
)
_JOINED = re.compile(r"\x01[\s,]*(and|or)\s*\x02")
_BOLD = re.compile(r"\\(?:textbf|mathbf|boldsymbol|bm|mathbb)\s*\{((?:[^{}]|\\text\{[^{}]*\})*)\}")
_GLUE = re.compile(r"(?<=\d)\s*(?:\{\s*,\s*\}|,\s*\\!|\\!\s*,|\\,|\\ |\\;)\s*(?=\d{3}(?!\d))")
_COMMA = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED = re.compile(r"(?<![\w.,/^])[1-9]\d{0,2}(?:[ \u00a0\u2009\u202f]\d{3})+(?![\d/,]| ?/| \d)")
_UNICODE = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": "\\times ",
    "\u00b7": "\\cdot ",
    "\u22c5": "\\cdot ",
    "\u00f7": "/",
    "\u221a": "\\sqrt ",
    "\u03c0": "\\pi ",
    "\u221e": "\\infty ",
    "\u00b0": "^\\circ ",
    "\u2264": "\\le ",
    "\u2265": "\\ge ",
    "\u222a": "\\cup ",
    "\u2208": "\\in ",
    "\u00b1": "\\pm ",
    "\u00b2": "^2",
    "\u00b3": "^3",
    "\u00bd": "\\frac12",
    "\u00bc": "\\frac14",
    "\u00be": "\\frac34",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "\u03b8": "\\theta ",
    "\u2019": "'",
    "\u20ac": "\x01euros\x02",
    "\u00a3": "",
}
_TABLE = str.maketrans(_UNICODE)
_DOLLAR = re.compile(r"^(\s*[-+]?\s*)\\?\$\s*(?=[-+.\d\\(])|\\\$")


def clean(text: str) -> tuple[str, tuple[str, ...], str | None]:
    """(the answer without what only sets type, units it carried, another reading of its commas)."""
    units: tuple[str, ...] = ()
    if not text.isascii():
        text = _SPACED.sub(_unspace, text)
        text = text.translate(_TABLE)
    text = text.strip()
    if "{,}" in text or "\\" in text:
        text = _GLUE.sub("", text)
    if "\\" in text:
        text = _SPACING.sub("", text)
        text = _FRACTION.sub(r"\\frac", text)
        if "{" in text:
            text = _BOLD.sub(_inside, text)
            text = _WORDS.sub("\x01\\1\x02", text)
            text = _JOINED.sub(r" \1 ", text)
        text = _GAP.sub(" ", text)
        if "\\$" in text:
            units = ("dollar",)
            text = text.replace("\\$", "")
        if "\\(" in text or "\\[" in text:
            text = text.replace("\\(", "").replace("\\)", "").replace("\\[", "").replace("\\]", "")
    if "$" in text:
        if text[:1] == "$" and text.count("$") == 1:
            units = ("dollar",)
        text = text.replace("$", "")
    text = text.strip().rstrip(".").strip("* \n\t")
    if text[:1] in ('"', "`") and text[-1:] == text[:1]:
        text = text[1:-1]
    if " " in text:
        text = _SPACED.sub(_unspace, text)
    other = None
    if (
        "," in text
        and "(" not in text
        and "[" not in text
        and "\\{" not in text
        and "&" not in text
    ):
        text, other = _commas(text)
    return text, units, other


def _inside(match: re.Match[str]) -> str:
    inside = match[1]
    return (
        inside
        if "\\" in inside or not inside.isalpha() or len(inside) == 1
        else f"\x01{inside}\x02"
    )


def _unspace(match: re.Match[str]) -> str:
    return re.sub(r"\s", "", match[0])


def _commas(text: str) -> tuple[str, str | None]:
    """Thousands separators taken out, where every comma without a space behind it can be one."""
    joined = _COMMA.sub(lambda match: match[0].replace(",", ""), text)
    if joined == text or re.search(r",(?=\S)", joined):
        return text, None
    groups = re.findall(r",(\d{3})(?!\d)", text)
    is_sure = any(group[0] == "0" for group in groups)
    return joined, None if is_sure else re.sub(",", ", ", text)


_CHOICE = re.compile(
    r"[\x01\s]*(?:\([\x01\s]*([A-Z])[\x02\s]*\)|([A-Z])\)|\x01([A-Z])[.:]?\x02|([A-Z])[.:](?=\s|$))"
    r"[\x02\s.:~]*(.*)",
    re.DOTALL,
)
_LETTER = re.compile(r"[\x01\s]*\(?[\x01\s]*([A-Z])[\x02\s]*\)?[\x02\s.:]*")
_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9 .,'\-]*")
_TIME = re.compile(
    r"[\x01\s]*(\d{1,2}):(\d\d)\s*\x01?\s*(?:([ap])\.?\s?m\.?)?[\x02\s.]*", re.IGNORECASE
)
_RATIO = re.compile(r"\s*(-?\d{1,9})((?:\s*:\s*\d{1,9})+)\s*")
_BASE = re.compile(
    r"(-?)\s*(\()?([0-9][0-9A-Z]*(?:\.[0-9A-Z]+)?)(?(2)\))\s*_\s*\{?\s*([0-9]{1,2}|[a-z]+)\s*\}?"
)
_UNMARKED = {1: None, 2: None}
NAMES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_BASES = {name: base for base, name in enumerate(NAMES) if base > 1} | {"sixteen": 16}


def inside_text(text: str) -> str | None:
    """What a cleaned answer holds that is one `\\text{...}`."""
    return text[1:-1] if text[:1] == "\x01" and text.find("\x02") == len(text) - 1 else None


_ARTICLES = {"a", "an", "the"}
_NOT_TEXT = {"pi", "infinity", "sqrt"}


def choice_of(text: str) -> tuple[str, str] | None:
    """(letter, what stands behind it) of a cleaned answer that chooses one: `(C) 80`, `C`."""
    if match := _LETTER.fullmatch(text):
        return match[1], ""
    if (match := _CHOICE.fullmatch(text)) and match[5][:1].isalnum() | (match[5][:1] in "\\\x01$-"):
        return match[1] or match[2] or match[3] or match[4], match[5]
    return None


def words_of(text: str) -> tuple[str, Hashable] | None:
    """(kind, value) of a cleaned answer that is no formula: a text, a time, a ratio or a
    number in another base; None for any other."""
    if match := _TIME.fullmatch(text):
        if int(match[2]) < 60 and (match[3] or "\x01" in text or ":0" in text):
            return "time", (int(match[1]), int(match[2]), (match[3] or "").lower())
    if match := _RATIO.fullmatch(text):
        parts = [int(match[1]), *(int(p) for p in match[2].split(":") if p.strip())]
        if parts[0]:
            return "ratio", tuple(Fraction(p, parts[0]) for p in parts)
        return "ratio", tuple(parts)
    if "_" in text and (match := _BASE.fullmatch(text.translate(_UNMARKED))):
        base = int(match[4]) if match[4].isdigit() else _BASES.get(match[4], 0)
        if base:
            return "base", (match[1] + match[3].lstrip("0"), base)
    inside = inside_text(text)
    plain = (inside if inside is not None else text).strip()
    if not _TEXT.fullmatch(plain):
        return None
    words = plain.replace("-", " ").split()
    if inside is None and (
        any(ch.isdigit() for ch in plain)
        or not any(len(word) >= 3 for word in words)
        or any(word in _NOT_TEXT for word in words)
        or ("," in plain and all(len(word.strip(",")) == 1 for word in words))
    ):
        return None
    if inside is not None and re.fullmatch(r"[A-Z](?:\s*,\s*(?:and )?[A-Z])+", plain):
        return None
    lower = [word.lower().replace(".", "").strip(",'") for word in words]
    kept = [word for word in lower if word not in _ARTICLES] or lower
    return "text", " ".join(kept)
