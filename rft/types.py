"""The vocabulary of everything else: the rows that flow between stages, and the protocols.

Every row carries its identity, a hash of what made it; nothing in the project joins by position.
Rows are frozen. Outcomes are data: a failed check is a `Score` whose verdict is `UNKNOWN`, with
the reason beside it, and never an exception that ends a run or a zero that looks like an answer.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rft.chat import Renderer
    from rft.config import Model
    from rft.config_decoding import Decoding, Engine


class RftError(Exception):
    """A fault of the user's input or machine: printed as one message with its fix, exit code 2."""


def digest(*parts: Any) -> str:
    """24 hex digits (96 bits) of SHA-256 over the JSON of `parts`, keys sorted."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def seed_of(*parts: Any) -> int:
    """A seed that follows from `parts`: 63 bits, since engines take it as a signed 64-bit number."""
    return int(digest(*parts)[:16], 16) >> 1


def falls_in(share: float, *parts: Any) -> bool:
    """Whether `parts` are among the share of all that their hash chooses."""
    return int(digest(*parts)[:8], 16) < share * (1 << 32)


class Verdict(StrEnum):
    """What a scorer says of one candidate."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """The scorer could not tell; `Score.reason` says why (timeout, crashed, unparsed, error,
    truncated, loop, rejected, no_gold, percent). Unknown never counts as correct, and is reported apart from
    wrong."""


class Finish(StrEnum):
    """Why a candidate's text ends where it ends."""

    STOP = "stop"
    """The model ended it: by its EOS token or by a stop string."""
    LENGTH = "length"
    """The token budget ended it. Truncated candidates are never correct."""
    LOOP = "loop"
    """It was stopped while it repeated itself (`sample.loops`). Never correct, like a truncated one."""
    REJECTED = "rejected"
    """Its beginning was among the worst of its prompt's (samplers/speculative.py)."""
    REFERENCE = "reference"
    """It is the data set's own solution, not a sample."""


CUT_OFF = {Finish.LENGTH: "truncated", Finish.LOOP: "loop", Finish.REJECTED: "rejected"}
"""Ends of which no scorer is asked about the candidate: it is unknown, for this reason."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem. `answer` and `solution` may each be missing: that is a normal case."""

    id: str
    """Hash of the question."""
    question: str
    answer: str | None = None
    """The gold answer that scorers compare with."""
    solution: str | None = None
    """A worked solution that ends in the answer, as the data set gives it."""
    kind: str | None = None
    """A label to group problems by in reports, for instance a topic."""
    tests: str | None = None
    """What the scorer `code` runs: Python asserts, or JSON (rft/scorers/code.py says which)."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw. Samplers pull these from an iterator and may finish them in any order."""

    id: str
    prompt_id: str
    index: int
    """Which of the prompt's samples this is, from 0."""
    prompt_token_ids: tuple[int, ...]
    decoding: "Decoding"
    seed: int
    """Follows from the id, so a sample does not depend on what else is in the batch."""
    adapter: str | None = None
    """Folder of the LoRA adapter to sample with; None is the base model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to one prompt."""

    id: str
    """Hash of (prompt id, policy, decoding settings, seed, index)."""
    prompt_id: str
    index: int
    text: str
    """Decoded completion without special tokens: what scorers read."""
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The sampled ids, with the EOS token where the model produced one: what the trainer uses."""
    finish: Finish
    logprob: float | None = None
    """Sum of the sampled tokens' log-probabilities (nats), which training holds against its own; None for
    references, and where a sampler does not know."""
    token_logprobs: tuple[float, ...] | None = None
    """One per token of `token_ids`, where the decoding settings ask for them."""
    pool: str = ""
    """Where it comes from: the name of the pool (`sample.pools`), empty where there is one only."""
    spared: int | None = None
    """Tokens after which it would have been `rejected`, had it not been let run on to see what that
    costs; None for all others."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one scorer, or the combination of all, says of one candidate."""

    verdict: Verdict
    reason: str | None = None
    """One word for why a verdict is unknown, or what was wrong."""
    extracted: str | None = None
    """The final answer as the scorer read it."""
    value: float | None = None
    """A number where the scorer gives one, for instance a reward."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its combined score, as selectors see it.

    The candidate's token columns are not loaded: they are None here.
    """

    candidate: Candidate
    score: Score
    tokens: int = 0
    """Completion tokens."""

    @property
    def is_reference(self) -> bool:
        return self.candidate.finish is Finish.REFERENCE

    @property
    def fault(self) -> str | None:
        """Why the scorers don't call it correct; None if they do, and for a worked solution of a
        problem without a gold answer."""
        if self.score.verdict is Verdict.CORRECT:
            return None
        if self.is_reference and self.score.reason == "no_gold":
            return None
        return self.score.reason or str(self.score.verdict)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with all its scored candidates: references first, then samples by index."""

    prompt: Prompt
    rows: tuple[Scored, ...]


Choice = tuple[Scored, str | None]
"""A row, and the reason it is dropped for, or None if it is kept. A reason is a word, and may have a
detail after a colon: the funnel counts by the word."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a sampler is made from: `use: name` calls `name(setup, **args)`, which returns a Sampler."""

    model: "Model"
    engine: "Engine"
    renderer: "Renderer"
    prompts: "Mapping[str, Prompt]"
    """By id; for samplers that need more than token ids."""
    adapters: tuple[str, ...] = ()
    """Folders of all LoRA adapters that requests may name."""
    section: str = "sample"
    """The section of the experiment that it is made for (`sample` or `eval`), for messages."""


