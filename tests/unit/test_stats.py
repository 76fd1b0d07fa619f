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
    assert stats.mean_interval([0.25, 0.5, 1.0]).method == "wilson, effective n"
    assert stats.mean_interval([0.25]).method == "no variation"
    with pytest.raises(ValueError, match="at least one"):
        stats.mean_interval([])


def test_effective_problems_are_problems_where_values_are_as_of_one_sample() -> None:
    """Zeros and ones, and one value in between that hardly matters, give Wilson's interval."""
    values = [1.0] * 300 + [0.0] * 699
    got, plain = stats.mean_interval([*values, 0.5]), stats.wilson(300, 1000)
    assert (got.low, got.high) == pytest.approx((plain.low, plain.high), abs=0.002)
    # Averages of many samples vary less, and so does their mean.
    narrow = stats.mean_interval([0.31, 0.29] * 500)
    assert narrow.high - narrow.low < 0.01 < plain.high - plain.low


@pytest.mark.parametrize("values", [[0.0] * 49 + [0.25], [1.0] * 49 + [0.75], [0.5, 0.25]])
def test_mean_interval_stays_within_its_bounds(values: list[float]) -> None:
    got = stats.mean_interval(values)
    assert 0 <= got.low < got.value < got.high <= 1


def test_no_variation_still_has_a_width() -> None:
    got = stats.mean_interval([0.5] * 50)
    # A share h of other problems stays unseen in 50 draws with probability (1 - h)^50 = 5%.
    hidden = 1 - 0.05 ** (1 / 50)
    assert got.method == "no variation"
    assert (got.low, got.high) == pytest.approx((0.5 * (1 - hidden), 0.5 * (1 + hidden)))


def _best(values: list[float], hits: list[bool], k: int) -> float:
    """Best of k by its definition, one subset at a time."""
    shares = []
    for subset in combinations(zip(values, hits), k):
        most = max(v for v, _ in subset)
        tied = [hit for v, hit in subset if v == most]
        shares.append(sum(tied) / len(tied))
    return sum(shares) / len(shares)


@pytest.mark.parametrize(
    "values", [[1, 2, 3, 4, 5], [2, 2, 2, 2, 2], [1, 1, 3, 3, 0], [5, 1, 5, 1, 1]]
)
def test_best_of_k_is_its_definition(values: list[float]) -> None:
    hits = [True, False, False, True, False]
    got = {k: stats.best_of_k([values, values[::-1]], [hits, hits], k) for k in range(1, 6)}
    for k, found in got.items():
        want = [_best(values, hits, k), _best(values[::-1], hits, k)]
        assert found == pytest.approx(want, abs=1e-12), k


def test_best_of_k_leaves_what_has_no_value_for_last() -> None:
    values, hits = [[math.nan, 1.0, math.nan]], [[True, False, True]]
    assert stats.best_of_k(values, hits, 3) == pytest.approx(0.0)
    # Of two: only the pair of both that have none is right.
    assert stats.best_of_k(values, hits, 2) == pytest.approx(1 / 3)
    for k in (0, 4):
        with pytest.raises(ValueError, match="best of"):
            stats.best_of_k(values, hits, k)


@pytest.mark.parametrize(
    ("df", "quantile"),  # printed tables of t, 97.5%
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (10, 2.22814), (49, 2.00958), (1e9, 1.95996)],
)
def test_t_is_that_of_the_tables(df: float, quantile: float) -> None:
    assert stats.t_quantile(0.975, df) == pytest.approx(quantile, rel=4e-6)
    assert stats.t_cdf(quantile, df) == pytest.approx(0.975, abs=1e-6)
    assert stats.t_cdf(-quantile, df) == pytest.approx(0.025, abs=1e-6)
    assert stats.t_cdf(0.0, df) == 0.5


def test_t_of_a_fractional_degree_lies_between() -> None:
    assert stats.t_quantile(0.975, 3) < stats.t_quantile(0.975, 2.5) < stats.t_quantile(0.975, 2)
    assert stats.t_quantile(0.5, 7) == pytest.approx(0, abs=1e-9)


def test_spread_needs_two_seeds() -> None:
    assert stats.spread([0.3]) is None
    assert stats.spread([0.1, 0.3]) == pytest.approx(math.sqrt(0.02))


def test_mean_interval_covers_the_truth() -> None:
    """Four samples a problem, whose chances vary from problem to problem; their mean is 1 / 5."""
    rng = np.random.default_rng(8)
    trials, covered = 1000, 0
    for _ in range(trials):
        got = stats.mean_interval(rng.binomial(4, rng.beta(0.25, 1, 100)) / 4)
        covered += got.low <= 0.2 <= got.high
    # 95% wanted; four standard errors of 1,000 trials are 2.8 points.
    assert 0.922 <= covered / trials <= 0.978


def test_apart_is_newcombes_interval() -> None:
    """Newcombe 1998, Table II, row (a) of method 10: 56/70 against 48/80."""
    got = stats.apart(stats.wilson(56, 70), stats.wilson(48, 80))
    assert got.value == pytest.approx(0.2)
    assert (got.low, got.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    back = stats.apart(stats.wilson(48, 80), stats.wilson(56, 70))
    assert (back.low, back.high) == pytest.approx((-got.high, -got.low))


@pytest.mark.parametrize(
    ("x", "y", "rho", "p"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0, 2 / 6),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0, 2 / 24),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8, 16 / 120),
        # Ties at their mean rank: ranks 1.5, 1.5, 3 and 1, 2, 3.
        ([7, 7, 9], [1, 2, 3], 1.5 / math.sqrt(1.5 * 2), 4 / 6),
    ],
)
def test_rank_correlation(x: list[float], y: list[float], rho: float, p: float) -> None:
    got = stats.rank_correlation(x, y)
    assert got is not None
    assert got == (pytest.approx(rho), pytest.approx(p))


def test_rank_correlation_of_many_is_drawn_and_of_few_not_told() -> None:
    got = stats.rank_correlation(list(range(12)), [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10])
    assert got is not None
    assert got[0] > 0.9 and got[1] < 0.001
    assert stats.rank_correlation([1, 2], [1, 2]) is None
    assert stats.rank_correlation([1, 1, 1], [1, 2, 3]) is None
