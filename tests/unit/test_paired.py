"""Paired comparisons against enumeration, closed forms, and simulations whose truth is known."""

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from rft import paired


def _flips(differences: list[float]) -> tuple[float, float]:
    """(mid-p, p) by listing all signs."""
    seen = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    p = sum(s >= seen - 1e-9 for s in sums) / len(sums)
    return p - sum(abs(s - seen) < 1e-9 for s in sums) / len(sums) / 2, p


@pytest.mark.parametrize(
    "steps",
    [[1], [1, 1, 1], [1, -1], [4, 3, -1, 0, 2], [8, 8, 8, -1, 5, 3, 0, 0], [1] * 9 + [-1] * 2,
     [6, -2, 4]],
)  # fmt: skip
def test_sign_flips_are_enumerated(steps: list[int]) -> None:
    mid, p, method = paired.sign_flip_p(np.array(steps))
    assert method == "exact"
    assert (mid, p) == pytest.approx(_flips(steps), abs=1e-12)
    assert paired.sign_flip_p(-np.array(steps))[:2] == pytest.approx((mid, p), abs=1e-12)


def _steps(wins: int, losses: int, ties: int) -> NDArray[np.int64]:
    return np.repeat([1, -1, 0], [wins, losses, ties])


@pytest.mark.parametrize(("wins", "losses"), [(5, 5), (9, 2), (60, 35), (279, 68)])
def test_with_one_sample_a_problem_it_is_mcnemars_test(wins: int, losses: int) -> None:
    n = wins + losses
    weights = [math.comb(n, i) / 2**n for i in range(n + 1)]
    p = min(1.0, 2 * sum(weights[max(wins, losses) :]))
    tie = weights[wins] * (1 if wins != losses else 0.5)
    mid, exact, _ = paired.sign_flip_p(_steps(wins, losses, 40))
    assert exact == pytest.approx(max(p, 1e-12), rel=1e-6, abs=1e-13)
    assert mid == pytest.approx(max(p - tie, 1e-12), rel=1e-6, abs=1e-13)


def test_random_sign_flips_are_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = np.random.default_rng(5).integers(-3, 5, 80)
    mid, exact, _ = paired.sign_flip_p(steps)
    monkeypatch.setattr(paired, "_LATTICE", 10)
    drawn_mid, drawn, method = paired.sign_flip_p(steps, resamples=40_000)
    assert method == "random sign flips"
    error = 4 * math.sqrt(exact * (1 - exact) / 40_000) + 1e-4
    assert (drawn_mid, drawn) == pytest.approx((mid, exact), abs=error)
    # It counts what was seen among the draws, so p is never 0; equal signs are half of that.
    many = np.array([1, 2] * 40)
    assert paired.sign_flip_p(many, resamples=99)[:2] == pytest.approx((0.005, 0.01))


def _score_test(wins: int, losses: int, problems: int, at: float) -> float:
    """Tango's statistic with the discordance found by searching the likelihood."""
    q = np.linspace(max(0.0, -at), (1 - at) / 2, 400_001)[1:-1]
    ties = problems - wins - losses
    with np.errstate(divide="ignore"):
        likelihood = wins * np.log(q + at) + losses * np.log(q) + ties * np.log(1 - 2 * q - at)
    best = q[np.argmax(likelihood)]
    return (wins - losses - problems * at) / math.sqrt(problems * (2 * best + at * (1 - at)))


@pytest.mark.parametrize(
    ("wins", "losses", "problems"), [(9, 2, 60), (21, 14, 300), (3, 1, 1319), (40, 40, 100)]
)
def test_tango_ends_are_where_the_score_test_turns(wins: int, losses: int, problems: int) -> None:
    got = paired.difference_interval(_steps(wins, losses, problems - wins - losses))
    assert got.method == "tango"
    for end, sign in ((got.low, 1), (got.high, -1)):
        assert _score_test(wins, losses, problems, end) == pytest.approx(sign * 1.959964, abs=2e-3)


