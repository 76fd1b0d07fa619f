"""Statistics against enumeration, closed forms, and simulations whose truth is known."""

import math
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest

from rft import stats


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample() -> None:
    for n in range(1, 7):
        for c, k in product(range(n + 1), range(1, n + 1)):
            subsets = list(combinations([True] * c + [False] * (n - c), k))
            share = sum(any(s) for s in subsets) / len(subsets)
            assert stats.pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12), (n, c, k)


def test_pass_at_k_takes_arrays_and_large_n() -> None:
    got = stats.pass_at_k([100_000, 100_000, 100_000], [0, 1, 99_999], 1000)
    assert got == pytest.approx([0.0, 0.01, 1.0], abs=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_has_no_meaning(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        stats.pass_at_k(n, c, k)


def _majority(answers: list[str], gold: str, k: int) -> float:
    """maj@k by its definition, one subset at a time."""
    shares = []
    for subset in combinations(answers, k):
        votes = Counter(a for a in subset if a)
        most = max(votes.values(), default=0)
        top = [a for a, n in votes.items() if n == most]
        shares.append((gold in top) / len(top) if top else 0.0)
    return sum(shares) / len(shares)


@pytest.mark.parametrize(
    "answers",
    [
        ["7", "7", "3"],
        ["7", "3"],
        ["7", "", ""],
        ["", "", ""],
        ["3", "3", "3"],
        ["7", "7", "3", "3", "5", ""],
        ["5", "3", "7", "7", "3", "3", "7", ""],
    ],
)
def test_maj_at_k_is_its_definition(answers: list[str]) -> None:
    hits = [a == "7" for a in answers]
    for k in range(1, len(answers) + 1):
        got = stats.maj_at_k(answers, hits, k)
        assert got == pytest.approx(_majority(answers, "7", k), abs=1e-12), k


def test_maj_at_k_by_random_subsets_is_near_and_repeatable() -> None:
    answers = ["7"] * 5 + ["3"] * 4 + ["5"] * 2 + [""]
    hits = [a == "7" for a in answers]
    drawn = stats.maj_at_k(answers, hits, 6, subsets=900)  # of 924: too many to list
    assert drawn == stats.maj_at_k(answers, hits, 6, subsets=900)
    # Four standard errors of a share from 900 draws are at most 0.067.
    assert drawn == pytest.approx(_majority(answers, "7", 6), abs=0.067)
    assert drawn != stats.maj_at_k(answers, hits, 6, subsets=900, seed=1)


def test_maj_at_all_samples_is_exact_however_many_there_are() -> None:
    answers = ["7"] * 40 + ["3"] * 40 + ["5"] * 20
    assert stats.maj_at_k(answers, [a == "7" for a in answers], 100) == 0.5


@pytest.mark.parametrize("k", [0, 3])
def test_maj_at_k_refuses_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="maj@"):
        stats.maj_at_k(["1", "2"], [True, False], k)


@pytest.mark.parametrize("total", [1, 10, 1000])
def test_wilson_ends_are_where_the_score_test_turns(total: int) -> None:
    """Each end is the proportion at z standard errors (its own) from what was seen."""
    for correct in range(0, total + 1, max(1, total // 10)):
        got = stats.wilson(correct, total)
        assert 0 <= got.low <= got.value <= got.high <= 1
        for end in (got.low, got.high):
            if end not in (0.0, 1.0):
                z = abs(got.value - end) / math.sqrt(end * (1 - end) / total)
                assert z == pytest.approx(1.959964, abs=1e-5)


def test_wilson_known_values() -> None:
    got = stats.wilson(0, 10)
    assert got.low == 0.0
    assert got.high == pytest.approx(0.2775, abs=1e-4)
    assert stats.wilson(10, 10).high == 1.0
    half = stats.wilson(5, 10)
    assert (half.low, half.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_mean_interval_says_how_it_was_made() -> None:
    assert stats.mean_interval([0, 1, 1, 0]).method == "wilson"
    assert stats.mean_interval([0.25, 0.5, 1.0]).method == "bootstrap"
    # One of minus one, nought and one is no proportion.
    assert stats.mean_interval([0, 1, 1, 0], bounds=(-1, 1)).method == "bootstrap"
    with pytest.raises(ValueError, match="at least one"):
        stats.mean_interval([])


@pytest.mark.parametrize(
    ("value", "bounds"), [(0.0, (-1.0, 1.0)), (1.0, (-1.0, 1.0)), (0.5, (0.0, 1.0))]
)
def test_no_variation_still_has_a_width(value: float, bounds: tuple[float, float]) -> None:
    got = stats.mean_interval([value] * 50, bounds=bounds)
    # A share h of other problems stays unseen in 50 draws with probability (1 - h)^50 = 5%.
    hidden = 1 - 0.05 ** (1 / 50)
    assert got.method == "no variation"
    assert got.low == pytest.approx(value - hidden * (value - bounds[0]))
    assert got.high == pytest.approx(value + hidden * (bounds[1] - value))


def test_bootstrap_is_that_of_drawing_problems() -> None:
    values = np.random.default_rng(3).integers(0, 9, 60) / 8
    got = stats.mean_interval(values, resamples=20_000)
    plain = np.random.default_rng(4).choice(values, (20_000, 60)).mean(axis=1)
    assert [got.low, got.high] == pytest.approx(list(np.quantile(plain, [0.025, 0.975])), abs=0.006)
    assert got == stats.mean_interval(values[::-1], resamples=20_000), "order must not matter"


def test_bootstrap_in_chunks_draws_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_CELLS", 700)
    values = np.arange(100) / 100
    means = list(stats._resampled_means(values, 1000, 0))
    assert len(means) > 100
    assert sum(map(len, means)) == 1000
    assert len(set(np.concatenate(means))) > 500, "chunks must not repeat each other"


def _flips(differences: list[float]) -> float:
    """The sign-flip p-value by listing all signs."""
    seen = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(s >= seen - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize(
    "steps",
    [[1], [1, 1, 1], [1, -1], [4, 3, -1, 0, 2], [8, 8, 8, -1, 5, 3, 0, 0], [1] * 9 + [-1] * 2],
)
def test_sign_flips_are_enumerated(steps: list[int]) -> None:
    p, method = stats.sign_flip_p([s / 8 for s in steps], 8)
    assert method == "exact"
    assert p == pytest.approx(_flips([s / 8 for s in steps]), abs=1e-12)
    assert stats.sign_flip_p([-s / 8 for s in steps], 8)[0] == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 5), (9, 2), (60, 35), (279, 68)])
def test_with_one_sample_a_problem_it_is_mcnemars_exact_test(wins: int, losses: int) -> None:
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(max(wins, losses), n + 1)) / 2**n
    p, _ = stats.sign_flip_p([1] * wins + [-1] * losses + [0] * 40, 1)
    assert p == pytest.approx(max(min(1.0, 2 * tail), 1e-12), rel=1e-6, abs=1e-13)


def test_random_sign_flips_are_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(5).integers(-3, 5, 80) / 4
    exact, _ = stats.sign_flip_p(differences, 4)
    monkeypatch.setattr(stats, "_LATTICE", 10)
    drawn, method = stats.sign_flip_p(differences, 4, resamples=40_000)
    assert method == "random sign flips"
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 40_000) + 1e-4)
    # It counts what was seen among the draws, so p is never 0.
    assert stats.sign_flip_p([1.0] * 80, 4, resamples=99)[0] == pytest.approx(0.01)


