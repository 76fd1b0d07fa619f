"""Figures of one arm: pass@k, maj@k, best of k, and their intervals. NumPy and Python alone.

Choices, and why:

- The problem is the unit. Samples of one problem are not independent, so every interval rests on
  how problems differ, never on single samples.
- Each measure is a value in 0 to 1 for every problem (pass@k and its kin estimate it without bias
  from all n samples), and an arm's figure is their mean. One interval serves them all: Wilson's,
  with the number of problems replaced by the effective one. With one sample a problem that is
  Wilson's own. scripts/bench/coverage.py prints how often it holds the truth, and where it doesn't.
- rft/paired.py compares arms, rft/power.py tells what an experiment could have shown.

Suffixes on arrays: P problems, N samples of one, S subsets, A answers. Accuracies are fractions,
0 to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    method: str
    """`wilson`, `wilson, effective n` or `no variation` of a mean (`mean_interval`); of a difference
    see `rft.paired.difference_interval`."""


def pass_at_k(n: Any, c: Any, k: int) -> Floats:
    """Probability that at least one of k samples is correct, unbiased, given c correct of n.

    1 - C(n-c, k) / C(n, k), as a product of k factors between 0 and 1, so nothing overflows
    (Chen et al. 2021, arXiv 2107.03374, equation 1). n and c are integers or arrays of shape (P,).
    Raises ValueError if k is above n.
    """
    n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if n.size and (k < 1 or k > n.min() or (c < 0).any() or (c > n).any()):
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= c <= n")
    fail = np.ones(n.shape)
    for j in range(k):
        fail = fail * np.maximum(n - c - j, 0) / (n - j)
    return 1.0 - fail


def first_pass_at_k(
    hits: Sequence[Sequence[bool]], first: int, ks: Sequence[int], level: float = 0.95
) -> dict[int, Interval | None]:
    """pass@k of a pool whose prompts were drawn adaptively: from each one's first draws alone.

    hits: for each problem whether its samples are correct, in index order. first: so many samples
    every problem has, whatever its verdicts (`first` of the allocator). None: not estimable.

    A rule that stops at successes makes c / n too high where it stops early, and drawing on without
    success makes it too low: neither c / n nor `pass_at_k(n, c, k)` is unbiased then. What the
    first indices say is, since nothing chose them; and the order in which samples finish, short
    ones first, plays no part. A k above `first` could be had from a rule that is the same for all
    prompts throughout the run, by counting the ways to where it stopped (Girshick, Mosteller and
    Savage 1946); a rule that learns from the pool as it goes is no such rule.
    """
    first = min(first, min((len(row) for row in hits), default=0))
    correct_P = np.array([sum(row[:first]) for row in hits])
    return {
        k: mean_interval(pass_at_k(first, correct_P, k), level) if 1 <= k <= first else None
        for k in ks
    }


def maj_at_k(
    answers: Sequence[str], hits: Sequence[bool], k: int, subsets: int = 1000, seed: int = 0
) -> float:
    """Probability that the most frequent answer among k of a problem's n samples is correct.

    The k are drawn without replacement. Ties are split evenly; "" does not vote; no vote at all is
    not correct. Answers are compared as strings. Exact for k = n, and wherever there are at most
    `subsets` ways to choose k; else the mean over that many random choices, from a fixed seed.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} needs 1 <= k <= n, and n is {n}")
    number: dict[str, int] = {}
    votes = tuple(number.setdefault(a, len(number)) if a else -1 for a in answers)
    return _majority(votes, tuple(map(bool, hits)), k, subsets, seed)