def test_at_no_difference_tango_is_mcnemars_score() -> None:
    score, _, _ = paired._score(_steps(21, 9, 100).astype(float))
    assert score(0.0) == pytest.approx((21 - 9) / math.sqrt(21 + 9))


@pytest.mark.parametrize(
    ("wins", "losses", "ties"),
    [(0, 0, 50), (50, 0, 0), (0, 50, 0), (1, 0, 0), (0, 0, 1), (1, 1, 0)],
)
def test_extremes_have_an_interval(wins: int, losses: int, ties: int) -> None:
    """All or none correct, one problem: never an interval without width, none outside the bounds."""
    steps = _steps(wins, losses, ties)
    got = paired.difference_interval(steps)
    assert -1 <= got.low <= got.value <= got.high <= 1
    assert got.high - got.low > 0.05
    mid, p, _ = paired.sign_flip_p(steps)
    assert 0 < mid <= p <= 1


def test_no_discordant_problem_is_bounded_by_their_number() -> None:
    z2 = 1.959964**2
    got = paired.difference_interval([0.0] * 300)
    assert (got.low, got.high) == pytest.approx((-z2 / (300 + z2), z2 / (300 + z2)), rel=1e-6)


def test_no_variation_is_not_certainty() -> None:
    got = paired.difference_interval([0.5] * 50)
    hidden = 1 - 0.05 ** (1 / 50)
    assert got.method == "no variation"
    assert (got.low, got.high) == pytest.approx((0.5 - 1.5 * hidden, 0.5 + 0.5 * hidden))


def test_a_symmetric_difference_has_the_t_interval() -> None:
    values = np.array([0.25, -0.25, 0.5, 0.0] * 25)
    values = np.concatenate([values, 0.25 - values])
    got = paired.difference_interval(values)
    half = 1.971957 * values.std(ddof=1) / math.sqrt(200)  # t, 199 degrees of freedom
    assert (got.low, got.high) == pytest.approx((0.125 - half, 0.125 + half), rel=0.02)


def test_compare_counts_problems_and_is_free_of_rounding() -> None:
    # 1 of 3 and 2 of 6 are a tie, though neither is a binary fraction.
    got = paired.compare([([1, 3, 0, 2], [3, 3, 3, 3])], [([2, 3, 3, 6], [6, 6, 6, 6])])
    assert (got.wins, got.losses, got.ties, got.problems) == (1, 2, 1, 4)
    assert got.difference.value == pytest.approx((0.5 - 0.5 - 1 / 3) / 4)
    assert (got.p, got.p_exact) == pytest.approx(_flips([0.5, -0.5, -1 / 3]))


def test_compare_pools_each_problem_over_its_seeds() -> None:
    ones = np.ones(3, dtype=int)
    arm = [(np.array([1, 1, 0]), ones), (np.array([1, 0, 0]), ones)]
    base = [(np.array([0, 0, 0]), ones), (np.array([0, 1, 0]), ones)]
    got = paired.compare(arm, base)
    # By problem: (1 + 1) / 2, (1 - 1) / 2, 0.
    assert (got.wins, got.losses, got.ties) == (1, 0, 2)
    assert got.difference.value == pytest.approx(1 / 3)


def test_compare_the_other_way_round_is_its_mirror() -> None:
    rng = np.random.default_rng(6)
    n = np.full(200, 4)
    a, b = (rng.binomial(4, 0.5, 200), n), (rng.binomial(4, 0.4, 200), n)
    there, back = paired.compare([a], [b]), paired.compare([b], [a])
    assert there.p == pytest.approx(back.p, rel=1e-9)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.difference.value == -back.difference.value
    assert there.difference.low == pytest.approx(-back.difference.high, abs=1e-9)


