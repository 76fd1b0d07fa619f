"""What do adaptive rules save? Simulated pools, the real allocators, an engine that is a rate.

    python scripts/bench/adaptive.py                       # all mixes, 3 seeds
    python scripts/bench/adaptive.py --mix math --seeds 1
    python scripts/bench/adaptive.py --run runs/quickstart/rft/seed0 --price 8 24
    python scripts/bench/adaptive.py --requests 100000 1000000 10000000

Every rule is held against what uniform sampling and DART's quota (hkust-nlp/dart-math; Tong et al.
2024, arXiv 2407.13690) take for the *same coverage*: the mean over prompts of min(different right
answers, 4). All rules see the same pool: sample i of a prompt has one verdict, way and length.
With --run the pool is that of a run whose `sample` drew uniformly, as deep as it went.

* The mixes' shapes are fitted to published figures, which the first lines print beside the model's.
* The engine has so many slots, each of which makes a token a tick; a verdict comes `DELAY` ticks
  after its sample's end. Occupancy is the share of slot-ticks that were used until 98% of the time.
* Uniform: n for some prompts and n + 1 for the others, so that the coverage is met exactly.
* DART: the cheapest of all settings on a grid of quotas and caps (`max_n_trials`), for both its
  rules, again met exactly by interpolation between neighbouring caps. *published*: as its code does
  it, with rounds over the unfinished prompts until 16,384 samples are together, and verdicts only
  then. *ideal*: with a verdict after each sample, which no batched engine could do.
* bound: the same stopping rule with the true spread of the rates in place of a learnt one, and a
  verdict after each sample. No rule that knows as little of a single prompt does better on average,
  as far as new ways depend on counts alone.
"""

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rate_model import MEASURED, MIXES, PATHS, TARGET, Mix, World, drive, make, recorded

from rft.allocators import _beliefs, _stopping
from rft.allocators.adaptive import adaptive
from rft.allocators.budget import budget
from rft.allocators.uniform import uniform
from rft.tallies import Board

BATCH = 2**14
"""DART's `save_gen_path_bs`."""


def at_coverage(points: list[tuple[float, int]], coverage: float) -> float:
    """Tokens at a coverage, on a line between neighbouring settings."""
    covers, tokens = (np.array(x, dtype=float) for x in zip(*points))
    if not covers[0] <= coverage <= covers[-1]:
        return math.inf
    return float(np.interp(coverage, covers, tokens))


def uniform_points(world: World) -> list[tuple[float, int]]:
    covers = np.minimum(world.d, TARGET).mean(axis=0)
    return [(float(c), int(t)) for c, t in zip(covers, world.t.sum(axis=0))]


CAPS = sorted({round(4 * 2 ** (i / 4)) for i in range(33)})
QUOTAS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48)


def dart(world: World, coverage: float, published: bool) -> tuple[float, str]:
    """Fewest tokens of DART's rules for a coverage, and the setting."""
    best = (math.inf, "none reaches it")
    for rule in ("uniform", "prop2diff"):
        for quota in QUOTAS:
            wanted_P = np.full(len(world.c), quota)
            begin = 0
            if rule == "prop2diff":
                begin = 8
                wanted_P = np.maximum(1, np.rint(quota * (1 - world.c[:, 8] / 8))).astype(int)
            enough_PN = world.c >= wanted_P[:, None]
            enough_P = np.where(enough_PN[:, -1], enough_PN.argmax(axis=1), world.deep)
            points: list[tuple[float, int]] = []
            for cap in (cap for cap in CAPS if begin <= cap <= world.deep):
                if published:
                    n_P = _in_batches(world.c, wanted_P, begin, cap)
                else:
                    n_P = np.clip(enough_P, begin, cap)
                points.append(world.outcome(n_P))
                if points[-1][0] >= coverage:
                    # The first may be above it already; then it is as cheap as this rule gets.
                    tokens = at_coverage(points[-2:], coverage) if points[1:] else points[0][1]
                    best = min(best, (tokens, f"{rule} {quota}, at most {cap}"))
                    break
    return best


def _in_batches(c: Any, wanted_P: Any, begin: int, cap: int) -> Any:
    """Samples of each prompt as DART's code draws them: (P,)."""
    rows = np.arange(len(c))
    n_P = np.full(len(c), begin)
    while True:
        (open_,) = np.nonzero((n_P < cap) & (c[rows, n_P] < wanted_P))
        if not len(open_):
            return n_P
        left = BATCH
        while left > 0 and len(open_):
            taken = open_[:left]
            n_P[taken] += 1
            left -= len(taken)
            open_ = open_[n_P[open_] < cap]


