"""The final answer out of a candidate's text, and numbers as exact fractions.

A number that is only part of an expression (`5\\sqrt{2}`, `(5, 3)`) is no number: counting it as one
would call wrong answers right, which trains on them. GSM8K's marker `####` is a level-4 heading in
Markdown too, which instruct models write, so a line after it is first asked whether it is a heading.
Every pattern runs in linear time, and no text is evaluated.
"""

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:[eE][-+]?\d{1,2}(?!\d))?(?: ?/ ?\d+(?!\.?\d))?"
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
_CHANGES = re.compile(
    r"\s*-?(?:hundred|thousand|million|billion|trillion|dozen|score|pairs? of|k|bn|mn)\b"
    r"|:\d|\.\d|_\{?\d|\s+(?:or|to|per|out of|and)\s+[$\u20ac\u00a3]?\d"
    r"|\s*[\u2010-\u2015~/]\s*\d|\s*[|<>\u2260\u2264\u2265]",
    re.IGNORECASE,
)
"""What follows a number that is another than it looks, or one of several: `18 million`, `18 or 19`."""
_BOUND = re.compile(
    r"(?:\b(?:not|n't|never|than|least|most|between|over|under|above|below|up to|either|neither|from"
    r")|[<>|\u2260\u2264\u2265~])"
    r"[\s$\u20ac\u00a3*(]*$",
    re.IGNORECASE,
)
"""What stands before a number that is no answer: `not 18`, `at least 18`."""
_MINUS_LIKE = "\u2010\u2011\u2012\u2013\u2014\u2015\u207b\u2796\ufe58\ufe63\uff0d"
_BESIDE = "\u00b0\u20ac\u00a3\u00a2\u00a5\u00d7\u00f7\u00a0\u2009\u202f\u2018\u2019\u201c\u201d\u2026\u2014\u2192\u2032\u2033"
"""The characters outside of ASCII, letters aside, that may stand at a number and leave it as it is."""
_RETRACTS = re.compile(
    r"\b(?:wait|wrong|mistake|sorry|correction|corrected|actually|instead|recalculat\w*)\b",
    re.IGNORECASE,
)
_GIVES_UP = re.compile(
    r"\b(?:cannot|can't|can not|unable|unclear|impossible|don't know|do not know|not sure|give up"
    r"|not enough|(?:step|equation|part|page|line|eq\.) ?\(?\d+\)?)\b|\?\W*$",
    re.IGNORECASE,
)
_LONGEST = 60
"""Digits a number may have; a longer one is no answer to a word problem, only a cost."""


def extract(text: str, marker: str, fallback: bool, is_number: bool) -> str | None:
    """The final answer as text, or None if there is none to be found."""
    if "<think>" in text:
        _, closed, text = text.rpartition("</think>")
        if not closed:
            return None
    _, found, rest = text.partition(marker)
    if is_number and found and _taken_back(rest, marker):
        return None
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
    if _GIVES_UP.search(tail.rstrip().rpartition("\n")[2]):
        return None
    numbers = [m for m in _NUMBER.finditer(tail) if m.group()]
    return _signed(tail, numbers[-1]) if numbers and _is_whole(tail, numbers[-1]) else None


def _taken_back(rest: str, marker: str) -> bool:
    """Whether the text after a marker says that its answer is wrong, and gives another one."""
    end = rest.find("\n" + marker)
    if end < 0 or _OTHER_PROBLEM.search(rest, 0, end):
        return False
    return _RETRACTS.search(rest, 0, end) is not None


def _is_whole(text: str, found: re.Match[str]) -> bool:
    """Whether what stands around a number leaves it as it is, as far as one line can tell."""
    before, after = (
        text[max(found.start() - 40, 0) : found.start()],
        text[found.end() : found.end() + 40],
    )
    beside = before[-1:] + after[:1]
    if any(not c.isascii() and not c.isalpha() and c not in _BESIDE for c in beside):
        return False
    sign = before.rstrip(" $\u20ac\u00a3")
    if (
        sign[-1:] in _MINUS_LIKE
        and sign[-1:]
        and not (sign[-2:-1].isspace() and before[-1:].isspace())
    ):
        return False
    return not (_CHANGES.match(after) or _BOUND.search(before))


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
    if inside or _GOES_ON.match(after) or not _is_whole(text, found):
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


