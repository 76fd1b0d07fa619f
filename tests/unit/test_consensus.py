"""The consensus scorer: classes of equal answers, votes, and every way to have no majority."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rft import components, workers
from rft.config import ConfigError
from rft.scorers import consensus as module
from rft.scorers.consensus import Rule, Text, answer, consensus, equal, judge
from rft.section import Component
from rft.types import Candidate, Finish, Prompt, Score, Verdict

RULE = Rule(min_share=0.5, min_votes=2, margin=0.0, marker="####", fallback=True)


def said(answers: str, **changes: Any) -> list[str]:
    """What is said of a prompt's answers, given with bars between; `@` opens a reference."""
    rule = Rule(**{**RULE.__dict__, **changes})
    texts = [
        Text(str(i), one.strip(" @"), not one.strip().startswith("@"))
        for i, one in enumerate(answers.split("|"))
    ]
    return [str(s.reason or s.verdict) for s in judge(texts, rule)]


@pytest.mark.parametrize(
    "answers, want, args",
    [
        # Votes of equal answers in different forms are counted together.
        ("#### 4 | #### 4 | #### 5", "correct correct minority", {}),
        (r"#### 0.5 | \boxed{\frac{1}{2}} | The answer is 1/2. | #### 2", "c c c minority", {}),
        ("#### 1,000 | #### 1000.0 | #### 100", "c c minority", {}),
        ("#### 18 dollars | x is big\n#### x = 18 | #### 8", "c c minority", {}),
        ("#### Tuesday | The answer is tuesday. | #### Tuesday", "c c c", {}),
        # Ties, and too little to say anything.
        ("#### 4 | #### 4 | #### 5 | #### 5", "tie tie tie tie", {}),
        ("#### 4 | #### 4 | #### 5 | #### 5.0", "tie tie tie tie", {"min_share": 0.1}),
        ("#### 4", "no_majority", {}),
        ("#### 4", "c", {"min_votes": 1}),
        ("#### 4 | #### 5 | #### 6", "no_majority no_majority no_majority", {}),
        ("#### 4 | #### 4 | #### 5 | #### 6", "c c minority minority", {}),
        ("#### 4 | #### 4 | #### 5", "no_majority no_majority no_majority", {"min_share": 0.7}),
        ("#### 4 | #### 4 | #### 5 | #### 6 | #### 7", "c c m m m", {"min_share": 0.4}),
        ("#### 4 | #### 4 | #### 5", "no_majority no_majority no_majority", {"min_votes": 3}),
        ("#### 4 | #### 4 | #### 5", "c c minority", {"margin": 0.33}),
        ("#### 4 | #### 4 | #### 5", "no_majority no_majority no_majority", {"margin": 0.34}),
        # What can't be read has no vote.
        ("#### 4 | #### 4 | nothing | none", "c c unparsed unparsed", {"min_share": 1.0}),
        ("nothing | none", "unparsed unparsed", {}),
        ("#### | ", "unparsed unparsed", {}),
        # A heading that all samples share is no answer.
        ("#### Solution\n3\n#### 4 | #### Solution\n2\n#### 5", "unparsed unparsed", {}),
        # References are judged and have no vote.
        ("@ #### 4 | #### 4 | #### 5", "no_gold no_majority no_majority", {"min_share": 0.6}),
        ("@ #### 5 | @ #### 5 | #### 4 | #### 4", "minority minority c c", {}),
        ("@ #### 4.0 | #### 4 | #### 4", "c c c", {}),
        ("@ #### 4", "no_gold", {"min_votes": 1}),
        ("@ no answer | #### 4 | #### 4", "unparsed c c", {}),
        # Without the fallback only marked answers count.
        ("so 4 | so 4 | #### 5", "unparsed unparsed no_majority", {"fallback": False}),
        ("so 4 | so 4 | #### 5", "c c minority", {}),
        ("so 4 | #### 4 | so 5", "c c unsure", {}),
        ("=> 4 | => 4", "c c", {"marker": "=>", "fallback": False}),
    ],
)
def test_judge(answers: str, want: str, args: dict[str, Any]) -> None:
    short = {"c": "correct", "m": "minority"}
    assert said(answers, **args) == [short.get(word, word) for word in want.split()]


