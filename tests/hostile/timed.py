"""A scorer around a scorer: notes in a file when each candidate is begun and ended."""

import os
import time
from typing import Any

from rft import components
from rft.section import Component
from rft.types import Candidate, Prompt, Score


class Timed:
    def __init__(self, use: str, args: dict[str, Any], log: str) -> None:
        self.scorer = components.make("scorers", Component(use=use, args=args))
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, prompt: Prompt, candidate: Candidate) -> Score:
        self._note("begin", candidate.id)
        score: Score = self.scorer(prompt, candidate)
        self._note("end", candidate.id)
        return score

    def _note(self, what: str, candidate_id: str) -> None:
        # One write each, so that lines of two workers never mix.
        os.write(self.log, f"{what} {candidate_id} {time.monotonic()}\n".encode())
