"""The letter of a multiple-choice answer, or why there is no clear one.

A letter counts where it is the answer or opens it (`B`, `(B)`, `B.`, `**B**`, `B) 42`, `option B`), and
where no other letter stands beside it. `A triangle`, `I think` and `not B` name no letter. A text equal
to one option's is that option's letter. Anything else is left unknown: of five options a wrong reading
is right once in five.
"""

import re

from rft.scorers._extract import extract, number
from rft.scorers._text import comparable

LETTERS = "ABCDEFGHIJ"
LONGEST = 300
"""Characters of an answer to read."""

_OPTION = re.compile(r"\(([A-J])\)|(?<![\w'\u2019.-])([A-J])[).:](?=[\s}$\\]|$)")
"""How an option begins in a question: `(A) 5`, `A) 5`, `A. 5`, `\\textbf{(A)}\\ 5`."""
_MARKUP = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed|bf|rm|q?quad)\b|\\[()\[\],;:! ]|[*`_${}~]"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}")
_ALONE = " \t\n.,:;()[]<>\"'!?-\u2013\u2014"
_OPENS = re.compile(
    r"(?:so,? |thus,? |therefore,? |hence,? )?(?:it is |it's )?(?:the )?"
    r"(?:correct |right |final |best )?(?:answer |option |choice |letter )?(?:is |must be |: ?)?"
    r"(?:option |choice |letter )?[(\[]?([A-J])[)\]]?"
    r"(?:\s*$|\s*[.:,;)]|\s+[-\u2013\u2014]\s|\s*\(|\s+(?:because|since|as|for|due|which|with|by)\b)",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?<![\w'\u2019\\-])([A-J])(?![\w'\u2019+#-])")
_NO_NAME = re.compile(r"(?<![\w'\u2019(])[AI] (?=[a-z])")
"""The article and the pronoun."""
_NOT = re.compile(
    r"\b(?:not|no|never|neither|nor|except|wrong|incorrect|false|cannot|unlike|eliminat\w*|unclear)\b"
    r"|n['\u2019]t\b|\brul(?:e|es|ed|ing) out\b",
    re.IGNORECASE,
)
_SAYS = re.compile(r"(?:answer|option|choice)(?:\s+is|\s*[:=])\s*(?!\s)", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")


def options(question: str) -> dict[str, str]:
    """The options that a question lists, by letter; none where it lists none from A on."""
    found = [(m, m[1] or m[2]) for m in _OPTION.finditer(question)]
    best: list[re.Match[str]] = []
    for i, (_, first) in enumerate(found):
        if first != "A":
            continue
        run: list[re.Match[str]] = []
        for match, letter in found[i:]:  # what is out of turn is named inside an option
            if letter == LETTERS[len(run) : len(run) + 1]:
                run.append(match)
        if len(run) >= max(len(best), 2):
            best = run
    ends = [m.start() for m in best[1:]] + [len(question)]
    return {
        letter: _bare(question[m.end() : end].strip().split("\n", 1)[0])
        for letter, m, end in zip(LETTERS, best, ends)
    }


def gold_letter(gold: str, listed: dict[str, str]) -> str | None:
    """The letter of a gold answer, which is a letter or the text of an option; None if it is neither."""
    letter = gold.strip(_ALONE).upper()
    return letter if letter and letter in list(listed or LETTERS) else read(gold, listed)


def find(
    text: str, marker: str, fallback: bool, listed: dict[str, str]
) -> tuple[str | None, str | None]:
    """(letter, what was read) of a candidate's text. The letter is None where there is no clear one;
    what was read is None where there is nothing to read."""
    if marker in text:
        said = extract(text, marker, fallback, is_number=False)
        return (None, None) if said is None else (read(said, listed), said)
    boxes = [match[1] for match in _BOX.finditer(text)]
    if boxes:
        return _agreed(boxes, listed)
    if not fallback:
        return None, None
    starts = [match.span() for match in _SAYS.finditer(text)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    said_each = [_line(text, at, end) for (_, at), end in zip(starts, ends)]
    if said_each:
        return _agreed(said_each, listed)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    lettered = [_OPENS.match(_bare(line[:LONGEST])) is not None for line in lines]
    # A list of steps is lettered too: the last line counts if no other opens with a letter.
    if lines and not any(lettered[:-1]) and (lettered[-1] or len(lines) == 1):
        return read(lines[-1], listed), lines[-1]
    return None, None


def _line(text: str, at: int, end: int) -> str:
    return text[at : min(end, at + LONGEST)].split("\n", 1)[0]


def _agreed(said: list[str], listed: dict[str, str]) -> tuple[str | None, str]:
    """The letter of the last statement, if no other names another one."""
    letters = [read(one, listed) for one in said]
    return (letters[-1] if len({*letters} - {None}) == 1 else None), said[-1]


def read(said: str, listed: dict[str, str]) -> str | None:
    """The letter of a text that is an answer; None if it is not clear."""
    text = _bare(said[:LONGEST])
    equal = [letter for letter, option in listed.items() if option and _same(text, option)]
    alone = text.strip(_ALONE).upper()
    if len(alone) == 1 and alone in (listed or LETTERS):
        # Of options that are letters themselves, either may be meant.
        return alone if equal in ([], [alone]) else None
    if equal:
        return equal[0] if len(equal) == 1 else None
    opens = _OPENS.match(text)
    if opens is None or not opens[1].isupper() or opens[1] not in (listed or LETTERS):
        return None
    letter, rest = opens[1], text[opens.end() :].strip(_ALONE)
    own = listed.get(letter, "")
    if rest and own and _same(rest, own):
        return letter
    if rest and any(_same(rest, option) for option in listed.values() if option):
        return None
    value, wanted = number(rest), number(own)
    if value is not None and wanted is not None and value != wanted:
        return None
    named = set(_NAMED.findall(_NO_NAME.sub("", text)))
    return None if named - {letter} or _NOT.search(text) else letter


def _bare(text: str) -> str:
    text = _FRACTION.sub(r" \1/\2 ", text.replace("{,}", ","))
    return " ".join(_MARKUP.sub(" ", text).split())


def _same(one: str, other: str) -> bool:
    value, wanted = number(one), number(other)
    if value is not None and wanted is not None:
        return value == wanted
    return comparable(one) == comparable(other)
