"""The words of an answer: LaTeX that only sets type, units, text answers, times and ratios."""

import re
from collections.abc import Hashable
from fractions import Fraction

_LENGTHS = {
    "m": "m meter meters metre metres",
    "cm": "cm cms centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "unit": "unit units",
}
_OTHERS = {
    "kg": "kg kilogram kilograms",
    "g": "gram grams gm gms",
    "mg": "mg milligram milligrams",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "l": "liter liters litre litres",
    "ml": "ml milliliter milliliters",
    "s": "sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "dollar": "dollar dollars usd",
    "cent": "cent cents",
    "euro": "euro euros",
    "\u00b0": "degree degrees deg",
    "rad": "radian radians",
    "%": "percent percentage pct %",
    "mph": "mph",
    "kmh": "kmh kph kmph",
    "am": "am",
    "pm": "pm",
}
UNITS = {word: unit for unit, words in (_LENGTHS | _OTHERS).items() for word in words.split()}
"""Units by the words for them. Two answers with different units of these are not called equal."""
_SMALL = {"mm", "cm", "km", "ft", "kg", "lb", "oz", "ml", "mg", "hr", "yr", "am", "pm", "mi", "yd"}


def unit_of(text: str) -> str | None:
    """The unit of measurement that a text names (`square inches` is `in2`), or None."""
    words = text.lower().replace(".", "").replace("^", " ^").split()
    size, found = "", []
    for word in words:
        if word in ("square", "sq", "squared", "^2"):
            size = "2"
        elif word in ("cubic", "cu", "cubed", "^3"):
            size = "3"
        elif "/" in word and all(UNITS.get(part) for part in word.split("/") if part):
            found.append("/".join(UNITS[part] for part in word.split("/") if part))
        elif word in UNITS:
            found.append(UNITS[word])
    if (
        len(found) != 1
        or len(words) > 3
        or (words[0] == "in" and words[1:] not in ([], ["^2"], ["^3"]))
    ):
        return None
    return found[0] + size


_DIMENSIONS = (
    frozenset(_LENGTHS) - {"unit"},
    frozenset(("kg", "g", "mg", "lb", "oz")),
    frozenset(("s", "min", "h", "day", "week", "month", "year")),
    frozenset(("dollar", "cent", "euro")),
)


def asks_for_other(question: str, unit: str) -> bool:
    """Whether a question measures in other units of the kind, and never in this one."""
    base = unit.rstrip("23")
    words = re.findall(r"[a-z]+|\$", question.lower())
    named = {"dollar" if word == "$" else UNITS.get(word) for word in words if word != "in"}
    kin = next((units for units in _DIMENSIONS if base in units), frozenset[str]())
    return bool(kin & named) and base not in named


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
    r"(-?)\s*([0-9][0-9A-Z]*(?:\.[0-9A-Z]+)?)\s*_\s*\{?[\x01\s]*([0-9]{1,2}|[a-z]+)[\x02\s]*\}?"
)
_BASES = dict(
    zip(
        [
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
            "sixteen",
        ],
        (*range(2, 13), 16),
        strict=True,
    )
)


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
    if "_" in text and (match := _BASE.fullmatch(text)):
        base = int(match[3]) if match[3].isdigit() else _BASES.get(match[3], 0)
        if base:
            return "base", (match[1] + match[2].lstrip("0"), base)
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
