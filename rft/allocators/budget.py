"""Spends a number of tokens where they are expected to find the most different right answers.

The rule of `adaptive` with a price that is not given but found: the one at which what all prompts
are still expected to take is what is left of the budget. It is the Lagrange multiplier of the
budget, and it is solved for again as the run goes on, so that luck and misjudgement are spread over
what is left.
"""

import math
from collections.abc import Iterator

import numpy as np

from rft.allocators._pool import CLASSES, Pool, check
from rft.allocators._queue import draw
from rft.types import RftError, Tallies, Tally

_PRICES = (0.5, 5e4)
_STEPS = 8
_AGAIN = 0.75
"""The price is solved for whenever this share of what was left is left."""
_LAST = 0.01
"""Share of the budget from which on it stays."""


def budget(
    tallies: Tallies, *, tokens: int, target: int = 4, first: int = 4
) -> Iterator[Tally | None]:
    """tokens: completion tokens of one pool, for one seed and one round, those of an earlier,
    interrupted part included.
    No sample is begun that is expected to lead beyond them; those under way are finished.

    target, first: as for `adaptive`. Every prompt gets its first draws before any gets more, so
    that the price is found from all of them; a budget too small for these is spent on the first
    prompts. It ends before the budget is spent if every prompt has reached its target or
    `sample.n`.
    """
    check(target, first)
    if isinstance(tokens, bool) or not isinstance(tokens, (int, float)) or not tokens >= 1:
        raise RftError(
            f"sample.allocate.args.tokens: {tokens!r} is not a number of tokens; give what the "
            "whole run may take, for instance 50000000"
        )
    return draw(tallies, _Budget(tallies, int(tokens), target, first), CLASSES, breadth=True)


class _Budget(Pool):
    def __init__(self, tallies: Tallies, budget: int, target: int, first: int):
        self._tallies, self._budget = tallies, budget
        self._solve_at = math.inf
        super().__init__(tallies, target, first, price=32.0)
        self._pilot = len(tallies) * min(first, self.horizon) // 2
        """Verdicts before which the price doesn't matter, since first draws come first."""

    def renewed(self, under_way: int) -> bool:
        fitted = super().renewed(under_way)
        if self.judged < self._pilot:
            return fitted
        left = self._budget - self.tokens
        if not fitted and left > self._solve_at:
            return False
        if left < _LAST * self._budget:
            self._solve_at = -math.inf
            return fitted
        self._solve_at = _AGAIN * left
        self.charge(self._solve(left))
        return True

    def affords(self, under_way: int) -> bool:
        """Counts each sample without a verdict as an average one."""
        average = self.tokens / self.judged if self.judged else 1.0
        committed = max(self.tokens + under_way * average, self._tallies.tokens)
        return committed + average <= self._budget

    def _solve(self, left: float) -> float:
        """The price at which prompts are expected to take what is left."""
        for _ in range(3):
            prices, tokens = self.expected(_STEPS)
            if tokens[0] < left < tokens[-1]:
                break
            # Not among those tried: once more around the nearest.
            self.price = float(np.clip(prices[-1 if tokens[-1] <= left else 0], *_PRICES))
        tokens = np.maximum.accumulate(tokens)
        price = np.exp(np.interp(left, tokens, np.log(prices)))
        return float(np.clip(price, *_PRICES))
