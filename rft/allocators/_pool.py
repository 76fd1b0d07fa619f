"""The rule of `adaptive` and `budget`: each prompt is drawn while its value is above 0.

The beliefs are fitted again whenever twice as many verdicts are there, so a run's fits cost as much
as its last few. Prompts whose answers are long are dearer: five classes of length have a plan each,
made when the first prompt needs it.
"""

from array import array
from bisect import bisect

import numpy as np

from rft.allocators._beliefs import Floats, Ints, believe
from rft.allocators._queue import NEVER
from rft.allocators._stopping import SURE, Plan, plan, spend
from rft.types import RftError, Tallies, Tally

CLASSES = 1 + len(SURE)
_FIRST_FIT = 64
_MOST = 511
"""Most right draws of a prompt that are told apart."""
_MOST_KNOWN = 4
"""Most known ways of a prompt that are told apart."""
_LONGEST = 4096
"""Most draws of a prompt that a plan looks ahead to, and so most that are made."""
_FACTORS = (0.5, 0.71, 1.0, 1.41, 2.0)
"""A prompt's mean tokens as a multiple of what is to be expected of its verdicts."""
_BORDERS = (0.59, 0.84, 1.19, 1.68)
_SHRINK = 4.0
"""Draws after which a prompt's own tokens count as much as the pool's."""


