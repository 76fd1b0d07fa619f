"""Not a model: every prompt's own worked solution, as the candidate that plain SFT trains on.

A written solution is tokenised once, here, so that from this point on a reference and a sample are
rows of one kind.
"""

from collections.abc import Iterator

from rft.samplers._common import budget, check_adapter
from rft.types import Candidate, Finish, Request, RftError, Sampler, Setup


class Reference:
    def __init__(self, setup: Setup):
        self._setup = setup
        self._stats = {"requests": 0, "tokens": 0}

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]:
        """Yields one candidate a request. Raises RftError for a prompt without a solution, or of
        model.max_len tokens or more."""
        renderer = self._setup.renderer
        for request in filter(None, requests):
            check_adapter(request.adapter, self._setup)
            budget(request, self._setup.model.max_len)
            prompt = self._setup.prompts[request.prompt_id]
            if prompt.solution is None:
                raise RftError(
                    f"prompts: {prompt.id} has no solution, so `use: reference` has nothing to "
                    "give: leave it out of the requests"
                )
            text = renderer.chat.solution.replace("{solution}", prompt.solution)
            ids = renderer.completion_ids(text)
            self._stats["requests"] += 1
            self._stats["tokens"] += len(ids)
            yield Candidate(
                id=request.id,
                prompt_id=request.prompt_id,
                index=request.index,
                text=text,
                prompt_token_ids=request.prompt_token_ids,
                token_ids=ids,
                finish=Finish.REFERENCE,
            )

    def stats(self) -> dict[str, float]:
        return {**self._stats}

    def close(self) -> None:
        pass


def reference(setup: Setup) -> Sampler:
    """`use: reference`"""
    return Reference(setup)
