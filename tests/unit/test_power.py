"""Variance components and power against simulations whose truth is known."""

import math

import numpy as np
import pytest

from rft import paired, power


def _arms(
    rng: np.random.Generator, problems: int, samples: int, seeds: int, seed_sd: float = 0.0
) -> tuple[list, list]:
    """Chances that differ between problems; the arm's by problem and by seed as well."""
    n = np.full(problems, samples)
    chance = rng.uniform(0.3, 0.7, problems)
    shift = rng.uniform(-0.2, 0.2, problems)
    arm = [
        (rng.binomial(n, np.clip(chance + shift + rng.normal(0, seed_sd), 0, 1)), n)
        for _ in range(seeds)
    ]
    return arm, [(rng.binomial(n, chance), n) for _ in range(seeds)]


def test_components_are_those_of_the_simulation() -> None:
    rng = np.random.default_rng(1)
    found = power.components(*_arms(rng, 20_000, 4, 6, seed_sd=0.05))
    assert found is not None
    assert found.problem == pytest.approx(0.4**2 / 12, rel=0.05)
    # Two samples of Bernoulli chances: E[p (1 - p)] for p uniform, and for p plus a shift.
    base = 0.25 - 0.4**2 / 12
    assert found.sample == pytest.approx(2 * base - 0.4**2 / 12 - 0.05**2, rel=0.05)
    assert found.interaction == pytest.approx(0.0, abs=0.003)
    assert found.seed is not None
    assert 0.0005 < found.seed < 0.01  # six draws of 0.0025
    assert sum(found.shares().values()) == pytest.approx(1)


def test_one_sample_and_one_seed_leave_the_noise_with_the_problem() -> None:
    arm, base = _arms(np.random.default_rng(2), 500, 1, 1)
    found = power.components(arm, base)
    assert found is not None
    assert (found.seed, found.interaction, found.sample) == (None, None, None)
    steps, denominator = paired.steps(arm, base)
    assert found.problem == pytest.approx((steps / denominator).var(ddof=1))
    assert found.shares() == {"problem": 1.0}
    assert power.samples_needed(found, 0.05) is None


def test_variance_is_that_of_the_mean_difference() -> None:
    arm, base = _arms(np.random.default_rng(3), 400, 4, 3)
    found = power.components(arm, base)
    assert found is not None
    steps, denominator = paired.steps(arm, base)
    by_problem = (steps / denominator).mean(axis=0)
    assert found.variance() == pytest.approx(by_problem.var(ddof=1) / 400)
    assert found.variance(problems=800) == pytest.approx(found.variance() / 2)
    assert found.variance(samples=8) < found.variance() < found.variance(seeds=True) + 1e-12


def test_samples_that_differ_in_number_count_by_their_harmonic_mean() -> None:
    n = np.array([2, 4] * 50)
    found = power.components([(n // 2, n)], [(n // 2, n)])
    assert found is not None
    assert found.samples == pytest.approx(8 / 3)
    assert found.variance() == 0.0
    assert found.shares() == {}


def test_one_problem_has_no_components() -> None:
    assert power.components([([1], [4])], [([2], [4])]) is None


def test_detectable_known_value() -> None:
    assert power.detectable(0.01) == pytest.approx(0.01 * (1.959964 + 0.841621), rel=1e-6)
    # Two degrees of freedom: 4.30265 + 1.06066.
    assert power.detectable(0.01, df=2) == pytest.approx(0.0536331, rel=1e-4)


def test_what_is_needed_makes_the_effect_detectable() -> None:
    found = power.components(*_arms(np.random.default_rng(4), 300, 4, 2))
    assert found is not None
    now = power.detectable(math.sqrt(found.variance()))
    assert abs(power.problems_needed(found, now) - 300) <= 1
    needed = power.problems_needed(found, now / 2)
    assert power.detectable(math.sqrt(found.variance(problems=needed))) <= now / 2
    samples = power.samples_needed(found, 0.9 * now)
    assert samples is not None
    assert power.detectable(math.sqrt(found.variance(samples=samples))) <= 0.9 * now
    assert power.detectable(math.sqrt(found.variance(samples=samples - 1))) > 0.9 * now
    # However many samples, problems still differ.
    assert power.samples_needed(found, now / 10) is None
    for wrong in (power.problems_needed, power.samples_needed):
        with pytest.raises(ValueError, match="above 0"):
            wrong(found, 0.0)


def test_the_detectable_effect_is_shown_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    problems, trials, shown = 400, 600, 0
    # 20% of the problems discordant: a variance of 0.2 less the square of the effect.
    effect = power.detectable(math.sqrt(0.2 / problems))
    effect = power.detectable(math.sqrt((0.2 - effect**2) / problems))
    for _ in range(trials):
        roll = rng.random(problems)
        steps = (roll < (0.2 + effect) / 2).astype(int) - (roll > 1 - (0.2 - effect) / 2)
        shown += paired.sign_flip_p(steps)[0] <= 0.05
    # 80% wanted; four standard errors of 600 trials are 6.5 points.
    assert 0.735 <= shown / trials <= 0.865
