"""Speculative rejection: the beginnings of a prompt's samples are compared by a reward model, and only the
best are finished (Sun et al. 2024, arXiv 2410.20290).

It draws through another sampler. A prompt's samples are drawn up to so many tokens; those that are not at
their end by then are ranked by what the scorer says of their texts so far, and the worst end there, as
`rejected`: never correct, like a truncated one. The others go on from where they are, as new requests
whose prompt ends in their own beginning, which the engine finds in its prefix cache.

The paper ranks all samples in memory against each other and frees memory by it; here it is the samples
of one prompt that come together, `sample.n` of them where `allocate` is uniform. What it costs is
measured: a share of the samples, chosen by a hash of the id, is finished although it ranks among
the worst, and how many of those come out correct is in the manifest of the score stage.

Which samples are compared depends on which are drawn together, so a run that was interrupted may
reject others than one that wasn't; ids and random numbers are the same.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from rft import components
from rft.samplers._common import budget, candidate, until_stop
from rft.section import Component
from rft.types import (
    Candidate,
    Finish,
    Prompt,
    Request,
    RftError,
    Sampler,
    Score,
    Setup,
    Verdict,
    falls_in,
    seed_of,
)


@dataclass
class _Part:
    """A sample on its way."""

    request: Request
    """As it was asked for."""
    room: int
    """Most tokens that it may have."""
    until: int = 0
    """Tokens that it has after the piece that is under way, if it does not end before."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = ()
    spared: int | None = None


@dataclass
class _Round:
    """Samples of one prompt that are compared after the same number of tokens."""

    stage: int
    """Index of that number; past the last one they are finished."""
    closed: bool
    """Whether no more will come to it."""
    under_way: int = 0
    there: list[_Part] = field(default_factory=list)


def speculative(
    setup: Setup,
    *,
    by: dict[str, Any],
    at: list[Annotated[int, Field(gt=0)]],
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    audit: Annotated[float, Field(ge=0, le=1)] = 0.05,
    sampler: str = "vllm",
    sampler_args: dict[str, Any] | None = None,
) -> Sampler:
    """by: the scorer whose value ranks beginnings, as under `score`: `{use: reward_model, args: {model:
    ...}}`, or one of yours that judges a candidate at a time and gives a value (it runs in
    this process, without a deadline).

    at: numbers of tokens after which samples are compared, each time the survivors.
    keep: share of the compared that goes on, rounded up.
    audit: share of the samples that is finished whatever its rank.
    sampler: what draws: `vllm`, `ray`, `transformers`, or yours.
    sampler_args: its arguments.
    """
    where = f"{setup.section}.args"
    if at != sorted(set(at)) or not at:
        raise RftError(f"{where}.at: {at}: give one or more numbers of tokens, each above the last")
    if sampler in ("openai", "replay", "reference", "speculative"):
        raise RftError(
            f"{where}.sampler: {sampler} can't go on from a beginning that it is given as tokens: take "
            "vllm, ray or transformers"
        )
    return _Speculative(
        setup,
        _Judge(Component(**by), f"{where}.by"),
        tuple(at),
        keep,
        audit,
        components.make("samplers", Component(use=sampler, args=sampler_args or {}), where)(setup),
    )


class _Judge:
    """The value of a text so far."""

    def __init__(self, scorer: Component, where: str):
        made = components.make("scorers", scorer, where)
        if not components.is_stream(scorer.use):
            self._ask = lambda pairs: ((c.id, _asked(made, p, c)) for p, c in pairs)
        elif hasattr(made, "ask"):
            self._ask = made.ask
        else:
            raise RftError(
                f"{where}.use: {scorer.use} can't judge a few beginnings at a time: use reward_model, "
                "or a scorer that judges one candidate at a time"
            )
        self._close = getattr(made, "close", lambda: None)

    def values(self, pairs: list[tuple[Prompt, Candidate]]) -> dict[str, float]:
        """By id, of those that the scorer can judge."""
        return {
            id: score.value
            for id, score in self._ask(pairs)
            if score.value is not None and not math.isnan(score.value)
        }

    def close(self) -> None:
        self._close()


def _asked(scorer: Any, prompt: Prompt, row: Candidate) -> Score:
    try:
        score = scorer(prompt, row)
    except Exception as fault:
        # One beginning that it can't read must not end the run.
        return Score(Verdict.UNKNOWN, "error", f"{type(fault).__name__}: {fault}")
    if not isinstance(score, Score):
        raise RftError(f"speculative: its scorer returned {score!r:.80}, not a Score")
    return score


