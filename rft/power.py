"""What an experiment could have shown: where its noise comes from, and what would make it less.

The difference of two arms on problem p with training seed s, each a mean of n samples, is taken as

    d_ps = mean + problem_p + seed_s + (problem, seed)_ps + sample_ps

with variances of four components. Over seeds its mean has the variance

    problem / P + seed / S + interaction / (P S) + sample / (P S n)

so more problems help against all but `seed`, more samples against the last term alone. Given the
models that were trained, `seed` is no noise and its term drops out (Bouthillier et al. 2021, arXiv
2103.03098, names the same sources; Miller 2024, arXiv 2411.00640, does so for the
evaluation of language models).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rft.paired import Runs, mean_squares, steps
from rft.stats import t_quantile


@dataclass(frozen=True)
class Components:
    """Variances of the difference of two arms, in squared fractions of accuracy."""

    problem: float
    """How the true difference varies from problem to problem. With one seed the interaction is in it,
    with one sample a problem and one seed all the noise."""
    seed: float | None
    """How the mean difference varies from training seed to training seed; None for one seed."""
    interaction: float | None
    """What a seed changes on single problems. With one sample a problem its noise is in it."""
    sample: float | None
    """Of the difference of one sample of each arm, given problem and models; None for one sample."""
    problems: int
    seeds: int
    samples: float
    """Samples of a problem for each arm and seed: the harmonic mean, where they differ."""

    def variance(
        self, problems: float | None = None, samples: float | None = None, seeds: bool = False
    ) -> float:
        """Of the mean difference, with so many problems and samples in place of those there are.

        seeds: as over training seeds, not for the trained models alone.
        """
        problems = self.problems if problems is None else problems
        samples = self.samples if samples is None else samples
        each = self.problem + (self.interaction or 0.0) / self.seeds
        each += (self.sample or 0.0) / samples / self.seeds
        return each / problems + ((self.seed or 0.0) / self.seeds if seeds else 0.0)

    def shares(self) -> dict[str, float]:
        """Each component's share of the variance over seeds, those that are not known left out; they
        add up to 1. Empty where nothing varies."""
        total = self.variance(seeds=True)
        told = {
            "problem": self.problem / self.problems,
            "seed": None if self.seed is None else self.seed / self.seeds,
            "interaction": self.interaction,
            "sample": None if self.sample is None else self.sample / self.samples,
        }
        for name in ("interaction", "sample"):
            if told[name] is not None:
                told[name] /= self.problems * self.seeds  # type: ignore[operator]
        return {k: v / total for k, v in told.items() if v is not None} if total > 0 else {}


def components(arm: Runs, baseline: Runs) -> Components | None:
    """Estimates by the method of moments; None for a single problem, which shows no variance.

    arm, baseline: as for `rft.paired.compare`. From the mean squares of problems, seeds and the rest
    (Searle, Casella and McCulloch 1992, Variance Components): (MS_P - MS_E) / S,
    (MS_S - MS_E) / P and MS_E. Of the last, the part that is the samples' comes from within problems:
    c (n - c) / (n^2 (n - 1)) estimates the variance of a mean of n without bias. What comes out below
    0 is 0: with few seeds `seed` often does, and says little (with 3 it is off by a factor of 2 or
    more half of the time).
    """
    steps_SP, denominator = steps(arm, baseline)
    seeds, problems = steps_SP.shape
    if problems < 2:
        return None
    values_SP = steps_SP / denominator
    n_RP = np.array([n for _, n in (*arm, *baseline)], dtype=np.float64)
    harmonic = n_RP.size / float((1 / n_RP).sum())
    within = None
    if n_RP.min() > 1:
        c_RP = np.array([c for c, _ in (*arm, *baseline)], dtype=np.float64)
        # Of the difference of two means: both arms' variances add up.
        within = 2 * float((c_RP * (n_RP - c_RP) / (n_RP**2 * (n_RP - 1))).mean())
    if seeds == 1:
        total = float(values_SP[0].var(ddof=1))
        within = None if within is None else min(within, total)
        problem, seed, interaction = total - (within or 0.0), None, None
    else:
        ms_p, ms_s, left = mean_squares(values_SP)
        within = None if within is None else min(within, left)
        # Below 0 by chance, a component is 0, and what is left makes up the variance that was seen.
        problem = max(0.0, (ms_p - left) / seeds)
        seed = max(0.0, (ms_s - left) / problems)
        interaction = left - (within or 0.0)
    sample = None if within is None else within * harmonic
    return Components(problem, seed, interaction, sample, problems, seeds, harmonic)


def detectable(se: float, level: float = 0.95, power: float = 0.8, df: float = math.inf) -> float:
    """Minimum detectable effect: the true difference that a two-sided test at 1 - level shows with
    probability `power`, (t_(1 - alpha/2) + t_power) se (Bloom 1995, Evaluation Review 19, 547).

    se: standard error of the difference, a fraction; df: degrees of freedom it has. Approximate
    where few problems are discordant: the standard error then grows with the difference.
    """
    return (t_quantile((1 + level) / 2, df) + t_quantile(power, df)) * se


def problems_needed(
    found: Components, effect: float, level: float = 0.95, power: float = 0.8
) -> int:
    """Problems with which a true difference of `effect` is shown with probability `power`, the models
    and the number of samples being as they are. Raises ValueError for an effect that is not above 0."""
    if effect <= 0:
        raise ValueError("an effect to be shown is above 0")
    return max(2, math.ceil(found.variance(problems=1) / _variance(effect, level, power)))


def samples_needed(
    found: Components, effect: float, level: float = 0.95, power: float = 0.8
) -> int | None:
    """Samples of each of these problems with which `effect` is shown with probability `power`; None
    where no number is enough, or where one sample a problem cannot tell. Raises as `problems_needed`.
    """
    if effect <= 0:
        raise ValueError("an effect to be shown is above 0")
    room = _variance(effect, level, power) - found.variance(samples=math.inf)
    if found.sample is None or room <= 0:
        return None
    return max(1, math.ceil(found.sample / (found.problems * found.seeds) / room))


def _variance(effect: float, level: float, power: float) -> float:
    """Largest variance of the mean with which `effect` is shown with probability `power`."""
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return (effect / z) ** 2
