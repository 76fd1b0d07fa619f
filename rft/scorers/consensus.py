"""The majority answer of a prompt's own samples, for problems that have no gold answer.

Self-consistency (Wang et al., 2023) and maj@k count answers as strings, so `1/2`, `0.5` and
`\\frac{1}{2}` split their vote. Here answers are put into classes of equal ones: first by their exact
form, which costs a dictionary lookup each; then the classes that are left are compared with one
another, one representative of each, largest class first. With C different exact forms that is at most
C * (C - 1) / 2 comparisons, whatever the number of samples. All of it runs in worker processes, with
a deadline for each prompt.

A reference does not vote. It would turn a majority of the policy into one of policy and data set,
and where there are references and few samples it would decide by itself. It is judged like the rest.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from rft import workers
from rft.scorers._equal import key, same
from rft.scorers._extract import final_answer, guess, number
from rft.scorers._text import comparable
from rft.types import CUT_OFF, Candidate, Finish, Prompt, Score, Verdict

TIMEOUT_S = 10.0
"""Seconds that the answers of one prompt may take to compare."""

CHUNK = 256
"""Candidates to give a worker at a time."""

_WORDS = r"[^\d\\^_+*/|<>={}':-]*"
_BEFORE = re.compile(
    rf"(?:[a-zA-Z] ?=|{_WORDS}[a-zA-Z]{{2}}:?)?[\s($\u20ac\u00a3\"]*+(-?)[\s$\u20ac\u00a3]*+"
)
_AFTER = re.compile(_WORDS)
"""What may stand around a number that is the whole answer: `x =`, `He has`, `dollars`."""

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Text:
    """What a worker needs of a candidate."""

    id: str
    text: str
    votes: bool
    """False for a reference, which is judged only."""


@dataclass(frozen=True)
class Rule:
    """The arguments of `consensus`."""

    min_share: float
    min_votes: int
    margin: float
    marker: str
    fallback: bool


class consensus:
    """Correct if the candidate's final answer is the one that most of its prompt's samples give.

    Needs no gold answer and looks at none. Equal answers in different forms (`1/2`, `0.5`) vote
    together. References are judged and don't vote; samples that were cut off and those without a readable
    answer are unknown and don't vote. `value` is the share of the votes that the candidate's answer
    has. Where a majority is found, other answers are wrong (`minority`), or unknown (`unsure`) if it
    can't be told whether they equal it, or if they are only the last number of a text without a
    marked answer. Where none is found, all samples are unknown (`no_majority`, or `tie`), and
    references are unknown for `no_gold`, as wherever nothing is known about a problem.

    It would judge the held-out problems too, whose gold answers it doesn't know: name another scorer
    in `eval.score`. Behind another scorer, samples whose verdict that one settled vote all the same.

    min_share: share of the votes that the biggest class of equal answers must have.
    min_votes: number of votes that it must have.
    margin: by how much its share must exceed that of the second class. Equal shares are a `tie` in
    any case.
    marker: what the answer follows, on its line or, if that is empty, on the next.
    fallback: whether an answer counts that has neither marker nor `\\boxed{...}`: what follows the last
    "answer is", else the last number of the text. Without it such a text is unknown.
    """

    whole_prompts = True
    hears_settled = True  # or a vote among what other scorers left open would decide

    def __init__(
        self,
        *,
        min_share: Share = 0.5,
        min_votes: Annotated[int, Field(ge=1)] = 2,
        margin: Share = 0.0,
        marker: Annotated[str, Field(min_length=1)] = "####",
        fallback: bool = True,
    ):
        self._rule = Rule(min_share, min_votes, margin, marker, fallback)

    def score(
        self, groups: Iterator[tuple[Prompt, Sequence[Candidate]]]
    ) -> Iterator[tuple[str, Score]]:
        cut: list[tuple[str, Score]] = []

        def chunks() -> Iterator[list[list[Text]]]:
            chunk: list[list[Text]] = []
            for _, candidates in groups:
                cut.extend(
                    (c.id, Score(Verdict.UNKNOWN, CUT_OFF[c.finish]))
                    for c in candidates
                    if c.finish in CUT_OFF
                )
                texts = [
                    Text(c.id, c.text, c.finish is not Finish.REFERENCE)
                    for c in candidates
                    if c.finish not in CUT_OFF
                ]
                if texts:
                    chunk.append(texts)
                if sum(map(len, chunk)) >= CHUNK:
                    yield chunk
                    chunk = []
            yield chunk

        count = min(len(os.sched_getaffinity(0)), 16)
        results = workers.run(make, (self._rule,), chunks(), workers=count, timeout_s=TIMEOUT_S)
        for chunk, got in results:
            if isinstance(got, workers.Failure):
                score = Score(Verdict.UNKNOWN, got.reason, got.detail or None)
                got = [[score] * len(chunk[0])]
            for texts, scores in zip(chunk, got, strict=True):
                yield from ((text.id, score) for text, score in zip(texts, scores, strict=True))
            while cut:
                yield cut.pop()
        yield from cut


def make(rule: Rule) -> Callable[[list[list[Text]], Callable[[int], None]], list[list[Score]]]:
    """What a worker does with a chunk of prompts."""

    def work(chunk: list[list[Text]], begin: Callable[[int], None]) -> list[list[Score]]:
        results = []
        for i, texts in enumerate(chunk):
            begin(i)
            results.append(judge(texts, rule))
        return results

    return work


def judge(texts: Sequence[Text], rule: Rule) -> list[Score]:
    """The scores of one prompt's candidates, in their order."""
    said = [answer(text.text, rule) for text in texts]
    voted: Counter[str] = Counter()
    for text, (one, _) in zip(texts, said):
        if one is not None:
            voted[one] += text.votes
    classes = equal(voted)
    votes = voted.total()
    first, second = [*sorted((c.votes for c in classes), reverse=True), 0, 0][:2]
    reason = None
    if not first or first < rule.min_votes or first / votes < rule.min_share:
        reason = "no_majority"
    elif first == second:
        reason = "tie"
    elif (first - second) / votes < rule.margin:
        reason = "no_majority"
    scores = []
    for text, (one, guessed) in zip(texts, said):
        if one is None:
            scores.append(Score(Verdict.UNKNOWN, "unparsed"))
            continue
        mine = next(c for c in classes if one in c.answers)
        share = mine.votes / votes if votes else None
        if reason:
            why = reason if text.votes else "no_gold"
            scores.append(Score(Verdict.UNKNOWN, why, one, share))
        elif mine.votes == first:
            scores.append(Score(Verdict.CORRECT, None, one, share))
        elif guessed or any(other.votes == first for other in mine.unsure):
            scores.append(Score(Verdict.UNKNOWN, "unsure", one, share))
        else:
            scores.append(Score(Verdict.WRONG, "minority", one, share))
    return scores


