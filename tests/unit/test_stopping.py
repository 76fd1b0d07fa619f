"""What allocators believe, against pools whose truth is known; and when they stop, against
Bellman's equation as it is written and against simulation."""

import math
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from rft.allocators import _beliefs, _stopping
from rft.allocators._beliefs import Beliefs


def beliefs_of(a: float, b: float, horizon: int, target: int, repeat: float) -> Beliefs:
    """Rates of a Beta(a, b); once there is a way, a right draw repeats one with chance `repeat`."""
    n, c = np.arange(horizon + 1)[:, None], np.arange(horizon + 1)[None, :]
    right = (np.minimum(c, n) + a) / (n + a + b)
    new = np.full((horizon + 1, target), 1 - repeat)
    new[:, 0] = 1.0
    return Beliefs(new, right, right_cost=0.8, wrong_cost=1.3)


def by_hand(
    known: Beliefs, price: float, factor: float, target: int, horizon: int
) -> Callable[[int, int, int], float]:
    """Bellman's equation as it is written."""

    @cache
    def worth(n: int, c: int, d: int) -> float:
        if n == horizon or d == target:
            return 0.0
        q, h = float(known.right[n, c]), float(known.new[c, d])
        cost = factor * (q * known.right_cost + (1 - q) * known.wrong_cost)
        again = (
            -cost / price
            + q * h * (1 + worth(n + 1, c + 1, d + 1))
            + q * (1 - h) * worth(n + 1, c + 1, d)
            + (1 - q) * worth(n + 1, c, d)
        )
        return max(0.0, again)

    return worth


@pytest.mark.parametrize("price", [2.0, 5.0, 20.0])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_plan_solves_bellmans_equation(price: float, factor: float) -> None:
    target, horizon = 3, 14
    known = beliefs_of(0.5, 1.5, horizon, target, repeat=0.3)
    worth = by_hand(known, price, factor, target, horizon)
    made = _stopping.plan(known, price, factor, target, 1, horizon)
    depth = np.frombuffer(made.depth, dtype=np.uint8).reshape(
        horizon + 1, made.most + 1, target, len(_stopping.SURE)
    )
    stops = 0
    for n in range(1, horizon):
        for c in range(min(n, made.most) + 1):
            for d in range(min(c, target - 1) + 1):
                if c and not d:
                    continue  # the first right one is always a new way
                assert (depth[n, c, d, 0] > 0) == (worth(n, c, d) > 1e-9), (n, c, d)
                stops += worth(n, c, d) <= 1e-9
    assert (stops > 10) == (price < 20 or factor > 1)


def test_draws_ahead_are_wanted_as_often_as_they_claim() -> None:
    """From some states, by simulation: the share of runs that still want the k-th further draw."""
    target, horizon, price = 3, 60, 12.0
    known = beliefs_of(0.5, 1.5, horizon, target, repeat=0.2)
    made = _stopping.plan(known, price, 1.0, target, 2, horizon)
    depth = np.frombuffer(made.depth, dtype=np.uint8).reshape(
        horizon + 1, made.most + 1, target, len(_stopping.SURE)
    )
    dice = random.Random(3)
    checked = 0
    for state in [(0, 0, 0), (4, 1, 1), (6, 2, 1), (5, 2, 2), (8, 1, 1)]:
        if not depth[(*state, 0)]:
            continue
        wanted: Counter[int] = Counter()
        for _ in range(3000):
            n, c, d = state
            k = 0
            while d < target and n < horizon and c <= made.most and depth[n, c, d, 0]:
                wanted[k] += 1
                k += 1
                n += 1
                if dice.random() < known.right[n - 1, c]:
                    d += dice.random() < known.new[c, d]
                    c += 1
        for i, sure in enumerate(_stopping.SURE):
            ahead = int(depth[(*state, i)])
            # The last that is sent ahead is wanted so often, the one after it is not.
            assert wanted[ahead - 1] / 3000 >= sure - 0.03
            assert wanted[ahead] / 3000 <= sure + 0.03
            checked += 1
    assert checked >= 12


def test_expected_spend_is_what_is_spent() -> None:
    target, horizon, price = 3, 60, 12.0
    known = beliefs_of(0.5, 1.5, horizon, target, repeat=0.2)
    start = tuple(np.array([x]) for x in (0, 0, 0, 1))
    told = _stopping.spend(known, np.array([price / 2, price]), target, 2, horizon, [start])[0]
    made = _stopping.plan(known, price, 1.0, target, 2, horizon)
    depth = np.frombuffer(made.depth, dtype=np.uint8).reshape(
        horizon + 1, made.most + 1, target, len(_stopping.SURE)
    )
    dice = random.Random(4)
    spent = []
    for _ in range(4000):
        n = c = d = 0
        tokens = 0.0
        while d < target and n < horizon and c <= made.most and depth[n, c, d, 0]:
            hit = dice.random() < known.right[n, c]
            tokens += known.right_cost if hit else known.wrong_cost
            n += 1
            if hit:
                d += dice.random() < known.new[c, d]
                c += 1
        spent.append(tokens)
    assert told[0] < told[1]
    assert told[1] == pytest.approx(np.mean(spent), abs=4 * np.std(spent) / math.sqrt(len(spent)))


