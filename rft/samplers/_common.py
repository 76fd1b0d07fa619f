"""What the samplers that run a model agree on, so that they give the same row for the same tokens."""

from rft.chat import Renderer
from rft.types import Candidate, Finish, Request, RftError, Setup


def check_adapter(adapter: str | None, setup: Setup) -> None:
    """Raises RftError for an adapter that the sampler was not set up with."""
    if adapter is not None and adapter not in setup.adapters:
        raise RftError(f"adapter {adapter}: not among those the sampler was set up for")


def budget(request: Request, max_len: int) -> int:
    """Most tokens that a request may generate. Raises RftError if its prompt leaves no room."""
    room = max_len - len(request.prompt_token_ids)
    if room < 1:
        raise RftError(
            f"model.max_len: prompt {request.prompt_id} has {len(request.prompt_token_ids)} "
            f"tokens, which leaves no room for an answer in {max_len}: raise model.max_len, or "
            "drop the prompt"
        )
    if not request.prompt_token_ids:
        raise RftError(f"chat.prompt: prompt {request.prompt_id} has no tokens")
    return min(room, request.decoding.max_tokens)


def until_stop(text: str, stop: list[str]) -> str:
    """The text up to its first stop string."""
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    return text[: min(ends)] if ends else text


def completion_text(renderer: Renderer, token_ids: tuple[int, ...], stop: list[str]) -> str:
    """Text of a completion up to its first stop string."""
    return until_stop(renderer.decode(token_ids), stop)


def candidate(
    request: Request,
    renderer: Renderer,
    token_ids: tuple[int, ...],
    token_logprobs: tuple[float, ...] | None,
    finish: Finish,
) -> Candidate:
    """The row for a finished request. token_logprobs: nats, one per token; None where a server gives
    none."""
    return Candidate(
        id=request.id,
        prompt_id=request.prompt_id,
        index=request.index,
        text=completion_text(renderer, token_ids, request.decoding.stop),
        prompt_token_ids=request.prompt_token_ids,
        token_ids=token_ids,
        finish=finish,
        logprob=None if token_logprobs is None else float(sum(token_logprobs)),
        token_logprobs=token_logprobs if request.decoding.logprobs == "tokens" else None,
    )