@pytest.mark.parametrize(
    ("arm", "base", "message"),
    [
        ([([1, 0], [1, 1])], [([1, 0, 1], [1, 1, 1])], "same"),
        ([([1, 0], [1, 1])], [([1, 0], [1, 1]), ([1, 1], [1, 1])], "same"),
        ([], [], "same"),
        ([([], [])], [([], [])], "one at least"),
        ([([0], [0])], [([0], [0])], "one sample"),
    ],
)
def test_compare_refuses_what_is_not_paired(arm: list, base: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired.compare(arm, base)


# Several seeds


def test_over_seeds_is_the_t_test_of_seeds_where_problems_are_alike() -> None:
    """Seeds differ, problems hardly: three values, two degrees of freedom."""
    steps = np.repeat([[10], [30], [50]], 4000, axis=1)
    steps[:, ::2] += 1
    got = paired.over_seeds(steps, 100)
    assert got is not None
    half = 4.30265 * np.std([0.1, 0.3, 0.5], ddof=1) / math.sqrt(3)
    assert got.df == pytest.approx(2, abs=0.01)
    assert got.difference.value == pytest.approx(0.305)
    assert got.difference.low == pytest.approx(0.305 - half, rel=1e-3)


def test_over_seeds_is_the_t_test_of_problems_where_seeds_are_alike() -> None:
    row = np.random.default_rng(3).integers(-4, 5, 200)
    got = paired.over_seeds(np.array([row, row, row]), 4)
    assert got is not None
    assert got.df == pytest.approx(199)
    assert got.se == pytest.approx(np.std(row / 4, ddof=1) / math.sqrt(200))


def test_over_seeds_needs_seeds_problems_and_variance() -> None:
    assert paired.over_seeds(np.array([[1, 0, -1]]), 1) is None
    assert paired.over_seeds(np.array([[1], [0], [1]]), 1) is None
    assert paired.over_seeds(np.zeros((3, 40), dtype=np.int64), 1) is None


def test_mean_squares_are_those_of_the_table() -> None:
    table = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 5.0]])
    rows, columns, grand = table.mean(axis=1), table.mean(axis=0), table.mean()
    left = table - rows[:, None] - columns + grand
    want = (2 * ((columns - grand) ** 2).sum() / 2, 3 * ((rows - grand) ** 2).sum(), (left**2).sum() / 2)  # fmt: skip
    assert paired.mean_squares(table) == pytest.approx(want)


def test_bootstrap_is_that_of_drawing_problems() -> None:
    values = np.random.default_rng(3).integers(0, 9, 60) / 8
    got = paired.bootstrap(values[None], resamples=20_000)
    plain = np.random.default_rng(4).choice(values, (20_000, 60)).mean(axis=1)
    assert [got.low, got.high] == pytest.approx(list(np.quantile(plain, [0.025, 0.975])), abs=0.006)
    assert got == paired.bootstrap(values[None, ::-1], resamples=20_000), "order must not matter"


def test_bootstrap_draws_seeds_as_well_and_apart() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(-4, 5, (3, 50)) / 8 + np.array([[0.0], [0.2], [0.4]])
    got = paired.bootstrap(values, resamples=20_000)
    problems, seeds = rng.integers(0, 50, (5000, 50)), rng.integers(0, 3, (5000, 3))
    plain = [values[np.ix_(s, p)].mean() for s, p in zip(seeds, problems)]
    assert [got.low, got.high] == pytest.approx(list(np.quantile(plain, [0.025, 0.975])), abs=0.015)


def test_bootstrap_in_chunks_draws_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "_CELLS", 700)
    means = list(paired._resampled_means(np.arange(100) / 100, 1000, np.random.default_rng(0)))
    assert len(means) > 100
    assert sum(map(len, means)) == 1000
    assert len(set(np.concatenate(means))) > 500, "chunks must not repeat each other"


# Equivalence and several arms