@lru_cache(1 << 16)
def _majority(
    votes: tuple[int, ...], hits: tuple[bool, ...], k: int, subsets: int, seed: int
) -> float:
    """maj@k of answers numbered by first appearance, -1 for none. Many problems look alike so."""
    kinds, n = sorted(set(votes) - {-1}), len(votes)
    if not any(hits) or not kinds:
        return 0.0
    votes_nA = np.array([[vote == kind for kind in kinds] for vote in votes], dtype=np.float64)
    right_nA = votes_nA * np.asarray(hits, dtype=np.float64)[:, None]
    chosen_Sn = _subsets(n, k, subsets, seed)
    votes_SA, right_SA = chosen_Sn @ votes_nA, chosen_Sn @ right_nA
    most_S = votes_SA.max(axis=1, keepdims=True)
    tied_SA = (votes_SA == most_S) & (most_S > 0)
    # An answer's samples should all have one verdict; if not, it counts as their share.
    share_SA = np.divide(right_SA, votes_SA, out=np.zeros_like(right_SA), where=tied_SA)
    return float(np.mean(share_SA.sum(axis=1) / np.maximum(tied_SA.sum(axis=1), 1)))


def best_of_k(values: Any, hits: Any, k: int) -> Floats:
    """Probability that the sample with the highest value among k of a problem's N is correct.

    values, hits: (P, N), the scorer's value of each sample (NaN where it gave none, which comes
    last) and whether it is correct. Returns (P,). The k are drawn without replacement, and ties are
    split evenly. Exact: sample i is the best of a choice that holds no higher one, so with m_i
    values at or below its own and l_i below it, it is chosen with probability
    [C(m_i, k) - C(l_i, k)] / C(N, k) / (m_i - l_i) (Hilton and Gao 2022, Measuring Goodhart's law,
    openai.com, there without ties). Raises ValueError if k is above N.
    """
    values_PN = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-np.inf)
    n = values_PN.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"best of {k} needs 1 <= k <= n, and n is {n}")
    order_PN = np.argsort(values_PN, axis=1, kind="stable")
    sorted_PN = np.take_along_axis(values_PN, order_PN, axis=1)
    hits_PN = np.take_along_axis(np.asarray(hits, dtype=np.float64), order_PN, axis=1)
    # Where a run of equal values begins and where it ends, at each of its members.
    place_N, last = np.arange(n), np.full((len(sorted_PN), 1), True)
    rises_PN = sorted_PN[:, 1:] > sorted_PN[:, :-1]
    first_PN = np.maximum.accumulate(np.where(np.hstack([last, rises_PN]), place_N, 0), axis=1)
    ends_PN = np.where(np.hstack([rises_PN, last]), place_N + 1, n)
    ends_PN = np.minimum.accumulate(ends_PN[:, ::-1], axis=1)[:, ::-1]
    # Share of choices all of whose members are among the m lowest.
    within_m = 1.0 - pass_at_k(n, n - np.arange(n + 1), k)
    chosen_PN = (within_m[ends_PN] - within_m[first_PN]) / (ends_PN - first_PN)
    return np.asarray((chosen_PN * hits_PN).sum(axis=1))


def _subsets(n: int, k: int, most: int, seed: int) -> Floats:
    """Choices of k of n as rows of ones and zeros: all of them if at most `most`, else random."""
    if math.comb(n, k) <= most:
        index = np.array(list(combinations(range(n), k)))
    else:
        index = np.random.default_rng([seed, n, k]).random((most, n)).argsort(axis=1)[:, :k]
    chosen = np.zeros((len(index), n))
    np.put_along_axis(chosen, index, 1.0, axis=1)
    return chosen