class _Speculative:
    def __init__(
        self,
        setup: Setup,
        judge: _Judge,
        at: tuple[int, ...],
        keep: float,
        audit: float,
        inner: Sampler,
    ):
        self._setup, self._judge, self._inner = setup, judge, inner
        self._at, self._keep, self._audit = at, keep, audit
        self._under_way: dict[str, tuple[_Part, _Round]] = {}
        self._ready: deque[Request] = deque()
        """Samples that go on. Of a round that is compared at least one does, so the inner sampler is
        never left with nothing to do while `_rejected` waits."""
        self._rejected: list[Candidate] = []
        self._counts = dict.fromkeys(("requests", "compared", "rejected", "spared"), 0.0)

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]:
        for state in (self._under_way, self._ready, self._rejected):
            state.clear()
        for got in self._inner.sample(self._feed(requests)):
            part, round_ = self._under_way.pop(got.id)
            round_.under_way -= 1
            finish = self._extend(part, got)
            stopped = finish is Finish.LENGTH and len(part.token_ids) == part.until
            if stopped and part.until < part.room:
                round_.there.append(part)
            else:
                self._counts["requests"] += 1
                yield self._row(part, finish)
            self._compare(round_)
            yield from self._rejected
            self._rejected.clear()

    def _feed(self, requests: Iterator[Request | None]) -> Iterator[Request | None]:
        """What the inner sampler pulls: beginnings, and before them what goes on."""
        newest: _Round | None = None
        # Neighbours of one prompt, policy and settings are compared, and no others.
        like: Any = None
        ended = False
        while True:
            if self._ready:
                yield self._ready.popleft()
                continue
            try:
                request = None if ended else next(requests)
            except StopIteration:
                request, ended = None, True
            same = request and (request.prompt_token_ids, request.adapter, request.decoding)
            if newest and same != like:
                newest.closed = True
                self._compare(newest)
                newest = None
            if request is not None:
                if newest is None:
                    newest, like = _Round(0, closed=False), same
                yield self._next(self._begin(request), newest)
            elif not self._ready:
                if ended and not self._under_way:
                    return
                yield None

    def _begin(self, request: Request) -> _Part:
        if request.decoding.beam_width:
            raise RftError(
                f"{self._setup.section}.beam_width: speculative draws samples, and a search is none: "
                "leave it out, or take another sampler"
            )
        return _Part(request, budget(request, self._setup.model.max_len))

    def _next(self, part: _Part, round_: _Round) -> Request:
        """The request for the part's next piece."""
        request, done, stage = part.request, len(part.token_ids), round_.stage
        part.until = min(self._at[stage], part.room) if stage < len(self._at) else part.room
        round_.under_way += 1
        self._under_way[request.id] = part, round_
        update = {"max_tokens": part.until - done, "logprobs": "tokens"}
        return replace(
            request,
            prompt_token_ids=request.prompt_token_ids + part.token_ids,
            decoding=request.decoding.model_copy(update=update),
            seed=seed_of(request.id, "piece", done) if done else request.seed,
        )

    def _extend(self, part: _Part, got: Candidate) -> Finish:
        """Adds a piece, and says why the sample ends where it now ends."""
        before = len(part.token_ids)
        part.token_ids += got.token_ids
        if part.logprobs is not None:
            told = got.token_logprobs
            part.logprobs = None if told is None else part.logprobs + told
        stop, decode = part.request.decoding.stop, self._setup.renderer.decode
        text = decode(part.token_ids) if stop and before else ""
        if until_stop(text, stop) == text:
            return got.finish
        # A stop string may begin in one piece and end in the next, where the engine didn't see it.
        for end in range(before + 1, len(part.token_ids)):
            text = decode(part.token_ids[:end])
            if until_stop(text, stop) != text:
                part.token_ids = part.token_ids[:end]
                part.logprobs = part.logprobs and part.logprobs[:end]
                break
        return Finish.STOP

    def _compare(self, round_: _Round) -> None:
        """Decides who goes on, once all of a round are there."""
        if not round_.closed or round_.under_way or not round_.there:
            return
        rows = {part.request.id: self._row(part, Finish.LENGTH) for part in round_.there}
        prompt = self._setup.prompts[round_.there[0].request.prompt_id]
        values = self._judge.values([(prompt, row) for row in rows.values()])
        ranked = sorted(values, key=lambda id: (-values[id], rows[id].index))
        worst = set(ranked[math.ceil(self._keep * len(ranked)) :])
        after = _Round(round_.stage + 1, closed=True)
        # Those that are spared are not compared again: they would stand in a better one's place.
        apart = _Round(len(self._at), closed=True)
        for part in round_.there:
            id = part.request.id
            if id not in worst:
                # Among them those that the scorer can't judge.
                self._ready.append(self._next(part, after))
            elif falls_in(self._audit, id, "speculative"):
                self._counts["spared"] += 1
                part.spared = len(part.token_ids)
                self._ready.append(self._next(part, apart))
            else:
                self._counts["requests"] += 1
                self._counts["rejected"] += 1
                self._rejected.append(replace(rows[id], finish=Finish.REJECTED))
        self._counts["compared"] += len(round_.there)
        round_.there.clear()

    def _row(self, part: _Part, finish: Finish) -> Candidate:
        """The sample as far as it has come."""
        row = candidate(part.request, self._setup.renderer, part.token_ids, part.logprobs, finish)
        return replace(row, spared=part.spared)

    def stats(self) -> dict[str, float]:
        """The inner sampler's, and how many beginnings were compared, rejected and spared."""
        return {**self._inner.stats(), **self._counts}

    def close(self) -> None:
        self._judge.close()
        self._inner.close()