def test_compare_counts_problems_and_is_free_of_rounding() -> None:
    # 1 of 3 and 2 of 6 are a tie, though neither is a binary fraction.
    got = stats.compare([([1, 3, 0, 2], [3, 3, 3, 3])], [([2, 3, 3, 6], [6, 6, 6, 6])])
    assert (got.wins, got.losses, got.ties, got.problems) == (1, 2, 1, 4)
    assert got.difference.value == pytest.approx((0.5 - 0.5 - 1 / 3) / 4)
    assert got.p == pytest.approx(_flips([0.5, -0.5, -1 / 3]))


def test_compare_pools_each_problem_over_its_seeds() -> None:
    ones = np.ones(3, dtype=int)
    arm = [(np.array([1, 1, 0]), ones), (np.array([1, 0, 0]), ones)]
    base = [(np.array([0, 0, 0]), ones), (np.array([0, 1, 0]), ones)]
    got = stats.compare(arm, base)
    # By problem: (1 + 1) / 2, (1 - 1) / 2, 0.
    assert (got.wins, got.losses, got.ties) == (1, 0, 2)
    assert got.difference.value == pytest.approx(1 / 3)


def test_compare_the_other_way_round_is_its_mirror() -> None:
    rng = np.random.default_rng(6)
    n = np.full(200, 4)
    a, b = (rng.binomial(4, 0.5, 200), n), (rng.binomial(4, 0.4, 200), n)
    there, back = stats.compare([a], [b]), stats.compare([b], [a])
    assert there.p == pytest.approx(back.p, rel=1e-9)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.difference.value == -back.difference.value
    assert there.difference.low == pytest.approx(-back.difference.high, abs=0.005)


@pytest.mark.parametrize(
    ("arm", "base"),
    [
        ([([1, 0], [1, 1])], [([1, 0, 1], [1, 1, 1])]),
        ([([1, 0], [1, 1])], [([1, 0], [1, 1]), ([1, 1], [1, 1])]),
        ([], []),
    ],
)
def test_compare_refuses_what_is_not_paired(arm: list, base: list) -> None:
    with pytest.raises(ValueError, match="same"):
        stats.compare(arm, base)


def test_spread_needs_two_seeds() -> None:
    assert stats.spread([0.3]) is None
    assert stats.spread([0.1, 0.3]) == pytest.approx(math.sqrt(0.02))


@pytest.mark.parametrize(("problems", "wins", "losses"), [(60, 0.3, 0.1), (300, 0.1, 0.05)])
def test_paired_interval_covers_the_truth(problems: int, wins: float, losses: float) -> None:
    rng = np.random.default_rng(8)
    trials, covered = 600, 0
    for trial in range(trials):
        roll = rng.random(problems)
        values = (roll < wins).astype(float) - ((roll >= wins) & (roll < wins + losses))
        got = stats.mean_interval(values, resamples=1000, seed=trial, bounds=(-1, 1))
        covered += got.low <= wins - losses <= got.high
    # 95% wanted; four standard errors of 600 trials are 3.6 points.
    assert 0.91 <= covered / trials <= 0.99


def test_the_test_errs_as_often_as_it_says() -> None:
    """Two equal arms, 8 samples a problem: p is at most 5% in about 5% of the trials."""
    rng = np.random.default_rng(9)
    n, trials, wrong = np.full(80, 8), 600, 0
    for _ in range(trials):
        chance = rng.beta(0.7, 1, 80)
        got = stats.compare(
            [(rng.binomial(8, chance), n)], [(rng.binomial(8, chance), n)], resamples=10
        )
        wrong += got.p <= 0.05
    assert 0.015 <= wrong / trials <= 0.085
