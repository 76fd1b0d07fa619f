"""The form of an answer: sections, patterns, writing system, length, repetition, ending.

Peers check form with one regular expression, which backtracks and which nobody can read. Here each
rule is a setting with a name, and a broken one is named in the reason. Every rule takes time linear
in the text. No rule looks at whether the answer is right: combine this with a scorer that does.

Repetition is seq-rep-n of Welleck et al. (Neural Text Generation with Unlikelihood Training, 2020,
section 6): one minus the number of distinct n-grams over the number of n-grams. Compression ratio,
the other usual measure, grows with length: 2.4, the limit that Whisper uses, refuses 1.1% of GSM8K's
own solutions.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from rft.scorers._regex import Regex
from rft.types import Candidate, Prompt, Score, Verdict

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Names = list[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]]

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
"""What stands between spaces; Chinese and Japanese have none, so each character is a word there."""
_THINK = re.compile(r"</?think>")
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})(.*)$", re.MULTILINE)
_ENDS = tuple(".!?\u2026\u3002\uff01\uff1f\u061f\u0964")
_AFTER_END = " \t\r\n\"'*_`)]}$\u201d\u2019\u00bb\u300d"
"""What may stand behind a sentence's last sign."""


class format:
    """Correct if the text keeps every rule that is given, wrong at the first that it breaks.

    The reason names the rule, for instance `format:max_words`. Every rule is off unless it is given,
    and giving none is an error. The gold answer plays no part.

    tags: sections `<name>...</name>` that must be there, each once, with text in it, one after the
    other in this order. `[think, answer]` is the form of DeepSeek-R1.
    only_tags: nothing but white space may stand outside of `tags`.
    think: `required`: the text opens with a `<think>` block that holds text and is closed, and goes on
    behind it. `closed`: where there is a block, it opens the text and is closed (it may be empty).
    `forbidden`: no `<think>` and no `</think>`.
    must_match: regular expressions (RE2) that must each be found in the text.
    must_not_match: regular expressions (RE2) none of which may be found.
    scripts: writing systems that the letters must belong to, by their Unicode names: `[Latin]`, or
    `[Han, Hiragana, Katakana]`. This finds an answer that drifts into another alphabet; languages of
    one script, such as English and French, are not told apart.
    min_script: share of the letters that must belong to `scripts`. Below 1, so that a π or a name
    may stand in the text.
    min_characters: least number of characters, without white space at both ends.
    max_characters: largest number of characters.
    min_words: least number of words; a word is what stands between spaces, and in Chinese and
    Japanese each character.
    max_words: largest number of words.
    min_lines: least number of lines that hold anything.
    max_lines: largest number of such lines.
    max_repetition: largest share of repeated n-grams of words. 0.35 refuses none of GSM8K's 8,792
    solutions and one in a thousand of MATH's, and finds ten repeats of a sentence after 400 words.
    repetition_n: words in an n-gram of `max_repetition`.
    ends_with: the text must end in one of these, white space aside.
    ends_sentence: the text must end like a sentence: `.`, `!`, `?`, `…` or the signs of other
    scripts; quotes, brackets, `$` and Markdown stars may follow.
    closed: what must not be left open: `fences` (Markdown code blocks), `dollars` (`$...$` and
    `$$...$$`; not for texts with prices), `braces` (`{...}`; those behind a backslash don't count).
    prefix: text that the prompt has already given the answer (`chat.response_prefix`, or a `<think>`
    in the chat template), read as its beginning.
    """

    def __init__(
        self,
        *,
        tags: Names | None = None,
        only_tags: bool = False,
        think: Literal["required", "closed", "forbidden"] | None = None,
        must_match: str | list[str] | None = None,
        must_not_match: str | list[str] | None = None,
        scripts: Names | None = None,
        min_script: Share = 0.9,
        min_characters: Count | None = None,
        max_characters: Count | None = None,
        min_words: Count | None = None,
        max_words: Count | None = None,
        min_lines: Count | None = None,
        max_lines: Count | None = None,
        max_repetition: Share | None = None,
        repetition_n: Annotated[int, Field(ge=1)] = 4,
        ends_with: str | list[str] | None = None,
        ends_sentence: bool = False,
        closed: list[Literal["fences", "dollars", "braces"]] | None = None,
        prefix: str = "",
    ):
        self._tags, self._only_tags, self._think = tags or [], only_tags, think
        self._tag = re.compile(rf"<(/?)({'|'.join(map(re.escape, self._tags))})>")
        self._must = [Regex(p, "must_match") for p in _listed(must_match)]
        self._must_not = [Regex(p, "must_not_match") for p in _listed(must_not_match)]
        self._script = _in_scripts(scripts) if scripts else None
        self._min_script = min_script
        self._limits: dict[str, tuple[int | None, int | None]] = {
            "characters": (min_characters, max_characters),
            "words": (min_words, max_words),
            "lines": (min_lines, max_lines),
        }
        self._max_repetition, self._n = max_repetition, repetition_n
        self._ends_with = tuple(_listed(ends_with))
        self._ends_sentence = ends_sentence
        self._closed, self._prefix = closed or [], prefix
        for unit, (low, high) in self._limits.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{unit} {low} is above max_{unit} {high}")
        if len(set(self._tags)) < len(self._tags):
            raise ValueError("tags: name each section once")
        if only_tags and not tags:
            raise ValueError("only_tags: only with tags")
        if "" in self._ends_with:
            raise ValueError("ends_with: every text ends in nothing; name an ending")
        bounds = [bound for pair in self._limits.values() for bound in pair]
        rules = [tags, think, self._must, self._must_not, scripts, self._ends_with, ends_sentence]
        if not any([*rules, closed]) and all(b is None for b in [*bounds, max_repetition]):
            raise ValueError(
                "format checks nothing: give at least one of tags, think, must_match, "
                "must_not_match, scripts, min_/max_ characters, words or lines, max_repetition, "
                "ends_with, ends_sentence, closed"
            )

    @staticmethod
    def check_args(args: dict[str, Any]) -> None:
        """Finds what is wrong with the arguments when an experiment is planned."""
        format(**args)

    def __call__(self, prompt: Prompt, candidate: Candidate) -> Score:
        broken = next(self._broken(self._prefix + candidate.text), None)
        if broken:
            return Score(Verdict.WRONG, f"format:{broken}")
        return Score(Verdict.CORRECT)

    def _broken(self, text: str) -> Iterator[str]:
        """The rules that the text breaks."""
        for unit, (low, high) in self._limits.items():
            if low is not None or high is not None:
                size = _size(text, unit)
                if low is not None and size < low:
                    yield f"min_{unit}"
                if high is not None and size > high:
                    yield f"max_{unit}"
        if self._tags and not self._has_sections(text):
            yield "tags"
        if self._think and not _thinks(text, self._think):
            yield "think"
        if not all(pattern.found(text) for pattern in self._must):
            yield "must_match"
        if any(pattern.found(text) for pattern in self._must_not):
            yield "must_not_match"
        if self._script and self._in_script(text) < self._min_script:
            yield "scripts"
        if self._max_repetition is not None and repetition(text, self._n) > self._max_repetition:
            yield "max_repetition"
        if self._ends_with and not text.rstrip().endswith(self._ends_with):
            yield "ends_with"
        if self._ends_sentence and not text.rstrip(_AFTER_END).endswith(_ENDS):
            yield "ends_sentence"
        for what in self._closed:
            if not CLOSED[what](text):
                yield f"closed {what}"

    def _has_sections(self, text: str) -> bool:
        found = list(self._tag.finditer(text))
        wanted = [(slash, name) for name in self._tags for slash in ("", "/")]
        if [(m[1], m[2]) for m in found] != wanted:
            return False
        starts, ends = found[::2], found[1::2]
        if not all(text[a.end() : b.start()].strip() for a, b in zip(starts, ends)):
            return False
        outside = [(None, starts[0]), *zip(ends, starts[1:]), (ends[-1], None)]
        return not self._only_tags or not any(
            text[a.end() if a else 0 : b.start() if b else len(text)].strip() for a, b in outside
        )

    def _in_script(self, text: str) -> float:
        """Share of the letters that belong to the scripts; 1 where there is no letter."""
        letters = [c for c in text if c.isalpha()]
        assert self._script
        there = set("".join(self._script.all("".join(sorted(set(letters))))))
        return sum(c in there for c in letters) / len(letters) if letters else 1.0


