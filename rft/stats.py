"""Figures that a comparison of arms rests on: pass@k, maj@k, intervals, paired tests. NumPy only.

Choices, and why:

- The problem is the unit. Samples of one problem are not independent, so every interval comes from
  resampling problems, never single samples.
- Arms are compared on the same problems, so the test and the interval are over per-problem
  differences: how hard a problem is cancels out.
- Interval: percentile bootstrap over problems (Efron 1979). In simulations of paired differences
  (20 to 1,000 problems, one sample each, 2% to 50% of them discordant) a 95% interval covered the
  truth in 92% to 97% of the trials where five discordant problems or more were to be expected; with
  bias correction and acceleration (BCa) in 90% to 97%, since few discordant problems make its
  correction noisy. Where fewer were to be expected it covered 90% to 100%: a difference so thin is
  a matter for the test, which stays exact. Where each value is 0 or 1 the mean is a plain
  proportion, and the interval is Wilson's.
- Test: sign flips. If two arms were equally good, each problem's difference could as well have had
  the other sign. No distribution is assumed beyond that symmetry, and with one sample a problem it
  is the exact McNemar test.
- Nothing here tells what another training seed would give. Pooling over seeds averages each
  problem's differences and treats the trained models as given; the spread over seeds stands beside.

Suffixes on arrays: P problems, S subsets, A answers, R resamples. Accuracies are fractions, 0 to 1.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CELLS = 4_000_000
"""Most array cells that a chunk of resamples may take: 32 MB."""
_LATTICE = 1 << 20
"""Longest distribution of sign-flipped sums that is computed exactly."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    method: str
    """`wilson`, `bootstrap` or `no variation`: see `mean_interval`."""


@dataclass(frozen=True)
class Paired:
    """Arm minus baseline on the same problems."""

    problems: int
    difference: Interval
    p: float
    """Two-sided p-value of the sign-flip test."""
    p_method: str
    """`exact`, or `random sign flips`."""
    wins: int
    """Problems on which the arm's accuracy is higher."""
    losses: int
    ties: int


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
    kinds = sorted({a for a in answers if a})
    if not any(hits) or not kinds:
        return 0.0
    votes_nA = np.array([[a == kind for kind in kinds] for a in answers], dtype=np.float64)
    right_nA = votes_nA * np.asarray(hits, dtype=np.float64)[:, None]
    chosen_Sn = _subsets(n, k, subsets, seed)
    votes_SA, right_SA = chosen_Sn @ votes_nA, chosen_Sn @ right_nA
    most_S = votes_SA.max(axis=1, keepdims=True)
    tied_SA = (votes_SA == most_S) & (most_S > 0)
    # An answer's samples should all have one verdict; if not, it counts as their share.
    share_SA = np.divide(right_SA, votes_SA, out=np.zeros_like(right_SA), where=tied_SA)
    return float(np.mean(share_SA.sum(axis=1) / np.maximum(tied_SA.sum(axis=1), 1)))


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
    share, spread = correct / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / total / 4)
    # At the ends the formula gives exactly 0 and 1; arithmetic misses them by 1e-17.
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == total else min(1.0, middle + half)
    return Interval(share, low, high, "wilson")


