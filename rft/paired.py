"""Two arms on the same problems: does one differ, by how much, and is it no worse? NumPy only.

Choices, and why:

- A difference is taken problem by problem, so how hard a problem is cancels out.
- Three things vary: the problem, the samples of a problem, and the training seed (rft/power.py
  names the components). `compare` speaks of the models that were trained: problems and samples are
  drawn anew, seeds are not. `over_seeds` speaks of the training procedure, with other seeds as well.
- Test: sign flips, as mid-p. If two arms were equally good, each problem's difference could as well
  have had the other sign. The exact p stands beside it: it never errs more often than it says, and
  with few discordant problems much more seldom.
- Interval: Tango's score interval with one sample a problem, else a t-interval corrected for
  skewness. Both are made by asking which differences a test would not reject, and both beat the
  bootstrap where few problems are discordant.
- scripts/bench/coverage.py measures all of it; docs/statistics.md has its table.

Suffixes on arrays: S seeds, P problems, A arms, R resamples. Differences are fractions, -1 to 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rft.stats import Floats, Interval, t_cdf, t_quantile

Runs = Sequence[tuple[Any, Any]]
"""Of an arm (correct, samples) for each seed: integer arrays of shape (P,), in one order of problems."""

_CELLS = 4_000_000
"""Most array cells that a chunk of resamples may take: 32 MB."""
_LATTICE = 1 << 20
"""Longest distribution of sign-flipped sums that is computed exactly."""
_LEAST_P = 1e-12
"""Arithmetic cannot tell smaller p-values from each other."""


@dataclass(frozen=True)
class Paired:
    """Arm minus baseline on the same problems, for the models that were trained."""

    problems: int
    difference: Interval
    p: float
    """Two-sided mid-p of the sign-flip test."""
    p_exact: float
    """Two-sided p of the same test, every arrangement as extreme as the one seen counted whole."""
    p_method: str
    """`exact`, or `random sign flips`: how the distribution was had."""
    wins: int
    """Problems on which the arm's accuracy is higher."""
    losses: int
    ties: int


@dataclass(frozen=True)
class OverSeeds:
    """Arm minus baseline for training runs with other seeds, on other problems."""

    difference: Interval
    p: float
    df: float
    """Degrees of freedom: near the number of seeds less one where seeds make most of the difference."""
    se: float


@dataclass(frozen=True)
class Equivalence:
    """Is the arm no worse than the baseline by `margin`, and are they the same within it?"""

    margin: float
    low: float
    """Ends of the interval at level 1 - 2 (1 - level): the arm is no worse where `low` is above
    -margin, and equivalent where `high` is below margin as well."""
    high: float
    p_no_worse: float
    """One-sided, of a difference of -margin or less."""
    p_equivalent: float
    """The larger of both one-sided p-values (two one-sided tests)."""