def _listed(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else given or []


def _in_scripts(names: list[str]) -> Regex:
    classes = []
    for name in names:
        one = rf"\p{{{name[0].upper()}{name[1:]}}}"
        try:
            if len(name) < 3 or name == "Any":  # \p{Lu} is a kind of letter, and no script
                raise ValueError
            Regex(one, "scripts")
        except ValueError:
            raise ValueError(
                f"scripts: there is no {name!r} in Unicode; scripts are Latin, Greek, Cyrillic, "
                "Arabic, Hebrew, Devanagari, Thai, Han, Hiragana, Katakana, Hangul, ..."
            ) from None
        classes.append(one)
    # Letters of no script, such as those of mathematical alphabets, belong to all.
    return Regex(rf"[{''.join(classes)}\p{{Common}}\p{{Inherited}}]+", "scripts")


def _size(text: str, unit: str) -> int:
    if unit == "words":
        return sum(1 for _ in _WORD.finditer(text))
    if unit == "lines":
        return sum(1 for line in text.splitlines() if line.strip())
    return len(text.strip())


def _thinks(text: str, rule: str) -> bool:
    found = list(_THINK.finditer(text))
    if rule == "forbidden" or (rule == "closed" and not found):
        return not found
    if [m.group() for m in found] != ["<think>", "</think>"] or text[: found[0].start()].strip():
        return False
    inside, after = text[found[0].end() : found[1].start()], text[found[1].end() :]
    return bool(after.strip()) and (rule == "closed" or bool(inside.strip()))


def repetition(text: str, n: int) -> float:
    """Share of the n-grams of words that occurred before; 0 where there is none (seq-rep-n)."""
    words = _WORD.findall(text.casefold())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _fences(text: str) -> bool:
    """No code block is left open: CommonMark, but however far a fence is indented."""
    fence = ""
    for match in _FENCE.finditer(text):
        signs, rest = match.groups()
        if not fence:
            if not (signs[0] == "`" and "`" in rest):  # ```x``` on one line is no block
                fence = signs
        elif signs[0] == fence[0] and len(signs) >= len(fence) and not rest.strip():
            fence = ""
    return not fence


def _dollars(text: str) -> bool:
    """Math opened by `$` or `$$` is closed by the same."""
    held = ""
    for sign in re.findall(r"\\.|\$\$?", text, re.DOTALL):
        if sign[0] == "\\":
            continue
        if not held:
            held = sign
        elif sign == held:
            held = ""
        elif held == "$":  # `$x$$y$`: one formula behind the other
            held = "$"
        else:
            return False
    return not held


def _braces(text: str) -> bool:
    depth = 0
    for sign in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0


CLOSED = {"fences": _fences, "dollars": _dollars, "braces": _braces}