def mean_interval(
    values: Any,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Mean over problems with its interval. values: (P,), each within `bounds`.

    Only zeros and ones, with bounds (0, 1): Wilson. All values alike: resampling would give a
    width of nought, so the interval is what a share of at most 1 - (1 - level)^(1/P) problems of
    any other kind could do to the mean (that share would show itself with probability `level`).
    Otherwise the percentile bootstrap.
    """
    values_P = np.asarray(values, dtype=np.float64)
    count = len(values_P)
    if count < 1:
        raise ValueError("a mean needs at least one problem")
    mean = float(values_P.mean())
    if bounds == (0.0, 1.0) and np.isin(values_P, (0.0, 1.0)).all():
        return wilson(int(values_P.sum()), count, level)
    if np.ptp(values_P) == 0:
        hidden = 1 - (1 - level) ** (1 / count)
        low, high = mean - hidden * (mean - bounds[0]), mean + hidden * (bounds[1] - mean)
        return Interval(mean, low, high, "no variation")
    means_R = np.concatenate(list(_resampled_means(values_P, resamples, seed)))
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), "bootstrap")


def _resampled_means(values_P: Floats, resamples: int, seed: int) -> Iterator[Floats]:
    """Means of P problems drawn with replacement, in chunks.

    Problems with equal values are exchangeable, so how often each distinct value is drawn is
    multinomial: the same distribution as drawing problems, and tens of times faster.
    """
    levels, counts = np.unique(values_P, return_counts=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // len(levels))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        yield (
            rng.multinomial(len(values_P), counts / len(values_P), size=size)
            @ levels
            / len(values_P)
        )


def sign_flip_p(
    differences: Any, denominator: int, resamples: int = 10_000, seed: int = 0
) -> tuple[float, str]:
    """Two-sided sign-flip permutation test of a mean of zero; (p, `exact` or how it was drawn).

    differences: (P,), multiples of 1/denominator. p is the share of the 2^P ways to set the signs
    whose sum is at least as far from 0 as the one seen. The sum's distribution has the
    characteristic function prod cos(d t), so one Fourier transform gives it, with an error of about
    1e-14: a p below 1e-12 is given as 1e-12. If the distribution is too long for that, p is
    (1 + hits) / (1 + resamples) over random signs.
    """
    steps_P = np.rint(np.asarray(differences, dtype=np.float64) * denominator).astype(np.int64)
    seen = abs(int(steps_P.sum()))
    sizes, counts = np.unique(np.abs(steps_P[steps_P != 0]), return_counts=True)
    if not len(sizes):
        return 1.0, "exact"
    total = int(sizes @ counts)
    if total < _LATTICE:
        length = 2 * total + 1
        angle = 2 * np.pi / length * np.arange(total + 1)
        spectrum = np.ones(total + 1)
        for size, count in zip(sizes, counts):
            spectrum *= np.cos(size * angle) ** count
        # Sums -total..total, with the negative ones at the end of the cycle.
        weights = np.fft.irfft(spectrum, n=length)
        p = 2 * weights[seen : total + 1].sum() if seen else 1.0
        # The arrangement seen and its mirror image always count.
        floor = max(2.0 ** (1 - int(counts.sum())), 1e-12)
        return float(min(1.0, max(p, floor))), "exact"
    rng = np.random.default_rng(seed)
    hits = 0
    chunk = max(1, _CELLS // len(sizes))
    for start in range(0, resamples, chunk):
        size = (min(chunk, resamples - start), len(sizes))
        # Among the problems whose difference has one size, the number of plus signs is binomial.
        sums_R = (2 * rng.binomial(counts, 0.5, size=size) - counts) @ sizes
        hits += int((np.abs(sums_R) >= seen).sum())
    return (1 + hits) / (1 + resamples), "random sign flips"


def compare(
    arm: Sequence[tuple[Any, Any]],
    baseline: Sequence[tuple[Any, Any]],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Paired comparison of two arms, pooled over their seeds.

    arm, baseline: one (correct, samples) pair of integer arrays of shape (P,) for each seed, in the
    same order of seeds and of problems. With several seeds, each problem's difference is averaged
    over them: interval and p then speak of these trained models, not of seeds not run.
    Raises ValueError if the shapes differ.
    """
    if (
        len(arm) != len(baseline)
        or len({np.shape(x) for pair in (*arm, *baseline) for x in pair}) != 1
    ):
        raise ValueError("both arms need the same seeds and the same problems")
    denominator = math.lcm(*(int(n) for _, ns in (*arm, *baseline) for n in np.unique(ns)))
    # Whole numbers, so that wins, ties and the test never depend on rounding.
    steps_P = np.zeros(len(arm[0][0]), dtype=np.int64)
    for (arm_c, arm_n), (base_c, base_n) in zip(arm, baseline):
        steps_P += np.asarray(arm_c, dtype=np.int64) * (denominator // np.asarray(arm_n))
        steps_P -= np.asarray(base_c, dtype=np.int64) * (denominator // np.asarray(base_n))
    denominator *= len(arm)
    differences_P = steps_P / denominator
    p, p_method = sign_flip_p(differences_P, denominator, resamples, seed)
    return Paired(
        problems=len(steps_P),
        difference=mean_interval(differences_P, level, resamples, seed, bounds=(-1.0, 1.0)),
        p=p,
        p_method=p_method,
        wins=int((steps_P > 0).sum()),
        losses=int((steps_P < 0).sum()),
        ties=int((steps_P == 0).sum()),
    )


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (divisor: seeds - 1); None for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