def bound(mix: Mix, world: World, coverage: float) -> float:
    """Tokens of the stopping rule with true beliefs and no delay, at that coverage."""
    a, b = mix.shape
    horizon = world.right.shape[1]
    logits = _beliefs._LOGITS
    density = np.exp(a * np.log(_beliefs.RATES_G[1:]) + b * np.log1p(-_beliefs.RATES_G[1:]))
    weights = np.concatenate([[density[0] / a], density * (logits[1] - logits[0])])
    mean_right, mean_wrong, limit, loops = mix.tokens
    wrong = (1 - loops) * mean_wrong + loops * limit
    rate = a / (a + b)
    unit = rate * mean_right + (1 - rate) * wrong
    new = true_new(mix, horizon)
    right = _beliefs._posterior(weights / weights.sum(), horizon + 1, len(new))
    beliefs = _beliefs.Beliefs(new, right, mean_right / unit, wrong / unit)
    low, high = math.log(2.0), math.log(3000.0)
    points = []
    for _ in range(9):
        middle = (low + high) / 2
        plan = _stopping.plan(beliefs, math.exp(middle), 1.0, TARGET, TARGET, horizon)
        points.append(world.outcome(_follow(world, plan)))
        low, high = (middle, high) if points[-1][0] < coverage else (low, middle)
    points.sort()
    return at_coverage(points, coverage)


def _follow(world: World, plan: _stopping.Plan) -> NDArray[Any]:
    go = np.frombuffer(plan.depth, dtype=np.uint8).reshape(
        plan.horizon + 1, plan.most + 1, TARGET, -1
    )[..., 0]
    n_P = np.zeros(len(world.right), dtype=int)
    open_ = np.arange(len(n_P))
    while len(open_):
        n = n_P[open_]
        c, d = world.c[open_, n], world.d[open_, n]
        on = (d < TARGET) & (c <= plan.most) & (n < plan.horizon)
        on &= go[n, np.minimum(c, plan.most), np.minimum(d, TARGET - 1)] > 0
        open_ = open_[on]
        n_P[open_] += 1
    return n_P


def true_new(mix: Mix, horizon: int) -> NDArray[Any]:
    """Probability that a right draw is a new way, by c and d, of the mix's own process."""
    table = np.ones((min(horizon, 511) + 1, TARGET))
    if mix.ways is None:
        return table
    median, spread, discount = mix.ways
    points, weights = np.polynomial.hermite_e.hermegauss(61)
    strength = median * np.exp(spread * points)[:, None]
    state = np.zeros((len(points), TARGET + 1))
    state[:, 0] = weights / weights.sum()
    d = np.arange(TARGET)
    for c in range(len(table)):
        new = (strength + discount * (d + 1)) / (strength + c + 1)
        here = state[:, :-1]
        table[c] = (here * new).sum(axis=0) / np.maximum(here.sum(axis=0), 1e-300)
        up = here * new
        state[:, :-1] -= up
        state[:, 1:] += up
    return table


def compare(
    world: World, prices: Sequence[float], slots: int, mix: Mix | None = None
) -> list[dict[str, Any]]:
    """One row for each price."""
    flat = uniform_points(world)
    even = drive(world, uniform, 16, slots)
    rows = []
    for price in prices:
        run = drive(world, partial(adaptive, target=TARGET, price=price), world.deep, slots)
        published, setting = dart(world, run.coverage, True)
        ideal, _ = dart(world, run.coverage, False)
        covers = [cover for cover, _ in flat]
        rows.append(
            {
                "coverage": run.coverage,
                "n": float(np.interp(run.coverage, covers, range(len(covers)))),
                "draws": run.draws / len(world.right),
                "uniform": run.tokens / at_coverage(flat, run.coverage),
                "dart": run.tokens / published,
                "ideal": run.tokens / ideal,
                "occupancy": run.occupancy,
                "speed": run.tokens / run.ticks / (even.tokens / even.ticks),
                "setting": setting,
            }
        )
        if mix:
            rows[-1]["bound"] = bound(mix, world, run.coverage) / at_coverage(flat, run.coverage)
        if price == prices[-1]:
            rule = partial(budget, tokens=run.tokens, target=TARGET)
            given = drive(world, rule, world.deep, slots)
            rows[-1]["budget"] = given.tokens / at_coverage(flat, given.coverage)
            rows[-1]["its occupancy"] = given.occupancy
            rows[-1]["overspent"] = given.tokens / run.tokens - 1
        print(f"  price {price:g}: {json.dumps(rows[-1])}", file=sys.stderr)
    return rows


def show_mixes(names: list[str]) -> None:
    """Published figures beside the model's."""
    for name in names:
        mix = MIXES[name]
        world = make(mix, 99, 20_000, 256)
        a, b = mix.shape
        told = [
            f"pass@{k} {value:.3f} ({1 - _all_wrong(a, b, k):.3f})" for k, value in mix.published
        ]
        if mix.ways == MEASURED:
            told += [f"paths@{k} {v} ({1 + world.d[:, k].mean():.2f})" for k, v in PATHS]
        print(f"{name:<12} {mix.source}; published (modelled): {', '.join(told)}")
    print()


