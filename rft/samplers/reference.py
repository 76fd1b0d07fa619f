"""Not a model: every prompt's own worked solution, as the candidate that plain SFT trains on.

A written solution is tokenised once, here, so that from this point on a reference and a sample are
rows of one kind.
"""

from collections.abc import Iterator

from rft.types import Candidate, Finish, Request, RftError, Sampler, Setup


class Reference:
    def __init__(self, setup: Setup):
        self._setup = setup
        self._rows = 0

    def sample(self, requests: Iterator[Request]) -> Iterator[Candidate]:
        """Yields one candidate a request. Raises RftError for a prompt without a solution."""
        renderer = self._setup.renderer
        for request in requests:
            prompt = self._setup.prompts[request.prompt_id]
            if prompt.solution is None:
                raise RftError(
                    f"prompts: {prompt.id} has no solution, so `use: reference` has nothing to "
                    "give: leave it out of the requests"
                )
            text = renderer.chat.solution.replace("{solution}", prompt.solution)
            self._rows += 1
            yield Candidate(
                id=request.id,
                prompt_id=request.prompt_id,
                index=request.index,
                text=text,
                prompt_token_ids=request.prompt_token_ids,
                token_ids=renderer.completion_ids(text),
                finish=Finish.REFERENCE,
            )

    def stats(self) -> dict[str, float]:
        return {"references": self._rows}

    def close(self) -> None:
        pass


def reference(setup: Setup) -> Sampler:
    """`use: reference`"""
    return Reference(setup)
