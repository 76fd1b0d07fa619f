"""From a server's answer to a candidate, and what may be wrong with an answer."""

from rft.samplers._common import budget, candidate, until_stop
from rft.samplers._openai import Answer
from rft.types import Candidate, Finish, Request, RftError, Setup

CHECKED = 16
"""Answers whose text is compared with what model.base's tokenizer makes of their ids."""


class Rows:
    """at: what stands before an argument's name in messages. where: the server's address."""

    def __init__(self, setup: Setup, at: str, where: str):
        self._renderer, self._max_len = setup.renderer, setup.model.max_len
        self._at, self._where = at, where
        self._to_check = CHECKED

    def candidate(self, request: Request, answer: Answer, is_chat: bool) -> Candidate:
        """The row. is_chat: the server may have another tokenizer. Raises RftError for an answer that
        is not what was asked for."""
        tokens = budget(request, self._max_len)
        if is_chat or answer.token_ids is None:
            got = self._tokenised(request, answer, tokens)
        else:
            self._check(request, answer, answer.token_ids, tokens)
            got = candidate(
                request, self._renderer, answer.token_ids, answer.logprobs, answer.finish
            )
        if request.decoding.logprobs == "tokens" and got.token_logprobs is None:
            raise RftError(
                f"logprobs: {self._where} gives no log-probabilities of model.base's tokens: set sum"
            )
        return got

    def _tokenised(self, request: Request, answer: Answer, tokens: int) -> Candidate:
        """The row of a text."""
        finish, text = answer.finish, until_stop(answer.text, request.decoding.stop)
        ids = self._renderer.completion_ids(text)
        if finish is not Finish.STOP:
            ids = ids[:-1]
        if len(ids) > tokens:
            # The server's own tokenizer had room where model.base's has none.
            ids, finish = ids[:tokens], Finish.LENGTH
            text = self._renderer.decode(ids)
        return Candidate(
            id=request.id,
            prompt_id=request.prompt_id,
            index=request.index,
            text=text,
            prompt_token_ids=request.prompt_token_ids,
            token_ids=ids,
            finish=finish,
            logprob=None if answer.logprobs is None else sum(answer.logprobs),
        )

    def _check(self, request: Request, answer: Answer, ids: tuple[int, ...], tokens: int) -> None:
        asked, seen = request.prompt_token_ids, answer.prompt_token_ids
        if seen is not None and seen != asked:
            raise RftError(
                f"{self._at}base_url: {self._where} has changed prompt {request.prompt_id}: it was asked "
                f"with {len(asked)} tokens, and answered other {len(seen)}. Start it without what "
                f"changes prompts, or set {self._at}api: chat"
            )
        if len(ids) > tokens or (answer.reason == "length" and len(ids) < tokens):
            raise RftError(
                f"max_tokens: {self._where} ends answers at {len(ids)} tokens where {tokens} were asked "
                "for: set max_tokens to what it gives, or start it without such a limit"
            )
        if not self._to_check:
            return
        own = until_stop(self._renderer.decode(ids), request.decoding.stop)
        if _letters(own) != _letters(answer.text):
            raise RftError(
                f"{self._at}model: {self._where} has another tokenizer than model.base: tokens that say "
                f"{answer.text[:60]!r} there say {own[:60]!r} here. Serve model.base, or set "
                f"{self._at}api: chat"
            )
        self._to_check -= bool(_letters(own))


def _letters(text: str) -> str:
    """Text without what detokenizers differ in: spaces, and bytes that are no whole character."""
    return "".join(text.replace("\ufffd", "").split())
