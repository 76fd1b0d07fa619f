"""Samplers of a user's own, in a file that experiments name by its path. They need no engine, so that a
stage that is killed again and again starts in seconds, and they are slow enough to be killed at work.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

from rft.types import Candidate, Finish, Request, Setup


class slow:
    """The gold answers, one every 20 ms; every second one with another end."""

    def __init__(self, setup: Setup):
        self.setup = setup

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]:
        for r in filter(None, requests):
            time.sleep(0.02)
            text = f"#### {self.setup.prompts[r.prompt_id].answer}" + "0" * (r.index % 2)
            ids = self.setup.renderer.completion_ids(text)
            yield Candidate(r.id, r.prompt_id, r.index, text, r.prompt_token_ids, ids, Finish.STOP)

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


class leaves(slow):
    """Ends its process after the first."""

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Any]:
        yield next(super().sample(requests))
        sys.exit(0)
