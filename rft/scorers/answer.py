"""The final answer, extracted and compared as an exact number.

Numbers are compared as fractions, so 0.1 + 0.2 is 3/10 and 1,234.50 is 2469/2; a float comparison
would need a tolerance that is right for no data set. A gold answer that is not a number is compared
as text without case and spaces. A number that is only part of an expression (`5\\sqrt{2}`, `(5, 3)`)
is no number: counting it as one would call wrong answers right, which trains on them. GSM8K's marker
`####` is a level-4 heading in Markdown too, which instruct models write, so a line after it is first
asked whether it is a heading. Every pattern runs in linear time, and no text is evaluated.
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
    r"\(|[eE][-+]?\d|\s*(?:[\^\\]|!(?!\w)|[-+*/\u00d7\u00b7\u00f7x]\s*[\d$(\\]|[-+*/]\s*[b-z]\b|,\s*[-+]?\d"
    r"|(?<=\s)\d)"
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
_SPACES = " \u00a0\u2009\u202f"
_THOUSANDS = re.compile(
    rf"(?<![\w.,/^])(?<!\d[{_SPACES}])[1-9]\d{{0,2}}(?:[{_SPACES}]\d{{3}})++"
    rf"(?!\d|[{_SPACES}]\d|,\d| ?/|-[a-zA-Z])"
)
"""`1 234`, which is 1,234. Not `1 234/1000`, `1 234,5` or `3 100-page books`."""
_NUMBERED = re.compile(
    r"\(?(\d{1,2})(?:\.\d)*(?: ?[.):] (?=\S)| ?[-\u2013\u2014] (?=[a-zA-Z]{2})| (?<=\.\d )(?=[A-Z][a-z]+ \w))"
)
"""`1. First ...`, `(2) Then ...`, `3 - Add ...`, `2.1 Add the ...`"""
_NAMED = re.compile(
    r"\W*(?:step\b|(?:part|case|phase|stage|method|approach|section|example|problem|question) ?\d)",
    re.IGNORECASE,
)
"""`Step 1: ...`, `Part 2`"""
_ANSWER_BELOW = re.compile(
    r"(?:step \d{1,2} ?[.):-]? ?|\d{1,2}[.):] )?(?:the )?(?:final |correct )?answer(?: is)?\W*",
    re.IGNORECASE,
)
"""A heading with the answer in the lines under it."""
_OTHER_PROBLEM = re.compile(
    r"^[ \t*_>#]*(?:question|problem|instruction|human|user|q)\b[ \d*_]{0,6}(?::|$)",
    re.IGNORECASE | re.MULTILINE,
)
"""A line that opens one more problem: `Question: ...`, `### Problem 2`."""
_VALUE = re.compile(r"[\W_]*\d(?!\d*(?:st|nd|rd|th) )|[a-zA-Z] ?=")
"""How a line begins that gives the answer at once."""
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

    The final answer is what follows the first `marker`, so that a second problem which the model
    makes up after its answer does not count. A Markdown heading (`#### Step 1: ...`) is not taken
    for the marker, and a line that may be either (`#### The cost of 3 apples`, with text under it)
    is unknown.

    marker: what the answer follows, on its line or, if that is empty, on the next.
    fallback: where there is no marker, take the last `\\boxed{...}`, else what follows the last
    "answer is", else the last number of the text; false makes such a text unknown.
    tolerance: largest relative difference that still counts as equal; 0 is exact.

    A percent sign is a unit, like $: `50%` equals the gold answers `50` and `50%`. Against the gold
    answer `0.5` it is unknown, as is `0.5` against `50%`: right if 0.5 is a share, wrong if it is
    half a percent, and only the question tells which.

    Unknown for reasons `no_gold`, `unparsed` and `percent`.
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
    if _same(value, gold, tolerance):
        return Score(Verdict.CORRECT, None, str(value))
    percent = "%" in said
    if percent != ("%" in prompt.answer):
        share = value / 100 if percent else value * 100
        if _same(share, gold, tolerance):
            return Score(Verdict.UNKNOWN, "percent", str(value))
    return Score(Verdict.WRONG, None, str(value))


def _same(value: Fraction, gold: Fraction, tolerance: float) -> bool:
    return value == gold or abs(value - gold) <= Fraction(tolerance) * abs(gold)


def extract(text: str, marker: str, fallback: bool, is_number: bool) -> str | None:
    """The final answer as text, or None if there is none to be found."""
    _, found, rest = text.partition(marker)
    if found and marker.strip("# "):
        return _marked(rest.lstrip().split("\n", 1)[0], True, is_number)
    tail = text
    if found:
        # Passing over headings must not lead into a problem that the model makes up afterwards.
        other = _OTHER_PROBLEM.search(text, len(text) - len(rest))
        text = text[: other.start()] if other else text
        sections = [s.lstrip("#").strip() for s in text.split(marker)[1:]]
        sections = [s for s in sections if s]
        for i, section in enumerate(sections):
            if not _is_heading(section, len(sections), is_number):
                return _marked(section, i + 1 == len(sections), is_number)
        if not sections:
            return None
        tail = "" if other else sections[-1].partition("\n")[2]
    if not fallback:
        return None
    if (boxed := _boxed(text, text.rfind("\\boxed{"))) is not None:
        return _first(boxed, is_number, exact=True)
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        got = _first(text[phrases[-1].end() :].split("\n", 1)[0].rstrip(". "), is_number)
        if got is not None:
            return got
    if not is_number:
        return None
    # A number in a heading, or above the last one, is not where the text arrives.
    tail = _simple(tail)
    numbers = [m for m in _NUMBER.finditer(tail) if m.group()]
    return _signed(tail, numbers[-1]) if numbers else None


def _is_heading(section: str, markers: int, is_number: bool) -> bool:
    """Whether the first line after a marker is a heading, and so holds no answer.

    markers: how many there are in the text. A number above that does not count headings.
    """
    first, _, below = section.partition("\n")
    line = _one_line(first)
    if _ANSWER_BELOW.fullmatch(line):
        return not below
    if "\\boxed{" in first or _phrase(line, is_number) is not None:
        return False
    numbered = _NUMBERED.match(line)
    if numbered and int(numbered[1]) <= max(9, markers):
        return True
    if _NAMED.match(line) or (line.endswith(":") and re.search("[a-zA-Z]", line)):
        return True
    return is_number and not re.search(r"\d", line)


def _marked(section: str, is_last: bool, is_number: bool) -> str | None:
    """The answer in what follows a marker that is no heading for sure."""
    first, _, below = section.partition("\n")
    if _ANSWER_BELOW.fullmatch(_one_line(first)):
        box, is_last = section.find("\\boxed{"), True
        first, below = next((x for x in below.split("\n") if re.search(r"\w", x)), ""), ""
    elif is_number and _VALUE.match(_one_line(first)):
        return _first(first, is_number)
    else:
        box = first.find("\\boxed{")
    if (boxed := _boxed(section, box)) is not None:
        return _first(boxed, is_number, exact=True)
    line = _one_line(first)
    if is_number and _VALUE.match(line):
        return _first(first, is_number)
    if (got := _phrase(line, is_number)) is not None or not is_number:
        return got or _first(first, is_number)
    # `He has 18 left`: a heading, if there is text under it; and of several numbers any may be meant.
    if not is_last or re.search(r"\w", below) or len(re.findall(r"\d[\d,.]*", line)) != 1:
        return None
    return _first(first, is_number)


def _phrase(line: str, is_number: bool) -> str | None:
    """What follows "answer is" in a line."""
    found = _PHRASE.search(line)
    rest = line[found.end() :].strip("* ") if found else ""
    return _first(rest, is_number) if re.search(r"\d" if is_number else r"\w", rest) else None


def _one_line(text: str) -> str:
    return " ".join(_simple(text).split()).strip("*_ ")


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
    percent = "%" if re.match(r"\s*(?:%|percent\b)", text[found.end() :]) else ""
    return ("-" if before.endswith("-") and alone else "") + found.group() + percent


def _simple(text: str) -> str:
    """LaTeX fractions, units and spaces, Markdown stars and Unicode minus as plain characters."""
    text = text.replace("\u2212", "-").replace("`", "")
    text = re.sub(r"(?<![\d)])\*\*|\*\*(?![\d(])", "", text)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return _THOUSANDS.sub(lambda found: "".join(found.group().split()), text)


def _boxed(text: str, start: int) -> str | None:
    """What is in the `\\boxed{...}` that begins at `start`; -1 is none."""
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
