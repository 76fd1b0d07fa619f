"""The final answer, extracted and compared as an exact number.

Numbers are compared as fractions, so 0.1 + 0.2 is 3/10 and 1,234.50 is 2469/2; a float comparison
would need a tolerance that is right for no data set. A gold answer that is not a number is compared
as text without case and spaces. A number that is only part of an expression (`5\\sqrt{2}`, `(5, 3)`)
is no number: counting it as one would call wrong answers right, which trains on them. Every pattern
runs in linear time, and no text is evaluated.
"""

import re
from fractions import Fraction

from rft.types import Candidate, Prompt, Score, Verdict

_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:[eE][-+]?\d{1,2}(?!\d))?(?: ?/ ?\d+(?![\d.]))?"
)
_MIXED = re.compile(r"([-+]?)(\d+) +(\d+/\d+)")
_PHRASE = re.compile(r"answer(?:\s+is|\s*[:=])", re.IGNORECASE)
_CALCULATION = re.compile(r"(?:[a-zA-Z]?[-+*/().,$\u20ac\u00a3%\d\s\u00d7\u00b7\u00f7x]*=)+")
"""What stands before a result: `3 * 4 =`, `x =`."""
_GOES_ON = re.compile(
    r"\(|[eE][-+]?\d|\s*(?:[\^\\]|!(?!\w)|[-+*/\u00d7\u00b7\u00f7x]\s*[\d$(\\]|[-+*/]\s*[b-z]\b|,\s*[-+]?\d)"
)
"""What shows that a number is only the first part of an expression or a list."""
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)(?!\d)"), r" \1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})"), ""),
    (re.compile(r"\\left|\\right|\\[,;:! \\()\[\]]|~"), ""),
    (re.compile(r"\\([$%&])"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\times|\\cdot"), "*"),
    (re.compile(r"\\div(?![a-z])"), "/"),
    (re.compile(r"-\s+(?=\d+/\d)"), "-"),
)
_LONGEST = 60
"""Digits a number may have; a longer one is no answer to a word problem, only a cost."""


def answer(
    prompt: Prompt,
    candidate: Candidate,
    *,
    marker: str = "####",
    fallback: bool = True,
    tolerance: float = 0.0,
) -> Score:
    """Correct if the candidate's final answer equals the gold answer.

    The final answer is what follows the first `marker`; else, with `fallback`, the last
    `\\boxed{...}`, else what follows the last "answer is", else the last number of the text.
    tolerance: largest relative difference that still counts as equal; 0 is exact.
    Unknown for reasons `no_gold` and `unparsed`.
    """
    if prompt.answer is None:
        return Score(Verdict.UNKNOWN, "no_gold")
    gold = number(prompt.answer)
    said = extract(candidate.text, marker, fallback, is_number=gold is not None)
    if said is None:
        return Score(Verdict.UNKNOWN, "unparsed")
    if gold is None:
        same = _plain(said) == _plain(prompt.answer)
        return Score(Verdict.CORRECT if same else Verdict.WRONG, None, said)
    value = number(said)
    if value is None:
        return Score(Verdict.UNKNOWN, "unparsed", said)
    same = value == gold or abs(value - gold) <= Fraction(tolerance) * abs(gold)
    return Score(Verdict.CORRECT if same else Verdict.WRONG, None, str(value))


def extract(text: str, marker: str, fallback: bool, is_number: bool) -> str | None:
    """The final answer as text, or None if there is none to be found."""
    _, found, rest = text.partition(marker)
    if found:
        return _first(rest.lstrip().split("\n", 1)[0], is_number)
    if not fallback:
        return None
    if (boxed := _boxed(text)) is not None:
        return _first(boxed, is_number, exact=True)
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        got = _first(text[phrases[-1].end() :].split("\n", 1)[0].rstrip(". "), is_number)
        if got is not None:
            return got
    if not is_number:
        return None
    text = _simple(text)
    numbers = [m for m in _NUMBER.finditer(text) if m.group()]
    return _signed(text, numbers[-1]) if numbers else None


def _first(text: str, is_number: bool, exact: bool = False) -> str | None:
    """The result in a line: its first number, after a calculation the number behind the `=`.

    exact: nothing but the number and a unit may stand there. Where the number is only a part of an
    expression, the whole text is returned, which `number` then refuses.
    """
    text = _simple(text).strip()
    if not is_number:
        return text or None
    begun = _CALCULATION.match(text)
    # `18 = 3 * 6` gives its result first.
    if (
        begun
        and number(begun.group().rstrip("= ")) is None
        and re.search(r"\d", text[begun.end() :])
    ):
        text = text[begun.end() :]
    found = next((m for m in _NUMBER.finditer(text) if m.group()), None)
    if found is None:
        return None
    found = _MIXED.match(text, found.start()) or found
    before, after = text[: found.start()].rstrip(), text[found.end() :]
    inside = before.endswith(("^", "{", "\\", "(", "[")) and not after.lstrip().startswith(")")
    if inside or _GOES_ON.match(after):
        return text
    if exact and ("\\" in text or re.match(r"[a-zA-Z](?![a-zA-Z])", after)):
        return text
    return _signed(text, found)


def _signed(text: str, found: re.Match[str]) -> str:
    """The number with its sign, which may stand apart from its digits: "- 3", "-$3"."""
    before = text[: found.start()].rstrip(" $\u20ac\u00a3")
    left = before[:-1].rstrip()
    # After a digit or a word, the dash is a minus between two terms, a range or a hyphen.
    alone = not left or left[-1] in "=:$(*" or (left[-1].isalpha() and left != before[:-1])
    return ("-" if before.endswith("-") and alone else "") + found.group()


def _simple(text: str) -> str:
    """LaTeX fractions, units and spaces, Markdown stars and Unicode minus as plain characters."""
    text = text.replace("\u2212", "-").replace("`", "")
    text = re.sub(r"(?<![\d)])\*\*|\*\*(?![\d(])", "", text)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return None


def number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, with sign, $, %, commas; else None."""
    text = _simple(text).strip().strip("$\u20ac\u00a3%").strip().rstrip(".")
    text = re.sub(r"^([-+]?)\s*[$\u20ac\u00a3]?\s*([-+]?)\s*(?=[\d.])", r"\1\2", text)
    if len(text) > _LONGEST:
        return None
    if mixed := _MIXED.fullmatch(text):
        sign, whole, part = mixed.groups()
        rest = number(part)
        size = None if rest is None else int(whole) + rest
        return -size if size is not None and sign == "-" else size
    if not text or not _NUMBER.fullmatch(text):
        return None
    top, _, bottom = text.replace(",", "").replace(" ", "").partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top) / (int(bottom) if bottom else 1)


def _plain(text: str) -> str:
    return "".join(_simple(text).casefold().split()).strip(".$")
