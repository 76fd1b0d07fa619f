"""Forecasts against many runs that are drawn from the same world, with real allocators."""

import numpy as np
import pytest

from rft import forecast as module
from rft.forecast import FIGURES, LEVEL, Draw, Pilot, Range, forecast
from rft.section import Component

WAYS = 5


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer simulations than a user gets, so that this takes seconds."""
    monkeypatch.setattr(module, "MOST_PROMPTS", 200)
    monkeypatch.setattr(module, "MOST_DRAWS", 100_000)


class World:
    """Prompts with success rates of their own, a few ways each, and wrong answers twice as long."""

    def __init__(self, prompts: int, seed: int):
        self.rng = np.random.default_rng(seed)
        self.rates = self.rng.beta(0.5, 1.0, prompts)

    def draw(self, prompt: int) -> Draw:
        right = bool(self.rng.random() < self.rates[prompt])
        way = int(self.rng.geometric(0.5)) % WAYS if right else None
        return right, way, int(self.rng.integers(20, 40)) * (1 if right else 2)

    def pilot(self, prompts: int, n: int) -> list[list[Draw]]:
        return [[self.draw(i) for _ in range(n)] for i in range(prompts)]

    def run(self, pilot: list[list[Draw]], n: int) -> dict[str, float]:
        """What a uniform run comes to that takes the pilot's samples over."""
        every = [[*(pilot[i] if i < len(pilot) else []), *()] for i in range(len(self.rates))]
        for i, one in enumerate(every):
            one += [self.draw(i) for _ in range(n - len(one))]
        return {
            "samples": sum(map(len, every)),
            "tokens": sum(t for one in every for _, _, t in one),
            "correct": sum(right for one in every for right, _, _ in one),
            "distinct": sum(len({w for _, w, _ in one if w is not None}) for one in every),
            "solved": sum(any(right for right, _, _ in one) for one in every),
        }


def of(draws: list[list[Draw]], prompts: int) -> Pilot:
    return Pilot(
        draws, [False] * prompts, rate=1000.0, start_s=20.0, row_bytes=500.0, memory_gb=None
    )


def test_uniform_runs_fall_within_their_intervals() -> None:
    inside = dict.fromkeys(FIGURES[:-1], 0)
    trials = 12
    for seed in range(trials):
        world = World(150, seed)
        pilot = world.pilot(40, 4)
        told = forecast(of(pilot, 150), 8, Component(use="uniform"), seed=seed)
        got = world.run(pilot, 8)
        for name in inside:
            inside[name] += got[name] in told[name]
        assert told["samples"] == Range(1200, 1200, 1200)
        assert told["tokens"].low < told["tokens"].value < told["tokens"].high
    # Of twelve 90% intervals eight or more hold but once in a few thousand times.
    assert all(count >= 8 for count in inside.values()), inside


def test_hours_are_those_of_what_is_left_to_draw() -> None:
    pilot = of(World(50, 1).pilot(50, 4), 50)
    told = forecast(pilot, 4, Component(use="uniform"))
    assert told["tokens"].value == sum(t for one in pilot.draws for _, _, t in one)
    # A machine is not as fast at all times.
    hours = told["hours"]
    assert hours.value == pytest.approx(20 / 3600, rel=0.1) and hours.low < 20 / 3600 < hours.high


def test_adaptive_run_is_forecast_by_its_own_allocator() -> None:
    pilot = of(World(200, 2).pilot(48, 8), 200)
    uniform = forecast(pilot, 16, Component(use="uniform"))
    adaptive = forecast(pilot, 64, Component(use="adaptive", args={"target": 2, "price": 8}))
    assert adaptive["tokens"].high < uniform["tokens"].low
    assert adaptive["solved"].value > 0.7 * uniform["solved"].value


def test_many_prompts_are_scaled_up_from_some() -> None:
    pilot = World(48, 3).pilot(48, 4)
    small = forecast(of(pilot, 1000), 4, Component(use="uniform"))
    large = forecast(of(pilot, 100_000), 4, Component(use="uniform"))
    assert large["samples"].value == pytest.approx(400_000)
    assert large["correct"].value == pytest.approx(100 * small["correct"].value, rel=0.1)


def test_nothing_right_in_the_pilot_promises_little_and_not_nothing() -> None:
    pilot = of([[(False, None, 30)] * 8 for _ in range(48)], 480)
    told = forecast(pilot, 16, Component(use="uniform"))
    assert told["correct"].low < 20 and told["correct"].high > 0 and LEVEL == 0.9


def test_a_known_solutions_way_is_none_that_counts() -> None:
    """Half of the prompts have a solution, and their right answers nearly always repeat it."""
    rng = np.random.default_rng(4)
    draws: list[list[Draw]] = []
    for i in range(48):
        known = i % 2 == 0
        ways = [
            None if known and rng.random() < 0.95 else int(rng.integers(1, 3)) for _ in range(8)
        ]
        draws.append([(bool(rng.random() < 0.7), way, 30) for way in ways])
    draws = [[(right, way if right else None, t) for right, way, t in one] for one in draws]
    pilot = Pilot(draws, [i % 2 == 0 for i in range(480)], 1000.0, 20.0, 500.0, None)
    told = forecast(pilot, 8, Component(use="uniform"))
    # 240 without a solution have about 1.9 of two ways each, the others one of three in ten.
    assert 400 < told["distinct"].value < 600
    assert told["solved"].value > 470


def test_a_budget_is_that_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pilot = of(World(120, 5).pilot(24, 4), 120)
    budget = Component(use="budget", args={"tokens": 30_000})
    monkeypatch.setattr(module, "SIMULATIONS", (8, 8))
    whole = forecast(pilot, 24, budget)
    monkeypatch.setattr(module, "MOST_PROMPTS", 60)
    assert forecast(pilot, 24, budget)["tokens"].value == pytest.approx(30_000, rel=0.1)
    assert whole["tokens"].value == pytest.approx(30_000, rel=0.1)


def test_without_a_speed_there_are_no_hours() -> None:
    pilot = Pilot(World(20, 1).pilot(20, 2), [False] * 20, 0.0, 20.0, 500.0, None)
    assert forecast(pilot, 4, Component(use="uniform")).keys() == set(FIGURES) - {"hours"}