@dataclass(eq=False)
class Class:
    """Answers that are equal."""

    answers: set[str]
    votes: int
    head: str
    """The answer that stands for all in comparisons."""
    unsure: list["Class"] = field(default_factory=list)
    """Classes of which it can't be told whether they are another one."""


def equal(voted: Mapping[str, int]) -> list[Class]:
    """The answers in classes of equal ones; the result follows from the answers, not their order."""
    forms: dict[Hashable, Class] = {}
    for one in sorted(voted, key=lambda a: (-voted[a], a)):
        exact = key(one)
        form = ("text", comparable(one)) if exact is None else ("exact", exact)
        if form in forms:
            forms[form].answers.add(one)
            forms[form].votes += voted[one]
        else:
            forms[form] = Class({one}, voted[one], one)
    classes: list[Class] = []
    for new in sorted(forms.values(), key=lambda c: (-c.votes, c.head)):
        unsure = []
        for old in classes:
            told = same(new.head, old.head)
            if told:
                old.answers |= new.answers
                old.votes += new.votes
                break
            if told is None:
                unsure.append(old)
        else:
            classes.append(new)
            for old in unsure:
                new.unsure.append(old)
                old.unsure.append(new)
    return classes


def answer(text: str, rule: Rule) -> tuple[str | None, bool]:
    """The final answer as it was written, or None if there is none; and whether it is only a guess.

    Without a gold answer nothing says whether a number is asked for. So `He has 18 left` is 18, but
    where the marked answer is words and a number stands elsewhere (`#### Solution`, and below it
    `#### 18`), either may be meant, and a wrong reading would be shared by all samples.
    """
    marked = final_answer(text, marker=rule.marker, fallback=rule.fallback)
    numeric = final_answer(text, marker=rule.marker, fallback=rule.fallback, is_number=True)
    if marked is None and numeric is None and rule.fallback and rule.marker not in text:
        return guess(text, True, rule.marker), True
    return _clearer(text, marked, numeric, rule.marker), False


def _clearer(text: str, marked: str | None, numeric: str | None, marker: str) -> str | None:
    """Of the answer read as anything and as a number, the one that is meant."""
    if marked is None:
        return numeric
    end = text.rpartition(marker)[2].strip() if marker in text else ""
    if end and not re.search(r"\d", marked) and ("\n" in end or marked not in end):
        return None
    if numeric is None or number(numeric) is None or key(marked) is not None:
        return marked
    before, digits, after = marked.partition(numeric.lstrip("-").rstrip("%"))
    opens = _BEFORE.fullmatch(before)
    alone = opens and bool(opens[1]) == numeric.startswith("-") and _AFTER.fullmatch(after)
    return numeric if digits and alone else marked