def steps(arm: Runs, baseline: Runs) -> tuple[NDArray[np.int64], int]:
    """Arm minus baseline as whole numbers, so that no tie depends on rounding, and what they are
    multiples of: ((S, P), denominator), differences being steps / denominator.

    Raises ValueError unless both have the same seeds, problems, and at least one sample of each.
    """
    shapes = {np.shape(x) for pair in (*arm, *baseline) for x in pair}
    if len(arm) != len(baseline) or len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError("both arms need the same seeds and the same problems, one at least")
    denominator = math.lcm(*(int(n) for _, ns in (*arm, *baseline) for n in np.unique(ns)))
    if denominator < 1:
        raise ValueError("every problem needs at least one sample")

    def whole(runs: Runs) -> NDArray[np.int64]:
        return np.array([np.asarray(c, dtype=np.int64) * (denominator // np.asarray(n)) for c, n in runs])  # fmt: skip

    return whole(arm) - whole(baseline), denominator


def compare(
    arm: Runs, baseline: Runs, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Paired:
    """Paired comparison of two arms. With several seeds each problem's difference is averaged over
    them first: interval and p then speak of these trained models, not of seeds not run.

    Raises ValueError as `steps` does.
    """
    steps_SP, denominator = steps(arm, baseline)
    denominator *= len(steps_SP)
    steps_P = steps_SP.sum(axis=0)
    p, p_exact, p_method = sign_flip_p(steps_P, resamples, seed)
    return Paired(
        problems=len(steps_P),
        difference=difference_interval(steps_P / denominator, level),
        p=p,
        p_exact=p_exact,
        p_method=p_method,
        wins=int((steps_P > 0).sum()),
        losses=int((steps_P < 0).sum()),
        ties=int((steps_P == 0).sum()),
    )


def sign_flip_p(
    steps_P: NDArray[np.int64], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, str]:
    """Sign-flip permutation test of a mean of zero: (mid-p, p, `exact` or how it was drawn).

    steps_P: differences as whole numbers. p is the share of the 2^P ways to set the signs whose sum
    is at least as far from 0 as the one seen (Fisher 1935, The Design of Experiments, section 21);
    with one sample a problem that is the exact McNemar test. It holds for any number of problems
    where differences are symmetric about 0, as they are when the arms are exchangeable, and for
    many problems where only their mean is 0. Being exact, it rejects too seldom where sums are
    coarse; mid-p counts half of the arrangements that are just as far, and rejects about as often as
    it says (McNemar's mid-p: Fagerland, Lydersen and Laake 2013, BMC Med. Res. Methodology 13, 91).
    Equal arms were told apart at 5% in 3.8% to 5.8% of simulated trials by mid-p, in 1.5% to 5.4% by
    the exact p; with fewer than 10 discordant problems in 0.5% to 4.7% and 0.1% to 2.5%
    (scripts/bench/coverage.py --only paired).

    The sum's distribution has the characteristic function prod cos(d t), so one Fourier transform
    gives it, with an error of about 1e-14: a p below 1e-12 is given as 1e-12. If it is too long for
    that, p is (1 + hits) / (1 + resamples) over random signs (Phipson and Smyth 2010).
    """
    seen = abs(int(steps_P.sum()))
    sizes, counts = np.unique(np.abs(steps_P[steps_P != 0]), return_counts=True)
    if not len(sizes):
        return 1.0, 1.0, "exact"
    common = int(np.gcd.reduce(sizes))
    sizes, seen = sizes // common, seen // common
    total = int(sizes @ counts)
    if total < _LATTICE:
        length = 2 * total + 1
        angle = 2 * np.pi / length * np.arange(total + 1)
        spectrum = np.ones(total + 1)
        for size, count in zip(sizes, counts):
            spectrum *= np.cos(size * angle) ** count
        # Sums -total..total, with the negative ones at the end of the cycle.
        weights = np.fft.irfft(spectrum, n=length)
        p = 2 * float(weights[seen : total + 1].sum()) if seen else 1.0
        tie = float(weights[seen]) * (1 if seen else 0.5)
        # The arrangement seen and its mirror image always count.
        floor = max(2.0 ** (1 - int(counts.sum())), _LEAST_P)
        p = min(1.0, max(p, floor))
        return min(1.0, max(p - tie, floor / 2, _LEAST_P)), p, "exact"
    rng = np.random.default_rng(seed)
    further, level_with = 0, 1
    for size in _chunks(resamples, len(sizes)):
        # Among the problems whose difference has one size, the number of plus signs is binomial.
        plus = rng.binomial(counts, 0.5, size=(size, len(sizes)))
        sums_R = np.abs((2 * plus - counts) @ sizes)
        further += int((sums_R > seen).sum())
        level_with += int((sums_R == seen).sum())
    drawn = 1 + resamples
    return (further + level_with / 2) / drawn, (further + level_with) / drawn, "random sign flips"


def difference_interval(differences: Any, level: float = 0.95) -> Interval:
    """Mean of per-problem differences with its interval. differences: (P,), each from -1 to 1.

    `tango`: only -1, 0 and 1, as with one sample a problem; `skewed t`: others; see `_score`. All
    alike, yet none of these: `no variation`, what a share of at most 1 - (1 - level)^(1/P) problems
    of any other kind could do to the mean (that share would show itself with probability `level`).
    Raises ValueError if there is none.

    In simulations (scripts/bench/coverage.py --only paired) a 95% interval covered 94% to 96% on 300
    and 1,319 problems, the percentile bootstrap 93% to 97%; on 50 problems 93% to 96%, and 95% to 98%
    with fewer than 10 discordant ones, where the bootstrap covered down to 91%.
    """
    values_P = np.asarray(differences, dtype=np.float64)
    if not len(values_P):
        raise ValueError("a difference needs at least one problem")
    mean = float(values_P.mean())
    if np.ptp(values_P) == 0 and abs(mean) not in (0, 1):
        hidden = 1 - (1 - level) ** (1 / len(values_P))
        ends = mean - hidden * (mean + 1), mean + hidden * (1 - mean)
        return Interval(mean, *ends, "no variation")
    score, df, method = _score(values_P)
    far = t_quantile((1 + level) / 2, df)
    # The score falls as the assumed difference grows, so bisection finds where it crosses.
    low, high = (_crossing(score, side * far) for side in (1, -1))
    return Interval(mean, min(low, mean), max(high, mean), method)


def _crossing(score: Callable[[float], float], wanted: float) -> float:
    low, high = -1.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > wanted else (low, middle)
    return (low + high) / 2


def _score(values_P: Floats) -> tuple[Callable[[float], float], float, str]:
    """How far the mean lies above an assumed one, in units whose law is t's: (score, df, method).

    -1, 0 and 1 alone: Tango's score (1998, Statistics in Medicine 17, 891), whose variance is that of
    the likeliest discordance under the assumed difference.

    Others: Hall's transformed t (1992, J. Royal Statistical Society B 54, 221),
    g(T) = T + c T^2 / 3 + c^2 T^3 / 27 + c / 6 with c the skewness by the root of P. One win and one
    loss of the usual size (root mean square of those that are not 0) are added first, as Agresti and
    Min (2005, Statistics in Medicine 24, 729) do where differences are -1, 0 and 1: without them few
    discordant problems that chance to agree make the variance too small.
    """
    count = len(values_P)
    mean = float(values_P.mean())
    if ((values_P == 0) | (np.abs(values_P) == 1)).all():
        wins, losses = int((values_P > 0).sum()), int((values_P < 0).sum())

        def tango(at: float) -> float:
            b = (2 * count - wins + losses) * at - wins - losses
            discord = math.sqrt(max(0.0, b * b + 8 * count * losses * at * (1 - at))) - b
            variance = count * (discord / (2 * count) + at * (1 - at))
            above = wins - losses - count * at
            # No variance is left at -1 and 1 only, or where nothing is discordant and `at` is 0.
            return above / math.sqrt(variance) if variance > 1e-12 else math.copysign(1e9, above) if above else 0.0  # fmt: skip

        return tango, math.inf, "tango"
    usual = math.sqrt(float((values_P**2).sum()) / np.count_nonzero(values_P))
    values_P = np.append(values_P, (usual, -usual))
    mean = float(values_P.mean())
    centred_P = values_P - mean
    second = float((centred_P**2).mean())
    c = float((centred_P**3).mean()) / second**1.5 / math.sqrt(count + 2)
    se = math.sqrt(second / (count + 1))

    def skewed(at: float) -> float:
        t = (mean - at) / se
        return t + c * t * t / 3 + c * c * t**3 / 27 + c / 6

    return skewed, count + 1, "skewed t"


def equivalence(differences: Any, margin: float, level: float = 0.95) -> Equivalence:
    """Two one-sided tests of a difference within `margin` either way (Schuirmann 1987), and the
    first of them alone: non-inferiority. differences: (P,); margin: a fraction above 0, to be chosen
    before the results are known. Each errs with probability 1 - level at most, as its test holds:
    they rest on the statistic behind `difference_interval` (with one sample a problem Tango
    1998). Raises ValueError for a margin outside 0 to 1, or a level of 0.5 or less.
    """
    if not 0 < margin < 1 or not 0.5 < level < 1:
        raise ValueError("a margin is a fraction above 0 and below 1, a level is above 0.5")
    values_P = np.asarray(differences, dtype=np.float64)
    span = difference_interval(values_P, 2 * level - 1)
    if span.method == "no variation":
        # No variance to test with: whether the interval lies inside is all there is.
        below, above = (1 - level if x else 1.0 for x in (span.low > -margin, span.high < margin))
    else:
        score, df, _ = _score(values_P)
        below, above = 1 - t_cdf(score(-margin), df), t_cdf(score(margin), df)
    below, above = max(below, _LEAST_P), max(above, _LEAST_P)
    return Equivalence(margin, span.low, span.high, below, max(below, above))


def over_seeds(
    steps_SP: NDArray[np.int64], denominator: int, level: float = 0.95
) -> OverSeeds | None:
    """The difference that other training seeds would give as well; None for one seed or problem, or
    where nothing varies. steps_SP, denominator: as `steps` gives them.

    Problems and seeds are crossed random effects. With the mean squares of problems, seeds and what
    is left, Var(mean) = (MS_P + MS_S - MS_E) / (P S) (Cornfield and Tukey 1956; Brennan 2001,
    Generalizability Theory), no less than MS_P / (P S), and t's degrees of freedom are
    Satterthwaite's (1946, Biometrics Bulletin 2, 110), V^2 / sum(MS^2 / df).

    Few seeds say little of how seeds differ. In simulations (scripts/bench/coverage.py --only seeds)
    a 95% interval covered 92% to 98% with 3 of them and 94% to 99% with 5: the most where seeds differ
    by chance alone, the least where they add more than problems and samples do. A bootstrap over
    problems and seeds (`bootstrap`) covered down to 81%. Flipping the signs of whole seeds would be exact, but cannot reach 5%
    with fewer than 6: its least p is 2^(1 - S).
    """
    seeds, problems = steps_SP.shape
    if seeds < 2 or problems < 2:
        return None
    values_SP = steps_SP / denominator
    mean = float(values_SP.mean())
    ms_p, ms_s, ms_e = mean_squares(values_SP)
    variance = max(ms_p, ms_p + ms_s - ms_e)
    if variance <= 0:
        return None
    rest = (problems - 1) * (seeds - 1)
    df = variance**2 / (ms_p**2 / (problems - 1) + ms_s**2 / (seeds - 1) + ms_e**2 / rest)
    df = max(1.0, df)
    se = math.sqrt(variance / values_SP.size)
    half = t_quantile((1 + level) / 2, df) * se
    p = max(2 * t_cdf(-abs(mean) / se, df), _LEAST_P)
    interval = Interval(mean, max(-1.0, mean - half), min(1.0, mean + half), "satterthwaite t")
    return OverSeeds(interval, p, df, se)


def mean_squares(values_SP: Floats) -> tuple[float, float, float]:
    """Mean squares of a table without repeats: problems, seeds, and what is left (S, P above 1)."""
    seeds, problems = values_SP.shape
    mean_S, mean_P, mean = values_SP.mean(axis=1), values_SP.mean(axis=0), values_SP.mean()
    of_problems = seeds * float(((mean_P - mean) ** 2).sum())
    of_seeds = problems * float(((mean_S - mean) ** 2).sum())
    left = max(float(((values_SP - mean) ** 2).sum()) - of_problems - of_seeds, 0.0)
    return (
        of_problems / (problems - 1),
        of_seeds / (seeds - 1),
        left / (problems - 1) / (seeds - 1),
    )


def bootstrap(
    values_SP: Floats, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean over problems crossed with seeds, each drawn with replacement
    and apart from the other (Owen 2007, Annals of Applied Statistics 1, 386: the pigeonhole
    bootstrap). One row: the bootstrap over problems (Efron 1979).

    Nothing in the report rests on it: with few seeds or few discordant problems it is too narrow.
    It assumes least, so it stands beside the intervals as a check.
    """
    seeds = len(values_SP)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    means = [
        mean
        for weights_S, count in zip(*np.unique(drawn, axis=0, return_counts=True))
        for mean in _resampled_means(weights_S @ values_SP / seeds, int(count), rng)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values_SP.mean()), float(low), float(high), "bootstrap")


def _resampled_means(
    values_P: Floats, resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """Means of P problems drawn with replacement, in chunks.

    Problems with equal values are exchangeable, so how often each distinct value is drawn is
    multinomial: the same distribution as drawing problems, and tens of times faster.
    """
    # Rounded: sums of the same terms in another order are one value.
    levels, counts = np.unique(values_P.round(12), return_counts=True)
    shares, problems = counts / len(values_P), len(values_P)
    for size in _chunks(resamples, len(levels)):
        yield rng.multinomial(problems, shares, size=size) @ levels / problems


def _chunks(resamples: int, width: int) -> Iterator[int]:
    chunk = max(1, _CELLS // width)
    for start in range(0, resamples, chunk):
        yield min(chunk, resamples - start)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of one false finding or more among them is bounded,
    however they depend on each other (Holm 1979, Scand. J. Statistics 6, 65); in the given order."""
    adjusted = [0.0] * len(p_values)
    most = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = most
    return adjusted


def joint_level(
    differences_AP: Floats, level: float = 0.95, draws: int = 100_000, seed: int = 0
) -> float:
    """The level at which each of A intervals must be made so that all of them hold at once with
    probability `level`: single-step max-t (Dunnett 1955; Hothorn, Bretz and Westfall 2008,
    Biometrical Journal 50, 346).

    differences_AP: per-problem differences of every arm. Arms share a baseline, so their differences
    are correlated, and the level is lower than Bonferroni's. Normal draws with their correlations;
    holds for problems in the hundreds and more.
    """
    arms = len(differences_AP)
    if arms < 2:
        return level
    with np.errstate(divide="ignore", invalid="ignore"):
        # Of an arm without variance nothing is known: as if independent.
        correlation = np.nan_to_num(np.corrcoef(differences_AP))
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    most = [
        np.abs(rng_draw @ root.T).max(axis=1)
        for rng in [np.random.default_rng(seed)]
        for size in _chunks(draws, arms)
        for rng_draw in [rng.standard_normal((size, arms))]
    ]
    return 2 * NormalDist().cdf(float(np.quantile(np.concatenate(most), level))) - 1
