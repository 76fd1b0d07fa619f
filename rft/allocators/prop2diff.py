"""A quota of right answers for each prompt, larger the harder it is: the rules of DART.

DART (Tong et al. 2024, arXiv 2407.13690, section 3.2) draws each prompt until it has so many right
answers: the same number for all (*Uniform*), or one in proportion to its fail rate, with the
hardest at `target` and none below 1 (*Prop2Diff*). A prompt that can't be solved is drawn up to
`sample.n`, DART's `max_n_trials`: unlike `adaptive`, a quota never gives up.

Departures: DART takes fail rates from samples drawn before; here a prompt's own samples tell, from
the `first`-th on. It divides by the pool's largest fail rate, which is 1 as soon as one prompt
fails throughout; here 1 is taken for it. Its code tests only between batches of 16,384 samples, and
asks for one right answer more than it says; here each verdict counts as it comes.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import comb

from rft.allocators._pool import check
from rft.allocators._queue import NEVER, draw
from rft.types import RftError, Tallies, Tally

_SURE = (0.85, 0.7, 0.5)


def prop2diff(
    tallies: Tallies, *, target: int = 4, first: int = 8, count: str = "correct"
) -> Iterator[Tally | None]:
    """target: right answers of the hardest prompt. A prompt whose share of wrong answers is w gets
    target x w, rounded, and at least 1. An unknown verdict is not a right answer.

    first: draws of every prompt, after which its share of wrong answers is taken. 0: no difficulty,
    every prompt gets `target`, which is DART's Uniform.

    count: `correct` as DART counts, or `distinct` to count different ones (`sample.distinct`).
    """
    check(target, 1)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise RftError(
            f"sample.allocate.args.first: {first!r} is not a whole number of draws; 8 is usual, "
            "and 0 gives every prompt the same quota"
        )
    if count not in ("correct", "distinct"):
        raise RftError(
            f"sample.allocate.args.count: {count!r} can't be counted; write correct or distinct"
        )
    return draw(tallies, _Quota(target, first, count == "distinct"), 2 + len(_SURE))


class _Quota:
    def __init__(self, target: int, first: int, distinct: bool):
        self.target, self.first, self.distinct = target, first, distinct

    def note(self, place: int, tally: Tally) -> None:
        pass

    def renewed(self, under_way: int) -> bool:
        return False

    def affords(self, under_way: int) -> bool:
        return True

    def classify(self, place: int, tally: Tally) -> int:
        if tally.drawn >= tally.limit:
            return NEVER
        if tally.drawn < self.first:
            return 0
        n = tally.judged
        ahead = tally.drawn - n
        if n < self.first:
            return NEVER  # not before its difficulty is known
        wanted = self.target
        if self.first:
            wanted = max(1, round(self.target * (n - tally.correct) / n))
        found = tally.distinct if self.distinct else tally.correct
        missing = wanted - found
        if missing <= 0:
            return NEVER
        if ahead < missing:
            return 1
        sure = _still_wanted(missing, ahead, (found + 1) / (n + 2))
        for i, level in enumerate(_SURE):
            if sure >= level:
                return 2 + i
        return NEVER


@lru_cache(maxsize=1 << 16)
def _still_wanted(missing: int, ahead: int, rate: float) -> float:
    """Probability that fewer than `missing` of `ahead` samples under way count."""
    return sum(comb(ahead, i) * rate**i * (1 - rate) ** (ahead - i) for i in range(missing))