@pytest.mark.parametrize(
    ("wins", "losses", "no_worse", "same"),
    [(30, 30, True, True), (60, 10, True, False), (10, 60, False, False), (0, 0, True, True)],
)
def test_equivalence_is_the_narrower_interval_within_the_margin(
    wins: int, losses: int, no_worse: bool, same: bool
) -> None:
    got = paired.equivalence(_steps(wins, losses, 1000 - wins - losses), 0.02)
    assert (got.p_no_worse <= 0.05, got.p_equivalent <= 0.05) == (no_worse, same)
    # The test and the 90% interval say the same.
    assert (got.low > -0.02, got.low > -0.02 and got.high < 0.02) == (no_worse, same)


def test_equivalence_of_several_samples_agrees_with_its_interval() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        values = rng.integers(-4, 5, 300) / 4 * (rng.random(300) < 0.2)
        got = paired.equivalence(values, 0.03)
        assert (got.p_no_worse <= 0.05) == (got.low > -0.03)
        assert (got.p_equivalent <= 0.05) == (got.low > -0.03 and got.high < 0.03)


def test_equivalence_without_variation_goes_by_the_interval() -> None:
    got = paired.equivalence([0.5] * 500, 0.03)
    assert (got.p_no_worse, got.p_equivalent) == pytest.approx((0.05, 1.0))


@pytest.mark.parametrize(("margin", "level"), [(0.0, 0.95), (1.0, 0.95), (-0.1, 0.95), (0.1, 0.5)])
def test_equivalence_refuses_what_is_no_margin(margin: float, level: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        paired.equivalence([0.0, 1.0], margin, level)


def test_holm_known_values() -> None:
    # The least by 4, the next by 3, and none below the one before it.
    got = paired.holm([0.01, 0.04, 0.03, 0.005])
    assert got == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.5, 0.9]) == [1.0, 1.0]
    assert paired.holm([0.2]) == [0.2]
    assert paired.holm([]) == []


def test_joint_level_lies_between_one_comparison_and_bonferroni() -> None:
    rng = np.random.default_rng(1)
    apart = rng.standard_normal((4, 4000))
    alike = apart + 2 * rng.standard_normal(4000)
    sidak = 0.95 ** (1 / 4)
    assert paired.joint_level(apart) == pytest.approx(sidak, abs=0.001)
    assert 0.955 < paired.joint_level(alike) < sidak - 0.002
    assert paired.joint_level(np.repeat(apart[:1], 3, axis=0)) == pytest.approx(0.95, abs=0.002)
    assert paired.joint_level(apart[:1]) == 0.95
    # Arms that never differ from the baseline.
    assert paired.joint_level(np.zeros((2, 50))) == pytest.approx(0.95**0.5, abs=0.002)


# Simulations


@pytest.mark.parametrize(("problems", "wins", "losses"), [(60, 0.3, 0.1), (300, 0.1, 0.05)])
def test_paired_interval_covers_the_truth(problems: int, wins: float, losses: float) -> None:
    rng = np.random.default_rng(8)
    trials, covered = 1000, 0
    for _ in range(trials):
        roll = rng.random(problems)
        values = (roll < wins).astype(float) - ((roll >= wins) & (roll < wins + losses))
        got = paired.difference_interval(values)
        covered += got.low <= wins - losses <= got.high
    # 95% wanted; four standard errors of 1,000 trials are 2.8 points.
    assert 0.922 <= covered / trials <= 0.978


@pytest.mark.parametrize("samples", [1, 8])
def test_the_test_errs_as_often_as_it_says(samples: int) -> None:
    """Two equal arms: p is at most 5% in about 5% of the trials."""
    rng = np.random.default_rng(9)
    n, trials, wrong = np.full(80, samples), 1000, 0
    for _ in range(trials):
        chance = rng.beta(0.7, 1, 80)
        steps = rng.binomial(n, chance) - rng.binomial(n, chance)
        wrong += paired.sign_flip_p(steps)[0] <= 0.05
    assert 0.022 <= wrong / trials <= 0.078
