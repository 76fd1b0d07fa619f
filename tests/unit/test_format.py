"""Every rule of the format scorer against texts that keep it and texts that break it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft import components
from rft.config import ConfigError
from rft.scorers.format import format, repetition
from rft.section import Component
from rft.types import Candidate, Finish, Prompt, Verdict

DATA = Path(os.environ.get("RFT_DATA") or Path(__file__).parents[3] / "shared" / "data")

R1 = {"tags": ["think", "answer"]}
PAIR = "<think>2 + 2</think><answer>4</answer>"


def broken(text: str, **args: Any) -> str | None:
    """What the scorer says is broken; None if all is well."""
    candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
    score = components.make("scorers", Component(use="format", args=args))(
        Prompt("p", "?"), candidate
    )
    if score.verdict is Verdict.CORRECT:
        assert score.reason is None
        return None
    assert score.verdict is Verdict.WRONG and score.reason.startswith("format:")
    reason: str = score.reason.removeprefix("format:")
    return reason


ROWS: list[tuple[dict[str, Any], str, str | None]] = [
    (R1, PAIR, None),
    (R1, f"Well.\n{PAIR}\n", None),
    (R1, "<answer>4</answer><think>2 + 2</think>", "tags"),
    (R1, "<think>2 + 2<answer>4</answer></think>", "tags"),
    (R1, "<think>2 + 2</think><answer>4", "tags"),
    (R1, "<think>2 + 2</think>4</answer>", "tags"),
    (R1, f"{PAIR}<answer>5</answer>", "tags"),
    (R1, "<think>a<think>b</think></think><answer>4</answer>", "tags"),
    (R1, "<think>2 + 2</think><answer>  \n</answer>", "tags"),
    (R1, "<Think>2 + 2</Think><answer>4</answer>", "tags"),
    (R1, "4", "tags"),
    (R1, "", "tags"),
    (R1, "<think>a <b>bold</b> word</think><answer>4</answer>", None),
    ({**R1, "only_tags": True}, f" {PAIR}\n", None),
    ({**R1, "only_tags": True}, f"Well. {PAIR}", "tags"),
    ({**R1, "only_tags": True}, f"{PAIR} So 4.", "tags"),
    ({**R1, "only_tags": True}, "<think>2</think> and <answer>4</answer>", "tags"),
    ({**R1, "prefix": "<think>"}, PAIR.removeprefix("<think>"), None),
    ({**R1, "prefix": "<think>"}, PAIR, "tags"),
    ({"think": "required"}, "<think>2 + 2</think>4", None),
    ({"think": "required"}, "\n<think>\n2 + 2\n</think>\n\n4", None),
    ({"think": "required"}, "4", "think"),
    ({"think": "required"}, "<think>2 + 2", "think"),
    ({"think": "required"}, "<think>2 + 2</think>", "think"),
    ({"think": "required"}, "<think>\n\n</think>4", "think"),
    ({"think": "required"}, "So: <think>2 + 2</think>4", "think"),
    ({"think": "required"}, "<think>a</think><think>b</think>4", "think"),
    ({"think": "required"}, "</think>a<think>4", "think"),
    ({"think": "required", "prefix": "<think>"}, "2 + 2</think>4", None),
    ({"think": "closed"}, "4", None),
    ({"think": "closed"}, "<think>\n\n</think>\n\n4", None),
    ({"think": "closed"}, "<think>2 + 2", "think"),
    ({"think": "closed"}, "2 + 2</think>4", "think"),
    ({"think": "forbidden"}, "4", None),
    ({"think": "forbidden"}, "<think></think>4", "think"),
    ({"think": "forbidden"}, "2 + 2</think>4", "think"),
    ({"must_match": r"#### -?\d+$"}, "2 + 2 = 4\n#### 4", None),
    ({"must_match": r"#### -?\d+$"}, "#### four", "must_match"),
    ({"must_match": ["a", "b"]}, "ab", None),
    ({"must_match": ["a", "b"]}, "aa", "must_match"),
    ({"must_not_match": r"(?i)as an ai\b"}, "2 + 2 = 4", None),
    ({"must_not_match": r"(?i)as an ai\b"}, "As an AI, I say 4", "must_not_match"),
    ({"must_not_match": ["x", "\ufffd"]}, "a\ud800b", "must_not_match"),
    ({"scripts": ["Latin"]}, "So the circle, für Anna, has 2π.", None),
    ({"scripts": ["latin"]}, "2 + 2 = 4", None),
    ({"scripts": ["Latin"]}, "𝑥 = 𝟜 and ℝ is a set", None),
    ({"scripts": ["Latin"]}, "So 2 + 2 等于 4 个苹果", "scripts"),
    ({"scripts": ["Latin"]}, "Значит, 4", "scripts"),
    ({"scripts": ["Latin"], "min_script": 1}, "the \u0430nswer is 4", "scripts"),  # Cyrillic a
    ({"scripts": ["Latin"], "min_script": 1}, "the answer is 4", None),
    ({"scripts": ["Han", "Hiragana", "Katakana"]}, "りんごは4個です。合計", None),
    ({"scripts": ["Han"]}, "りんごは4個です", "scripts"),
    ({"min_characters": 3}, " ab \n", "min_characters"),
    ({"min_characters": 3}, "abc", None),
    ({"max_characters": 3}, "abcd", "max_characters"),
    ({"max_characters": 3}, "äöü\n", None),
    ({"min_words": 3}, "2 +", "min_words"),
    ({"min_words": 3}, "2 + 2", None),
    ({"min_words": 4}, "四个苹果", None),
    ({"max_words": 3}, "2 + 2 = 4", "max_words"),
    ({"max_words": 3}, "2 + 2\n", None),
    ({"min_lines": 2}, "a\n\n \n", "min_lines"),
    ({"min_lines": 2}, "a\n\nb", None),
    ({"max_lines": 1}, "a\n\nb", "max_lines"),
    ({"max_lines": 1}, "\na\n\n", None),
    ({"max_repetition": 0.35}, "She has 3 + 4 = 7 apples.\n" * 3, "max_repetition"),
    ({"max_repetition": 0.35}, "She has 3 + 4 = 7 apples.", None),
    ({"max_repetition": 0.35}, "no " * 40, "max_repetition"),
    ({"max_repetition": 0.35}, "哈" * 40, "max_repetition"),
    ({"max_repetition": 0.35}, "ha", None),
    ({"max_repetition": 0}, "a b c a b c", None),
    ({"max_repetition": 0, "repetition_n": 3}, "a b c a b c", "max_repetition"),
    ({"ends_with": "</answer>"}, PAIR + "\n", None),
    ({"ends_with": ["</answer>", "4"]}, "so 4", None),
    ({"ends_with": "</answer>"}, PAIR + " 4", "ends_with"),
    ({"ends_sentence": True}, "It is 4.", None),
    ({"ends_sentence": True}, "It is **4.**\n", None),
    ({"ends_sentence": True}, 'He said "4!" ', None),
    ({"ends_sentence": True}, "It is $x = 4.$", None),
    ({"ends_sentence": True}, "是4。", None),
    ({"ends_sentence": True}, "It is 4 and", "ends_sentence"),
    ({"ends_sentence": True}, "", "ends_sentence"),
    ({"closed": ["fences"]}, "```python\nx\n```\n", None),
    ({"closed": ["fences"]}, "```python\nx\n", "closed fences"),
    ({"closed": ["fences"]}, "1. a\n   ```\n   x\n   ```\ndone", None),
    ({"closed": ["fences"]}, "````\n```\n````", None),
    ({"closed": ["fences"]}, "```\n~~~\n```", None),
    ({"closed": ["fences"]}, "````\nx\n```", "closed fences"),
    ({"closed": ["fences"]}, "```\nx\n``` more", "closed fences"),
    ({"closed": ["fences"]}, "```x``` is code", None),
    ({"closed": ["dollars"]}, "$x$ and $$y$$", None),
    ({"closed": ["dollars"]}, "$x$$y$", None),
    ({"closed": ["dollars"]}, r"\$5 and $x$", None),
    ({"closed": ["dollars"]}, "$x and y", "closed dollars"),
    ({"closed": ["dollars"]}, "$$x$", "closed dollars"),
    ({"closed": ["braces"]}, r"\frac{1}{2} \{", None),
    ({"closed": ["braces"]}, r"\frac{1}{2", "closed braces"),
    ({"closed": ["braces"]}, "}{", "closed braces"),
    ({"closed": ["fences", "braces"], "min_words": 2}, "{ x", "closed braces"),
    # The first broken rule is named.
    ({"max_words": 1, "ends_with": "."}, "a b", "max_words"),
]


@pytest.mark.parametrize("args, text, reason", ROWS)
def test_table(args: dict[str, Any], text: str, reason: str | None) -> None:
    assert broken(text, **args) == reason


def test_every_rule_is_kept_and_broken_in_the_table() -> None:
    rules = set(components.parameters("scorers", "format"))
    shape = {"only_tags", "min_script", "repetition_n", "prefix"}
    for rule in rules - shape:
        kept = [reason is None for args, _, reason in ROWS if rule in args]
        assert True in kept and False in kept, rule


@pytest.mark.parametrize(
    "args, words",
    [
        ({}, "format checks nothing: give at least one of"),
        ({"tags": []}, "format checks nothing"),
        ({"prefix": "<think>"}, "format checks nothing"),
        ({"must_match": []}, "format checks nothing"),
        ({"must_match": "a(?=b)"}, r"must_match: RE2 can't run 'a\(\?=b\)': invalid perl operator"),
        ({"must_not_match": r"(a)\1"}, "must_not_match: RE2 can't run"),
        ({"must_match": "a{2000}"}, "invalid repetition size"),
        ({"scripts": ["Latn"]}, "scripts: there is no 'Latn' in Unicode; scripts are Latin, Greek"),
        ({"scripts": ["Lu"]}, "scripts: there is no 'Lu'"),
        ({"scripts": ["L}a"]}, "String should match pattern"),
        ({"min_words": 3, "max_words": 2}, "min_words 3 is above max_words 2"),
        ({"min_words": -1}, "greater than or equal to 0"),
        ({"max_repetition": 2}, "less than or equal to 1"),
        ({"tags": ["a", "a"]}, "tags: name each section once"),
        ({"tags": ["a b"]}, "String should match pattern"),
        ({"only_tags": True, "max_words": 3}, "only_tags: only with tags"),
        ({"ends_with": ""}, "ends_with: every text ends in nothing"),
        ({"closed": ["brackets"]}, "fences"),
        ({"thinks": "closed"}, "did you mean think"),
    ],
)
def test_arguments_that_make_no_sense(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        broken("x", **args)


def test_a_rule_of_zero_is_a_rule() -> None:
    assert broken("x", max_words=0) == "max_words"
    assert broken("", max_words=0) is None


def test_repetition_is_the_share_of_ngrams_seen_before() -> None:
    assert repetition("a b c d", 4) == 0
    assert repetition("a b c", 4) == 0
    # Of the pairs ab bc ca ab bc, two were there before.
    assert repetition("a b c A b c", 2) == pytest.approx(2 / 5)
    assert repetition("no " * 103, 4) == 0.99


EVERYTHING: dict[str, Any] = {
    **R1,
    "think": "closed",
    "must_match": r"(a+)+$",
    "must_not_match": r"(x+x+)+y",
    "scripts": ["Latin"],
    "max_words": 10**9,
    "max_lines": 10**9,
    "max_repetition": 1.0,
    "ends_with": "no",
    "ends_sentence": True,
    "closed": ["fences", "dollars", "braces"],
}
HOSTILE = [
    "a" * 500_000 + "!",
    "x" * 500_000,
    "<think>" * 70_000,
    "</think><think>" * 30_000,
    "{" * 500_000,
    "$" * 500_001,
    "\\" * 500_001,
    "```\n~~~\n" * 60_000,
    "`" * 500_000,
    " " * 500_000,
    "\n" * 500_000,
    "> " * 250_000,
    '"' * 500_000,
    "\u202e\u200b\ufeff" * 150_000,
    "é\u0301" * 250_000,
    "\ud800" * 1000,
    "\0" * 1000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:6]))
def test_hostile_text_takes_linear_time(text: str) -> None:
    scorer = format(**EVERYTHING)
    begun = time.monotonic()
    list(scorer._broken(text))  # all rules, not only up to the first that is broken
    assert time.monotonic() - begun < 3


PIECES = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "$", "$$", "{", "}", "\\", "```", "~~~", "\n", " ",
     "a", "b.", "\ud800", "\0", "\u202e", "\u4e00"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=20).map("".join)))
@settings(max_examples=300, deadline=None)
def test_no_text_raises(text: str) -> None:
    assert set(format(**EVERYTHING)._broken(text)) <= {
        *components.parameters("scorers", "format"),
        *(f"closed {what}" for what in EVERYTHING["closed"]),
    }


def solutions(name: str, column: str) -> list[str]:
    paths = sorted((DATA / name).glob("*.jsonl"))
    if not paths:
        pytest.skip(f"{DATA / name} is not here: set RFT_DATA to the folder that holds {name}")
    lines = [line for path in paths for line in path.read_text().split("\n") if line]
    return [json.loads(line)[column] for line in lines]


def refused(texts: list[str], **args: Any) -> float:
    scorer = format(**args)
    made = (Candidate("c", "p", 0, text, (), (), Finish.REFERENCE) for text in texts)
    return sum(scorer(Prompt("p", "?"), c).verdict is not Verdict.CORRECT for c in made) / len(
        texts
    )


def test_real_solutions_are_kept() -> None:
    """The values that the documentation recommends, on all of GSM8K."""
    texts = solutions("gsm8k", "answer")
    assert len(texts) == 8792
    assert refused(texts, max_repetition=0.35) == 0
    assert refused(texts, scripts=["Latin"]) <= 0.001
    assert refused(texts, must_match=r"#### -?[\d.,]+$") == 0
    assert refused(texts, closed=["fences", "braces"]) <= 0.001
    # With a loop behind them, all are refused.
    loop = "She has 3 apples and buys 4 more, so 3 + 4 = 7 apples.\n" * 20
    assert refused([text + "\n" + loop for text in texts[::20]], max_repetition=0.35) == 1


def test_real_solutions_of_math_are_kept() -> None:
    texts = solutions("math", "solution")
    assert refused(texts, max_repetition=0.35) <= 0.0015
    assert refused(texts, scripts=["Latin"]) <= 0.001
    assert refused(texts, closed=["braces"]) <= 0.001