class Sampler(Protocol):
    """Draws samples: takes the next request whenever it has room, yields each as it finishes.

    A None among the requests means that none is to be had at this moment: go on with those that are
    under way, and ask again after. It never comes while none is under way, since the iterator itself
    waits then; so a sampler that takes one request at a time never sees it.

    It may have `available(prompt_id)`, where samples aren't drawn but there already: how many there
    are of a prompt. No more are asked for. And it may have `dtype`, as `engine.dtype` has it: the number
    format that it computes in.
    """

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]: ...

    def stats(self) -> dict[str, float]:
        """Figures of the engine for the manifest, for instance the prefix cache's hit rate."""
        ...

    def close(self) -> None:
        """Frees the engine's processes and memory."""
        ...


@dataclass(slots=True, eq=False)
class Tally:
    """What is known of one prompt while its samples are drawn. The sample stage keeps it up to date.

    `judged` and what follows count in the order of indices, up to the first sample without a verdict,
    whatever order samples finish in: short answers finish first, and a rule that looked at those
    would see the short ones' share of right answers.
    """

    prompt_id: str
    limit: int
    """Most samples that may be drawn (`sample.n`)."""
    drawn: int = 0
    """Samples asked for so far, under way or finished."""
    judged: int = 0
    correct: int = 0
    distinct: int = 0
    """Different ways among the correct ones (`sample.distinct`), `known` ones not counted."""
    tokens: int = 0
    """Completion tokens of the judged samples."""
    known: int = 0
    """Ways that are known beforehand: a worked solution's, where it is trained on anyway."""


class Tallies(Protocol):
    """All prompts of a pool, in the order of the data."""

    tokens: int
    """Completion tokens of all finished samples."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Tally]: ...

    def changed(self) -> Sequence[Tally]:
        """Those of which more is judged than when this was asked last, each once."""
        ...


class Allocator(Protocol):
    """Chooses the prompt of the next sample, again and again: how many samples each prompt gets.

    A generator function: it yields the tally to draw for (its `drawn` counts up before the next is
    asked for), None where it would rather wait for verdicts, and ends when nothing more is worth
    drawing. It never yields one whose `drawn` has reached its `limit`. At the beginning tallies
    hold what an earlier, interrupted run has drawn.
    """

    def __call__(self, tallies: Tallies) -> Iterator[Tally | None]: ...


class Scorer(Protocol):
    """Judges one candidate. A function, or an object made once for each worker process.

    Of the candidate's fields the token columns are not loaded: `prompt_token_ids`, `token_ids` and
    `token_logprobs` are None here.
    """

    def __call__(self, prompt: Prompt, candidate: Candidate) -> Score: ...


class StreamScorer(Protocol):
    """Judges candidates as they come: for scorers that work in batches (a model), wait for a server,
    or compare the candidates of a prompt with one another. A class; one object of it serves a stage,
    in the stage's own process and without a deadline, so it must bound its own waiting.

    It may have more: `open(folder)`, called before with the stage's folder, where it can keep what is
    dear; `stats()`, figures for the manifest; and `hears_settled = True`, where it must also be given
    those of an open prompt's candidates whose verdict other scorers have settled (what it says of
    them is left out).
    """

    whole_prompts: bool
    """Whether `score` must be given all of a prompt's candidates at once. If false, the candidates
    of a prompt may come in several pieces."""

    def score(
        self, groups: Iterator[tuple[Prompt, Sequence[Candidate]]]
    ) -> Iterator[tuple[str, Score]]:
        """Takes the next group whenever it has room; yields (candidate id, score) in any order, once
        for each candidate. Close what it holds (a client, a model) in the generator's `finally`."""
        ...


class Selector(Protocol):
    """Says of every row whether to keep it. Groups stream, so most selectors hold one at a time.

    A selector that must see all prompts before it decides can go through `groups` twice: the second
    time costs reading, and holding them would cost memory.
    """

    def __call__(self, groups: Iterable[Group]) -> Iterator[Choice]: ...


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A candidate's combined score on disk, and under `each` what every scorer said (JSON)."""

    id: str
    prompt_id: str
    verdict: Verdict
    reason: str | None
    extracted: str | None
    value: float | None
    each: str


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """What the selectors decided about a candidate; `reason` is None where it is kept."""

    id: str
    prompt_id: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One completion to learn."""

    id: str
    """The candidate's id."""
    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Completion with its EOS token; the loss is over these."""
    is_reference: bool
    pool: str = ""
    """As in its candidate."""
    weight: float = 1.0
    """Of its loss: its advantage, which is negative for an answer to make less likely."""
    logprobs: tuple[float, ...] = ()
    """Of its tokens under the policy that sampled them (nats), where the loss needs them. Fewer than
    tokens where an EOS was put in the place of a stop string; none for references."""


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """One held-out problem's outcome for one arm and seed."""

    prompt_id: str
    n: int
    """Samples drawn."""
    correct: int
    unknown: int
    truncated: int
    """Cut off at the token budget, or stopped in a loop."""
    answers: tuple[str, ...]
    """Final answer of each sample in index order, "" where none was read."""
    hits: tuple[bool, ...]
    """Whether each sample is correct, in index order."""
    tokens: int
    """Completion tokens over all samples."""