def only_number(text: str) -> str | None:
    """The number in a final answer with nothing beside it but a unit or a name: `5 \\text{ cm}`."""
    return _first(text, is_number=True, exact=True)


def plain(text: str) -> str:
    """A text answer without LaTeX, case, spaces and end stop, for comparing."""
    return "".join(_simple(text).casefold().split()).strip(".$")


# Answers of any kind ----------------------------------------------------------------------------

_GIVEN = re.compile(r"[ \t]*\$?(-?\d[\d,]*(?:\.\d+)?)[ \t.]*\s*\Z", re.ASCII)
"""What follows the marker where a number ends the text: GSM8K's own shape."""
_BRACED = re.compile(r"\s*\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}")
_MAY_OPEN_OTHER = re.compile(r"\n[ \t*_>#]*[qpihuQPIHU]")
"""A quick look for `_OTHER_PROBLEM`, below the first line."""
_BETWEEN = re.compile(r"[\s$.,;\\()\[\]]*(?:and|or|,)?[\s$,\\()\[\]]*")
"""What stands between two boxes that give one answer together."""
_PLACEHOLDER = re.compile(
    r"\s*(?:\\?\.{2,3}|\\[lc]?dots|(?:your |final |the )*answer(?: here)?|)\s*", re.I
)


def final_answer(
    text: str, *, marker: str = "####", fallback: bool = True, is_number: bool = False
) -> str | None:
    """The final answer as the candidate wrote it, LaTeX and all; None if there is no clear one.

    What is inside `<think>` is no answer, nor is what follows the heading of one more problem. The
    answer is what follows the first marker that is no heading, else the last `\\boxed{...}` (boxes
    with nothing but "and" or commas between them are one answer), else what follows the last "answer
    is". If the text after the box says another answer, there is no clear one.

    fallback: whether what follows "answer is" counts. is_number: the answer is known to be a number,
    so that the words around it don't count.
    """
    if "think>" in text:
        _, closed, text = text.rpartition("</think>")
        if not closed and "<think>" in text:
            return None
    at = text.find(marker) if marker else -1
    if at >= 0:
        if given := _GIVEN.match(text, at + len(marker)):
            return given[1]
        if is_number:
            return extract(text, marker, fallback, True)
        is_there, marked = _any_marked(text, marker)
        if is_there:
            return marked
    box = text.rfind("\\boxed")
    if box >= 0:
        end = _other_problem(text)
        if end < box:
            text = text[:end]
            box = text.rfind("\\boxed")
        if box >= 0 and (found := _last_boxes(text, box, is_number)) is not None:
            return found or None
    if not fallback or ("nswer" not in text and "NSWER" not in text):
        return None
    phrases = list(_PHRASE.finditer(text[: _other_problem(text)]))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :]
    return _only_number(rest) if is_number else _unwrapped(rest)


def guess(text: str, is_number: bool, marker: str = "####") -> str | None:
    """What a text without a clear answer seems to arrive at: its last number, or the formula or bold
    word of its last line. Good enough to be called right if it equals the gold answer, and no more."""
    text = text[: _other_problem(text)].rstrip()
    if _PHRASE.search(text) or "\\boxed" in text:  # it says an answer, and not clearly
        return None
    if is_number:
        return None if _CHOOSES.search(text[-60:]) else extract(text, marker or "\0", True, True)
    lines = text.split("\n")
    found = list(_WRAPPED.finditer(lines[-1]))
    if found:
        return next(group for group in found[-1].groups() if group).strip()
    return text.strip() if len(lines) == 1 and len(text) <= 40 else None


def _other_problem(text: str) -> int:
    """Where one more problem begins, or the end of the text. A heading above all else is no other."""
    first = _MAY_OPEN_OTHER.search(text)
    if first is None:
        return len(text)
    for match in _OTHER_PROBLEM.finditer(text, first.start()):
        if re.search(r"\w", text[: match.start()]):
            return match.start()
    return len(text)