def test_scores_tell_the_answer_and_its_share() -> None:
    texts = [Text(str(i), f"#### {a}", True) for i, a in enumerate(("4", "4.0", "5"))]
    got = judge(texts, RULE)
    assert [s.extracted for s in got] == ["4", "4.0", "5"]
    assert [s.value for s in got] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert got[2] == Score(Verdict.WRONG, "minority", "5", got[2].value)
    (alone,) = judge([Text("r", "#### 4", False)], RULE)
    assert alone == Score(Verdict.UNKNOWN, "no_gold", "4", None)


def test_order_plays_no_part() -> None:
    draw = random.Random(0)
    for _ in range(20):
        answers = draw.choices(["4", "4.0", "8/2", "5", "x+1", "six", "Six."], k=9)
        texts = [Text(str(i), f"#### {a}", True) for i, a in enumerate(answers)]
        first = dict(zip((t.id for t in texts), judge(texts, RULE)))
        draw.shuffle(texts)
        again = dict(zip((t.id for t in texts), judge(texts, RULE)))
        assert {k: (s.verdict, s.reason) for k, s in first.items()} == {
            k: (s.verdict, s.reason) for k, s in again.items()
        }


def test_only_different_forms_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    real = module.same

    def counted(one: str, other: str) -> bool | None:
        asked.append((one, other))
        return real(one, other)

    monkeypatch.setattr(module, "same", counted)
    votes = {"4": 30, "4.0": 20, "8/2": 4, "5": 5, "5.00": 2, "6": 1}
    classes = equal(votes)
    assert sorted(c.votes for c in classes) == [1, 7, 54]
    assert len(asked) == 3  # 4 and 5, 4 and 6, 5 and 6: not one for each pair of samples


def test_what_cannot_be_compared_is_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "same", lambda a, b: None if "f(x)" in (a, b) else a == b)
    assert said("#### 4 | #### 4 | #### f(x) | #### 5") == ["correct"] * 2 + ["unsure", "minority"]


@pytest.mark.parametrize(
    "text, want",
    [
        ("#### 18", "18"),
        ("#### 18 dollars", "18 dollars"),
        ("#### -5 degrees", "-5 degrees"),
        ("#### - 5", "- 5"),
        ("#### 50%", "50%"),
        ("#### we lose: -$5", "-5"),
        ("#### He has 18 left", "18"),
        (r"\boxed{x5}", "x5"),
        ("#### 5" + " " * 1_000 + "euros", "5"),
        ("#### ab" + " " * 1_000 + "!5", "ab" + " " * 1_000 + "!5"),
        (r"\boxed{x = 18}", "x = 18"),
        (r"\boxed{x + 1}", "x + 1"),
        (r"\boxed{x - 1}", "x - 1"),
        (r"\boxed{5_8}", "5_8"),
        (r"\boxed{x > 5}", "x > 5"),
        ("#### 4 or 5", "4 or 5"),
        (r"\boxed{2\sqrt{3}}", r"2\sqrt{3}"),
        (r"\boxed{(1, 2)}", "(1, 2)"),
        ("The answer is Tuesday.", "Tuesday"),
        ("There are 7 days. The answer is Tuesday.", "Tuesday"),
        ("There are 7 days.\n#### Tuesday", "Tuesday"),
        ("#### Solution\nThere are 7 days.\n#### Tuesday", None),
        ("<think>The answer is 3.</think>The answer is 4.", "4"),
        ("so 3 + 4 = 7", "7"),
        ("so seven", None),
    ],
)
def test_answer_is_a_number_only_where_it_is_one(text: str, want: str | None) -> None:
    assert answer(text, RULE)[0] == want


# Through the worker processes --------------------------------------------------------------------


def candidate(id: str, text: str, finish: Finish = Finish.STOP) -> Candidate:
    prompt, _, index = id.partition(".")
    return Candidate(id, prompt, int(index), text, (), (), finish)


def scored(groups: dict[str, Sequence[Candidate]], **args: Any) -> dict[str, Score]:
    scorer = components.make("scorers", Component(use="consensus", args=args))
    pairs = list(scorer.score((Prompt(p, "?"), members) for p, members in groups.items()))
    got = dict(pairs)
    assert len(got) == len(pairs)
    assert set(got) == {c.id for members in groups.values() for c in members}
    return got