def _all_wrong(a: float, b: float, k: int) -> float:
    return math.exp(
        math.lgamma(b + k) - math.lgamma(b) + math.lgamma(a + b) - math.lgamma(a + b + k)
    )


COLUMNS = {
    "uniform": "tokens of adaptive / of uniform",
    "dart": "/ of DART as published",
    "ideal": "/ of DART with a verdict after each sample",
    "bound": "the bound / of uniform",
    "occupancy": "adaptive",
    "speed": "tokens a tick of adaptive / of uniform, whole run",
    "budget": "tokens of budget / of uniform, at the higher price's tokens",
    "its occupancy": "budget's",
    "overspent": "of the budget",
}


def show(name: str, price: float, rows: list[dict[str, Any]]) -> None:
    def cell(key: str) -> str:
        values = [row[key] for row in rows if key in row]
        if not values:
            return " " * 14
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):7.3f} ±{spread:.3f}"

    mean = {key: statistics.mean(row[key] for row in rows) for key in ("coverage", "n", "draws")}
    print(
        f"{name:<12}{price:5g}{mean['coverage']:7.2f}{mean['n']:7.1f}{mean['draws']:7.1f}  "
        + " ".join(cell(key) for key in COLUMNS)
        + f"  {rows[0]['setting']}",
        flush=True,
    )


def requests(count: int, rule: str) -> dict[str, float]:
    """Draws about `count` samples with allocator and board alone: an engine that is a queue.
    Seconds are of the processor."""
    draws_each = {"uniform": 10, "adaptive": 10.7}[rule]
    prompts = int(count / draws_each)
    rates = np.random.default_rng(1).beta(0.592, 0.604, prompts).tolist()
    before = _peak()
    board = Board(map(str, range(prompts)), 10 if rule == "uniform" else 512)
    choices = (uniform if rule == "uniform" else partial(adaptive, price=12))(board)
    dice = random.Random(2)
    running: deque[tuple[int, int, int, bool]] = deque()
    drawn, asking = 0, 0.0
    clock = time.process_time
    begun = clock()
    ended = False
    while running or not ended:
        while not ended and len(running) < 1024:
            at = clock()
            tally = next(choices, False)
            asking += clock() - at
            if tally is None:
                break
            if tally is False:
                ended = True
                break
            index = board.take(tally)
            place = int(tally.prompt_id)
            running.append((place, index, drawn & 127, dice.random() < rates[place]))
            drawn += 1
        # Out of order, as short ones finish first.
        if running:
            if dice.random() < 0.3:
                running.rotate(-1)
            place, index, tokens, hit = running.popleft()
            board.tokens += 100 + tokens
            board.judge(str(place), index, 100 + tokens, index if hit else None)
    took = clock() - begun
    return {
        "requests": drawn,
        "seconds": took,
        "allocator": asking,
        "mb": _peak() - before,
        "peak": _peak(),
    }


def _peak() -> float:
    """MB of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scaling(counts: list[int]) -> None:
    """Each in a process of its own, so that its peak is its own."""
    for rule in ("uniform", "adaptive"):
        rows = []
        for count in counts:
            done = subprocess.run(
                [sys.executable, __file__, "--child", rule, "--requests", str(count)],
                capture_output=True,
                text=True,
                check=True,
            )
            row = json.loads(done.stdout)
            rows.append(row)
            print(
                f"{rule:<10}{row['requests']:12,} requests {row['seconds']:8.1f} s "
                f"{row['requests'] / row['seconds']:10,.0f}/s; allocator alone "
                f"{row['requests'] / row['allocator']:10,.0f}/s; {row['mb']:8.1f} MB added, "
                f"peak {row['peak']:.0f} MB",
                flush=True,
            )
        if len(rows) > 1:
            first, last = rows[0], rows[-1]
            wider = math.log(last["requests"] / first["requests"])
            for key in ("seconds", "mb"):
                print(f"{rule:<10}{key}: exponent {math.log(last[key] / first[key]) / wider:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mix", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a recorded pool in place of the mixes")
    parser.add_argument("--price", type=float, nargs="+", default=[8.0, 24.0], help="with --run")
    parser.add_argument("--requests", type=int, nargs="+", help="scaling instead of comparing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(requests(args.requests[0], args.child)))
        return
    if args.requests:
        scaling(args.requests)
        return
    if not args.run:
        show_mixes(args.mix)
    for key, meaning in COLUMNS.items():
        print(f"{key}: {meaning}")
    print(f"\n{'mix':<12}price  cover      n  draws  " + " ".join(f"{k:>14}" for k in COLUMNS))
    if args.run:
        for price, row in zip(args.price, compare(recorded(args.run), args.price, slots=64)):
            show("recorded", price, [row])
        return
    for name in args.mix:
        mix = MIXES[name]
        runs = []
        for seed in range(args.seeds):
            runs.append(compare(make(mix, seed), mix.prices, mix.slots, mix))
        for price, rows in zip(mix.prices, zip(*runs)):
            show(name, price, list(rows))


if __name__ == "__main__":
    main()