def _any_marked(text: str, marker: str) -> tuple[bool, str | None]:
    """Whether a marker is no heading, and the answer after it, which may be in no clear form."""
    sections = [s.lstrip("#").strip() for s in text.split(marker)[1:]]
    sections = [s for s in sections if s]
    for section in sections:
        if _is_heading(section, len(sections), is_number=False):
            continue
        first, _, below = section.partition("\n")
        if _ANSWER_BELOW.fullmatch(_one_line(first)):
            first = next((line for line in below.split("\n") if re.search(r"\w", line)), "")
        box = first.find("\\boxed")
        if box >= 0:
            return True, _last_boxes(first, first.rfind("\\boxed"), False) or None
        phrase = _PHRASE.search(first)
        return True, _unwrapped(first[phrase.end() :] if phrase else first)
    return not sections, None


def _last_boxes(text: str, at: int, is_number: bool) -> str | None:
    """What the last box holds, with the boxes that it belongs to; "" if the text takes it back, None
    if there is none that is whole. at: where the last box begins."""
    for _ in range(5):  # broken or empty boxes are passed over, a text made of them is not
        match = _BRACED.match(text, at + len("\\boxed"))
        content = match[1].strip() if match else _boxed_deep(text, at)
        if content and (content[0].isdigit() or not _PLACEHOLDER.fullmatch(content)):
            break
        at = text.rfind("\\boxed", 0, at)
        if at < 0:
            return None
    else:
        return None
    end = match.end() if match else len(text)
    if (
        match and text[end : end + 1] == "_" and (base := _BASE.match(text, end))
    ):  # `\\boxed{141}_{13}`
        content, end = f"{content}_{{{base[1]}}}", base.end()
    found = [content]
    begin = at
    while (before := text.rfind("\\boxed", 0, begin)) >= 0 and begin - before < 400:
        earlier = _BRACED.match(text, before + len("\\boxed"))
        between = text[earlier.end() : begin] if earlier else ""
        if earlier is None or len(between) > 40 or not _BETWEEN.fullmatch(between):
            break
        found.insert(0, earlier[1].strip())
        begin = before
    said = ", ".join(dict.fromkeys(found)) if len(found) > 1 else content
    tail = text[end:]
    if "nswer" in tail and (phrases := list(_PHRASE.finditer(tail))):
        later = _unwrapped(tail[phrases[-1].end() :])
        if later and re.search(r"[\d\\]", later) and not _means_the_same(later, said):
            return ""
    return said


def _means_the_same(later: str, said: str) -> bool:
    one, two = number(later), number(said)
    return plain(later) == plain(said) or (one is not None and one == two)


def _boxed_deep(text: str, at: int) -> str | None:
    """The content of a box that is nested deeper than the pattern for one reads."""
    begin = text.find("{", at)
    if begin < 0 or text[at + len("\\boxed") : begin].strip():
        return None
    depth = 0
    for i in range(begin, min(len(text), begin + 4000)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin + 1 : i].strip()
    return None


_BASE = re.compile(r"_\{?(\d{1,2})\}?")
_SEVERAL = re.compile(r"\b(?:or|and|to)\W{1,4}\d", re.IGNORECASE)
_CHOOSES = re.compile(r"\b(?:or|and|to)\W{1,4}\d[\d,.]*\D*\Z", re.IGNORECASE)
_WRAPPED = re.compile(
    r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|\*\*([^*]+)\*\*|`([^`]+)`", re.DOTALL
)
_SENTENCE = re.compile(r"\.(?:\s|$)|,? (?:because|since|so|which|as|but)\b")


def _only_number(rest: str) -> str | None:
    """The number in the line after "answer is", unless there are several to choose from."""
    line = rest.lstrip(" \t\n:*").split("\n", 1)[0].rstrip(". ")
    return None if _SEVERAL.search(line) else _first(line, True)


def _unwrapped(rest: str) -> str | None:
    """The answer at the start of what follows "answer is", without `$`, stars and the sentence's end."""
    rest = rest.lstrip(" \t\n:*")
    if not rest:
        return None
    if match := _WRAPPED.match(rest):
        # `$x$ and $y$` is one answer, so the line is kept where more of it follows.
        line = rest[match.end() :].split("\n", 1)[0]
        if not re.search(r"[$\d\\]", line[:40]):
            return next(group for group in match.groups() if group).strip().strip("*") or None
    line = rest.split("\n", 1)[0]
    if end := _SENTENCE.search(line):
        line = line[: end.start()]
    return line.strip().rstrip(".* ").strip() or None
