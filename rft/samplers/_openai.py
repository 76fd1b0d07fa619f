"""What an OpenAI-compatible server is told of a request, and what is read of its answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rft.loops import may_stop
from rft.server import Body, text_of, usage
from rft.types import Finish, Request

FINISH = {
    "stop": Finish.STOP,
    "length": Finish.LENGTH,
    "repetition": Finish.LOOP,
    # Cut off by somebody, and no more an answer than one that the budget has cut off.
    "content_filter": Finish.LENGTH,
}
"""Other reasons (`abort`, of a server that shuts down) are no end of a sample: it is asked again."""

NEUTRAL: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "loops": None}
"""Decoding settings that OpenAI's API doesn't have and vLLM's has, at what changes nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    reason: str
    """Why it ended, as in FINISH."""
    token_ids: tuple[int, ...] | None
    """As sampled; None where the server gives none."""
    logprobs: tuple[float, ...] | None
    """One per sampled token, nats; None where the server gives none."""
    prompt_token_ids: tuple[int, ...] | None
    prompt_tokens: int
    tokens: int
    """Completion tokens as the server counts them, reasoning included."""

    @property
    def finish(self) -> Finish:
        return FINISH[self.reason]


def fields(request: Request, tokens: int, is_vllm: bool) -> Body:
    """The decoding settings of a request. tokens: its budget."""
    decoding = request.decoding
    body: Body = {
        "max_tokens": tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
    }
    if decoding.temperature:
        # vLLM takes what the sampler `vllm` takes, so that both draw the same; others take 32 bits.
        body["seed"] = request.seed % (1 << (63 if is_vllm else 31))
    if decoding.stop:
        body["stop"] = decoding.stop
    if is_vllm:
        # All of them, or what the model's generation_config.json says would come in their place.
        body |= {name: getattr(decoding, name) for name in NEUTRAL if name != "loops"}
        if loops := may_stop(request.id, decoding.loops):
            body["repetition_detection"] = {
                "max_pattern_size": loops.period,
                "min_pattern_size": loops.least,
                "min_count": loops.repeats,
            }
    return body


def read_completion(whole: Any) -> Answer:
    """An answer of /completions. Raises for what is none (rft/server.py)."""
    choice = whole["choices"][0]
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    return _answer(whole, choice, choice["text"], logprobs)


def read_chat(whole: Any) -> Answer:
    """An answer of /chat/completions. Its reasoning, where the server keeps that apart, is left out."""
    choice = whole["choices"][0]
    text = choice["message"]["content"]
    text = "" if text is None else text  # all of it was reasoning, or the model refused
    logprobs = (choice.get("logprobs") or {}).get("content")
    return _answer(whole, choice, text, logprobs and [token["logprob"] for token in logprobs])


def _answer(whole: Any, choice: Any, text: Any, logprobs: Any) -> Answer:
    reason = choice.get("finish_reason")
    if reason not in FINISH:
        raise ValueError(f"finish_reason {reason!r}")
    ids = _ids(choice.get("token_ids"))
    known = logprobs is not None and all(_is_number(value) for value in logprobs)
    if known and ids is not None and len(ids) != len(logprobs):
        raise ValueError(f"{len(logprobs)} log-probabilities for {len(ids)} tokens")
    return Answer(
        text_of(text),
        reason,
        ids,
        tuple(map(float, logprobs)) if known else None,
        _ids(choice.get("prompt_token_ids")),
        *usage(whole),
    )


def _ids(values: Sequence[Any] | None) -> tuple[int, ...] | None:
    if values is None:
        return None
    for value in values:
        if type(value) is not int or value < 0:
            raise TypeError(f"token id {value!r}")
    return tuple(values)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