def test_every_candidate_has_its_score_once() -> None:
    groups = {
        f"p{p}": [candidate(f"p{p}.{i}", f"#### {min(i, p)}") for i in range(8)] for p in range(100)
    }
    groups["cut"] = [candidate("cut.0", "#### 4", Finish.LENGTH)]
    groups["p0"] += [candidate("p0.8", "#### 5", Finish.LENGTH)]
    groups["p1"] += [candidate("p1.8", "#### 1.0", Finish.REFERENCE)]
    got = scored(groups)
    assert got["cut.0"] == got["p0.8"] == Score(Verdict.UNKNOWN, "truncated")
    assert {got[f"p0.{i}"] for i in range(8)} == {Score(Verdict.CORRECT, None, "0", 1.0)}
    assert got["p1.8"] == Score(Verdict.CORRECT, None, "1.0", 7 / 8)
    assert got["p1.0"].reason == "minority"
    assert {got[f"p5.{i}"].reason for i in range(8)} == {"no_majority"}


def test_prompts_are_pulled_as_there_is_room() -> None:
    pulled = 0

    def groups() -> Iterator[tuple[Prompt, list[Candidate]]]:
        nonlocal pulled
        for pulled in itertools.count(1):
            yield (
                Prompt(f"p{pulled}", "?"),
                [candidate(f"p{pulled}.{i}", "#### 4") for i in range(64)],
            )

    got = consensus().score(groups())
    next(got)
    assert pulled <= 64
    got.close()  # type: ignore[attr-defined]


def test_no_prompts_and_no_workers() -> None:
    assert list(consensus().score(iter([]))) == []


def hang(rule: Rule) -> Any:
    """A worker that can't end with one of the prompts, as in a comparison inside a C library."""

    def work(chunk: Any, begin: Any) -> Any:
        results = []
        for i, texts in enumerate(chunk):
            begin(i)
            if texts[0].text == "hang":
                9**9**9
            results.append(judge(texts, rule))
        return results

    return work


def test_a_prompt_that_takes_too_long_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "make", hang)
    monkeypatch.setattr(module, "TIMEOUT_S", 1.0)
    groups = {
        "a": [candidate(f"a.{i}", "#### 4") for i in range(3)],
        "b": [candidate("b.0", "hang"), candidate("b.1", "#### 4")],
        "c": [candidate(f"c.{i}", "#### 4") for i in range(3)],
    }
    got = scored(groups)
    assert got["b.0"] == got["b.1"] == Score(Verdict.UNKNOWN, "timeout")
    assert {got[f"{p}.{i}"].verdict for p in "ac" for i in range(3)} == {Verdict.CORRECT}


HOSTILE = [
    r"\boxed{5^{5^{5^{5^5}}}}",
    r"\boxed{" + "(" * 5000 + "5" + ")" * 5000 + "}",
    r"\boxed{\frac{1}{" * 500 + "2" + "}" * 500 + "}",
    "#### " + "9" * 100_000,
    "#### 1e999999999",
    "answer is " * 20_000,
    "\\boxed{" * 2_000,
    "#### 100000!",
    "#### " + "+".join(["x"] * 2000),
]


def test_hostile_answers_end_in_a_verdict() -> None:
    groups = {
        f"p{i}": [candidate(f"p{i}.0", text), *(candidate(f"p{i}.{k}", "#### 4") for k in (1, 2))]
        for i, text in enumerate(HOSTILE)
    }
    got = scored(groups)
    for i in range(len(HOSTILE)):
        assert got[f"p{i}.0"].verdict is not Verdict.CORRECT, HOSTILE[i][:40]
        # The others are right, or unknown together with a comparison that could not end.
        others = {(str(got[f"p{i}.{k}"].verdict), got[f"p{i}.{k}"].reason) for k in (1, 2)}
        assert others in ({("correct", None)}, {("unknown", "timeout")}), (HOSTILE[i][:40], others)


@pytest.mark.parametrize(
    "args, words",
    [
        ({"min_share": 1.5}, "less than or equal to 1"),
        ({"min_votes": 0}, "greater than or equal to 1"),
        ({"marker": ""}, "at least 1 character"),
        ({"share": 0.5}, "did you mean min_share|takes no argument 'share'"),
    ],
)
def test_arguments(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        components.make("scorers", Component(use="consensus", args=args))


def test_it_is_a_stream_scorer_over_whole_prompts() -> None:
    assert consensus.whole_prompts and callable(consensus.score)
    assert workers.run  # the deadline is theirs