class Pool:
    """The verdicts of a pool and what follows from them. A `Rule`."""

    def __init__(self, tallies: Tallies, target: int, first: int, price: float):
        limits = [tally.limit for tally in tallies]
        count = len(limits)
        self.target, self.first, self.price = target, first, price
        self.horizon = min(max(limits, default=1), _LONGEST)
        self.judged = 0
        self.tokens = 0
        """Completion tokens of what is judged."""
        self._fit_at = 0
        self._n, self._c, self._d = (array("l", bytes(8 * count)) for _ in range(3))
        self._tokens = array("l", bytes(8 * count))
        self._length = bytearray([2]) * count
        self._known = bytearray(min(tally.known, _MOST_KNOWN) for tally in tallies)
        self._groups = 1 + max(self._known, default=0)
        # Right draws and ways, with the known ones in both.
        self._rows = min(self.horizon, _MOST) + self._groups
        self._width = target + self._groups - 1
        self._seen = [0.0] * (self._rows * self._width)
        self._new = [0.0] * (self._rows * self._width)
        self._moments = [0.0] * 5
        self._plans: list[Plan | None] = []
        self._fit()

    def note(self, place: int, tally: Tally) -> None:
        n, c, d, tokens = tally.judged, tally.correct, tally.distinct, tally.tokens
        right = c - self._c[place]
        wrong = n - self._n[place] - right
        more = tokens - self._tokens[place]
        self.judged += right + wrong
        self.tokens += more
        moments = self._moments
        if right:
            moments[0] += right * right
            moments[3] += right * more
            if wrong:
                moments[1] += right * wrong
            known = self._known[place]
            before = self._c[place] + known, self._d[place] + known
            self._count(*before, right, d - self._d[place])
        if wrong:
            moments[2] += wrong * wrong
            moments[4] += wrong * more
        self._n[place], self._c[place], self._d[place], self._tokens[place] = n, c, d, tokens
        expected = c * self._right + (n - c) * self._wrong + self._prior
        self._length[place] = bisect(_BORDERS, (tokens + self._prior) / expected)

    def _count(self, c: int, d: int, right: int, new: int) -> None:
        """Right draws that were judged together: their order is not known, so the new ways among
        them are spread evenly, but for the very first, which is new."""
        if not c:
            c, d, right, new = 1, 1, right - 1, new - 1
        share = new / max(right, 1)
        for i in range(right):
            at = d + int(i * share)
            if at >= self._width or c + i >= self._rows:
                return
            cell = (c + i) * self._width + at
            self._seen[cell] += 1
            self._new[cell] += share

    def classify(self, place: int, tally: Tally) -> int:
        drawn, n = tally.drawn, tally.judged
        if drawn >= tally.limit:
            return NEVER
        if drawn < self.first:
            return 0
        c, d = tally.correct, tally.distinct
        if d >= self.target:
            return NEVER
        kind_of = self._known[place] * len(_FACTORS) + self._length[place]
        plan = self._plans[kind_of] or self._plan(kind_of)
        if c > plan.most or n >= plan.horizon:
            return NEVER
        at = ((n * (plan.most + 1) + c) * self.target + d) * len(SURE)
        ahead, depth = drawn - n, plan.depth
        for kind in range(self._sure, len(SURE)):
            if depth[at + kind] > ahead:
                return kind + 1
        return NEVER

    def renewed(self, under_way: int) -> bool:
        if self.judged < self._fit_at:
            return False
        self._fit()
        return True

    def affords(self, under_way: int) -> bool:
        return True

    def expected(self, steps: int) -> tuple[Floats, Floats]:
        """What all prompts will still take, from what is judged on, at prices around the present
        one.

        steps: how many prices there are on either side, each twice as high as the last but one.
        Returns the prices and the tokens, each (2 steps + 1,).
        """
        n, c, d = (np.frombuffer(x, dtype=np.int64) for x in (self._n, self._c, self._d))
        length = np.frombuffer(self._length, dtype=np.uint8)
        known = np.frombuffer(self._known, dtype=np.uint8)
        # A price of r for answers twice as long is one of r / 2.
        middle = len(_FACTORS) // 2
        wide = steps + middle
        prices = self.price * np.sqrt(2.0) ** np.arange(-wide, wide + 1)
        count = 2 * steps + 1
        total = np.zeros(count)
        for group, beliefs in enumerate(self._beliefs):
            states = [
                _distinct(n[here], c[here], d[here])
                for here in ((length == i) & (known == group) for i in range(len(_FACTORS)))
            ]
            tokens_LK = spend(beliefs, prices, self.target, self.first, self.horizon, states)
            for i, factor in enumerate(_FACTORS):
                begin = 2 * middle - i
                total += factor * tokens_LK[i, begin : begin + count]
        return prices[middle:-middle], total

    def charge(self, price: float) -> None:
        """Another price from now on."""
        self.price = price
        self._plans = [None] * (self._groups * len(_FACTORS))

    def _plan(self, kind: int) -> Plan:
        """kind: known ways and class of length, as in `classify`."""
        known, length = divmod(kind, len(_FACTORS))
        beliefs, factor = self._beliefs[known], _FACTORS[length]
        made = plan(beliefs, self.price, factor, self.target, self.first, self.horizon)
        self._plans[kind] = made
        return made

    def _fit(self) -> None:
        n, c = (np.frombuffer(x, dtype=np.int64) for x in (self._n, self._c))
        known = np.frombuffer(self._known, dtype=np.uint8)
        groups = []
        for group in range(self._groups):
            here = (n > 0) & (known == group)
            groups.append(_distinct(n[here], c[here]))
        shape = (self._rows, self._width)
        seen, new = (np.array(x).reshape(shape) for x in (self._seen, self._new))
        self._beliefs = believe(
            self.horizon, self.target, groups, seen, new, np.array(self._moments)
        )
        one = self._beliefs[0]
        unit = one.unit
        self._right, self._wrong = one.right_cost * unit, one.wrong_cost * unit
        # Tokens of so many average draws, beside a prompt's own. Before any is known: as good as
        # all.
        self._prior = _SHRINK * unit if self.judged else 1e12
        n, c, tokens = (np.frombuffer(x, dtype=np.int64) for x in (self._n, self._c, self._tokens))
        expected = c * self._right + (n - c) * self._wrong + self._prior
        self._length[:] = (
            np.searchsorted(_BORDERS, (tokens + self._prior) / expected, side="right")
            .astype(np.uint8)
            .tobytes()
        )
        self._fit_at = max(2 * self.judged, _FIRST_FIT)
        # Nothing is sure before the first verdicts are in, so new prompts' first draws go before.
        self._sure = 0 if self.judged >= _FIRST_FIT else 1
        self.charge(self.price)


def _distinct(*columns: Ints) -> list[Ints]:
    """The different rows, column by column, and how often each is there."""
    key = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        key = (key << 20) | column
    keys, times = np.unique(key, return_counts=True)
    found: list[Ints] = [times.astype(np.int64)]
    for _ in columns:
        found.insert(0, keys & 0xFFFFF)
        keys = keys >> 20
    return found


def check(target: int, first: int) -> None:
    """Raises RftError."""
    for name, value in (("target", target), ("first", first)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RftError(
                f"sample.allocate.args.{name}: {value!r} is not a whole number above 0; 4 is usual"
            )
