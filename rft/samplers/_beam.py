"""Beam search over one prompt, apart from the engine that gives the log-probabilities.

The rules are those of transformers' `generate(num_beams=width)` with its defaults (length_penalty
1, early_stopping False): a finished beam scores its summed log-probability over its generated
length, EOS token included; only the best `width` continuations of a step may finish; the search
ends when the best running beam, at its present length, scores no better than the worst of `width`
finished ones. vLLM's own `LLM.beam_search` counts the prompt into that length, knows one EOS token
and no stop strings, and always runs to max_tokens, so it isn't used.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rft.samplers._common import candidate, completion_text
from rft.types import Candidate, Finish, Request, Setup


@dataclass(frozen=True, slots=True)
class Beam:
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0
    """Sum of logprobs, nats."""

    @property
    def score(self) -> float:
        return self.total / max(1, len(self.token_ids))


class BeamSearch:
    """One prompt's beams. Call `advance` with each running beam's likeliest tokens until done."""

    def __init__(
        self,
        width: int,
        max_tokens: int,
        end_ids: frozenset[int],
        stopped: Callable[[tuple[int, ...]], bool],
    ):
        self.width, self.max_tokens = width, max_tokens
        self.end_ids, self.stopped = end_ids, stopped
        self.running = [Beam()]
        self.finished: list[Beam] = []
        self.keep = max(2, 1 + len(end_ids)) * width
        """Continuations to look at in a step, and tokens wanted of each running beam."""

    def advance(self, options: Sequence[Sequence[tuple[int, float]]]) -> None:
        """options: for each running beam, its `keep` likeliest (token id, log-probability)."""
        grown = [
            Beam((*beam.token_ids, token), (*beam.logprobs, logprob), beam.total + logprob)
            for beam, tokens in zip(self.running, options, strict=True)
            for token, logprob in tokens
        ]
        best = heapq.nlargest(self.keep, grown, key=lambda beam: beam.total)
        running = []
        for rank, beam in enumerate(best):
            if len(beam.token_ids) >= self.max_tokens or self.ended(beam):
                if rank < self.width:
                    self.finished.append(beam)
            else:
                running.append(beam)
        self.running = running[: self.width]
        self.finished = heapq.nlargest(self.width, self.finished, key=lambda beam: beam.score)

    def ended(self, beam: Beam) -> bool:
        """Whether the model ended it, rather than the budget."""
        return beam.token_ids[-1] in self.end_ids or self.stopped(beam.token_ids)

    @property
    def done(self) -> bool:
        if not self.running:
            return True
        full = len(self.finished) == self.width
        return full and self.running[0].score <= self.finished[-1].score


class Peekable:
    """An iterator that can be looked at one element ahead."""

    def __init__(self, source: Iterator[Request | None]):
        self._source = source
        self._ahead: list[Request] = []
        self.ended = False

    def more(self) -> bool:
        """Whether there is a request now; there may be one later unless it has `ended`."""
        if not self._ahead and not self.ended:
            for request in self._source:
                if request is not None:
                    self._ahead.append(request)
                break
            else:
                self.ended = True
        return bool(self._ahead)

    def peek(self) -> Request:
        return self._ahead[0]

    def next(self) -> Request:
        return self._ahead.pop()


def same_search(a: Request, b: Request) -> bool:
    return (a.prompt_token_ids, a.adapter) == (b.prompt_token_ids, b.adapter) and (
        a.decoding == b.decoding
    )


class BeamJob:
    """One prompt's beam search, and the requests that its results answer by index."""

    def __init__(self, requests: list[Request], tokens: int, end_ids: frozenset[int], setup: Setup):
        self.requests, self.first = requests, requests[0]
        self.renderer = setup.renderer
        stop = self.first.decoding.stop

        def stopped(token_ids: tuple[int, ...]) -> bool:
            if not stop:
                return False
            return completion_text(self.renderer, token_ids, stop) != self.renderer.decode(
                token_ids
            )

        self.search = BeamSearch(self.first.decoding.beam_width, tokens, end_ids, stopped)
        self.waiting: list[str] = []
        self.options: dict[str, list[tuple[int, float]]] = {}

    def candidates(self) -> list[Candidate]:
        return [self._candidate(request) for request in self.requests]

    def _candidate(self, request: Request) -> Candidate:
        beam: Beam = self.search.finished[request.index]
        finish = Finish.STOP if self.search.ended(beam) else Finish.LENGTH
        return candidate(request, self.renderer, beam.token_ids, beam.logprobs, finish)