def stopped(rates: np.ndarray, rule: Callable[[int, int], bool], seed: int) -> tuple[Any, Any]:
    """n and c of prompts that are drawn until a rule on (n, c) says stop."""
    dice = np.random.default_rng(seed)
    n, c = np.zeros(len(rates), dtype=int), np.zeros(len(rates), dtype=int)
    for place, rate in enumerate(rates):
        while not rule(n[place], c[place]):
            c[place] += dice.random() < rate
            n[place] += 1
    return n, c


@pytest.mark.parametrize(
    "rule",
    [lambda n, c: n == 24, lambda n, c: c == 3 or n == 60 or (n == 12 and c == 0)],
    ids=["fixed", "adaptive"],
)
def test_rates_are_learnt_whatever_stopped_the_draws(rule: Callable[[int, int], bool]) -> None:
    """A third of the prompts can't be solved, the others' rates are a Beta(0.8, 1.2)."""
    dice = np.random.default_rng(5)
    rates = np.where(dice.random(3000) < 1 / 3, 0.0, dice.beta(0.8, 1.2, 3000))
    n, c = stopped(rates, rule, 6)
    weights = _beliefs.fit_rates(n, c, np.ones(len(n)))
    assert weights.sum() == pytest.approx(1)
    grid = _beliefs.RATES_G
    assert weights @ grid == pytest.approx(rates.mean(), abs=0.015)
    assert weights[grid < 0.01].sum() == pytest.approx((rates < 0.01).mean(), abs=0.06)
    assert weights[grid > 0.5].sum() == pytest.approx((rates > 0.5).mean(), abs=0.03)
    # The naive mean of c / n is far off where stopping was adaptive.
    if rule(12, 0):
        assert abs((c / n).mean() - rates.mean()) > 0.03


def test_posterior_is_that_of_the_beta() -> None:
    weights = _beliefs._beta(0.7, 0.3)
    right = _beliefs._posterior(weights, 400, 60)
    a, b = 0.7, 0.7 * 0.7 / 0.3
    for n in (0, 1, 7, 60, 399):
        for c in range(0, min(n, 59) + 1, 3):
            if (c + 1) / (n + 2) < 0.97:  # beyond, the grid has an end
                assert right[n, c] == pytest.approx((c + a) / (n + a + b), rel=0.03), (n, c)


def test_posterior_of_many_draws_is_finite() -> None:
    right = _beliefs._posterior(_beliefs._beta(0.7, 0.3), 4097, 512)
    assert np.isfinite(right).all() and (right > 0).all() and (right < 1).all()
    assert right[4096, 511] == pytest.approx(511 / 4096, rel=0.02)


def test_new_ways_are_learnt() -> None:
    """A Pitman-Yor process with 0.5 and 0.4, which no logistic regression is."""
    dice = np.random.default_rng(7)
    target, rows = 4, 60
    seen, new = np.zeros((rows, target)), np.zeros((rows, target))
    for _ in range(1500):
        d = 0
        for c in range(40):
            if d == target:
                break
            chance = (0.5 + 0.4 * d) / (0.5 + c) if c else 1.0
            hit = dice.random() < chance
            seen[c, d] += 1
            new[c, d] += hit
            d += hit
    learnt = _beliefs.fit_new(seen, new)
    for c, d in [(0, 0), (1, 1), (3, 1), (3, 2), (10, 1), (10, 3), (30, 2)]:
        chance = (0.5 + 0.4 * d) / (0.5 + c) if c else 1.0
        assert learnt[c, d] == pytest.approx(chance, abs=0.04), (c, d)


def test_nothing_seen_gives_something_usual() -> None:
    empty = np.zeros(0, dtype=np.int64)
    cells = np.zeros((33, 4))
    (known,) = _beliefs.believe(32, 4, [(empty, empty, empty)], cells, cells, np.zeros(5))
    assert known.right_cost == known.wrong_cost == pytest.approx(1)
    assert 0.1 < known.right[0, 0] < 0.6
    assert known.right[20, 0] < known.right[4, 0] < known.right[4, 3]
    assert known.new[0, 0] > known.new[5, 1]