def wilson(correct: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927): sound near 0 and 1 and for few."""
    if total < 1:
        raise ValueError("a proportion needs at least one problem")
    z = NormalDist().inv_cdf((1 + level) / 2)
    return Interval(correct / total, *_score_ends(correct / total, total, z), "wilson")


def _score_ends(share: float, total: float, z: float) -> tuple[float, float]:
    spread = z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / total / 4)
    # At the ends the formula gives exactly 0 and 1; arithmetic misses them by 1e-17.
    low = 0.0 if share == 0 else max(0.0, middle - half)
    return low, 1.0 if share == 1 else min(1.0, middle + half)


def mean_interval(values: Any, level: float = 0.95) -> Interval:
    """Mean over problems with its interval. values: (P,), each from 0 to 1.

    Only zeros and ones: `wilson`. Otherwise Wilson's formula with t's quantile (P - 1 degrees) and
    the effective number of problems, mean (1 - mean) P / variance: as many problems of one sample
    would tell as much (Korn and Graubard 1998, Survey Methodology 24, 193; the score form of it in
    Franco et al. 2019, J. Survey Statistics and Methodology 7, 334). All values alike, but not 0 or
    1: the variance tells nothing then, so the interval is what a share of at most
    1 - (1 - level)^(1/P) problems of any other kind could do to the mean (that share would show
    itself with probability `level`). Raises ValueError if there is no value.

    In simulations (scripts/bench/coverage.py --only single) a 95% interval covered 93% to 97%, save
    where almost all problems have one and the same value, which makes the variance too small: 88% for
    pass@2 of some 97% on 50 problems.
    """
    values_P = np.asarray(values, dtype=np.float64)
    count = len(values_P)
    if count < 1:
        raise ValueError("a mean needs at least one problem")
    mean = float(values_P.mean())
    if ((values_P == 0) | (values_P == 1)).all():
        return wilson(int(values_P.sum()), count, level)
    if np.ptp(values_P) == 0:
        hidden = 1 - (1 - level) ** (1 / count)
        return Interval(mean, mean * (1 - hidden), mean + hidden * (1 - mean), "no variation")
    effective = mean * (1 - mean) * count / float(values_P.var(ddof=1))
    ends = _score_ends(mean, effective, t_quantile((1 + level) / 2, count - 1))
    return Interval(mean, *ends, "wilson, effective n")


def apart(one: Interval, other: Interval) -> Interval:
    """One estimate minus another that is independent of it, such as accuracies on different problems.

    The ends come from those of both intervals: low = d - sqrt((a - a_low)^2 + (b_high - b)^2), high
    likewise (Newcombe 1998, Statistics in Medicine 17, 873, method 10; for any estimates Zou and Donner
    2008, same journal 27, 1693). At the level of the two intervals.

    In simulations (scripts/bench/coverage.py --only gap) a 95% interval covered 94% to 97% on 50 to
    1,319 problems and 50 or 200 others; 99% with 50 of each, one sample and an accuracy of 3%.
    """
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - below, value + above, "newcombe, of both intervals")


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Spearman's rank correlation (1904) of two lists, ties at their mean rank, and its two-sided exact
    p: the share of orders of y whose correlation is as far from 0 (of 8 values and more 20,000 random
    orders, by the rule of Phipson and Smyth 2010). None for fewer than 3 values, or where one list is
    all alike.
    """
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    ranks_x, ranks_y = _ranks(x), _ranks(y)
    size = float(np.sqrt((ranks_x**2).sum() * (ranks_y**2).sum()))
    seen = float(ranks_x @ ranks_y) / size
    if len(x) < 8:
        orders = np.array(list(permutations(range(len(x)))))
        extra = 0
    else:
        orders = np.random.default_rng(0).random((20_000, len(x))).argsort(axis=1)
        extra = 1
    far = int((np.abs(ranks_y[orders] @ ranks_x) / size >= abs(seen) - 1e-9).sum())
    return seen, (far + extra) / (len(orders) + extra)


def _ranks(values: Sequence[float]) -> Floats:
    """Ranks about their mean, ties at the mean of theirs."""
    place = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)[1]
    counts = np.bincount(place)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(mean_rank[place] - (len(values) + 1) / 2)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def t_cdf(t: float, df: float) -> float:
    """Student's distribution function, good to about 1e-12; df need not be whole.

    With t = sqrt(df) tan(a) its density becomes cos(a)^(df - 1), which Gauss's quadrature takes.
    """
    if df > 1e6:
        return NormalDist().cdf(t)
    end = math.atan(t / math.sqrt(df))
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    angle = (_NODES + 1) / 2 * end
    return float(0.5 + scale * end / 2 * (_WEIGHTS @ np.cos(angle) ** (df - 1)))


@lru_cache(4096)
def t_quantile(p: float, df: float) -> float:
    """Where `t_cdf` is p, for p from 0.5 to below 1."""
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p and high < 1e9:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (divisor: seeds - 1); None for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
