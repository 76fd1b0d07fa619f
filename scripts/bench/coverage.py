"""Do the report's intervals cover and its tests err as often as they say? Simulations, truth known.

    python scripts/bench/coverage.py                    # all tables, 2 processes, some 25 minutes
    python scripts/bench/coverage.py --only seeds --trials 1000
    python scripts/bench/coverage.py --only paired --each     # a line for every setting
    python scripts/bench/coverage.py --only cost        # a million verdicts: time and memory

Each problem's chance of a correct sample is logistic(m + a + b + c + e): how hard the problem is (a,
shared by the arms), what an arm is to it (b), what a training seed changes on it (c, standard
deviation 0.5), and how good the seed is altogether (e, the same for all problems). a + b has a standard
deviation of 2, which spreads chances as GSM8K's are spread: most are near 0 or 1. `corr` is the share of
a in that variance. m gives the wanted accuracy. Everything is drawn anew in each trial.

Tables (percent): paired, differences and tests for the trained models; seeds, for other seeds as well;
arms, four equal ones against a baseline; single, figures of one arm; gap, accuracy on other problems;
margin, non-inferiority and power; cost. A trial's draws come from its setting alone, so a table is the same each time.
"""

import argparse
import math
import resource
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rft import paired, power, stats

SPREAD, OWN = 2.0, 0.5
"""Standard deviations of a + b and of c, on the logistic scale."""
SIZES, ACCURACIES, CORRELATIONS = (50, 300, 1319), (0.03, 0.1, 0.5, 0.9), (0.0, 0.5, 0.95)
SAMPLES, SEEDS = (1, 4), (1, 3)
EFFECT = 0.05
FEW = 10
"""Settings with fewer discordant problems are told apart."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def logistic(x: Any) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, dtype=np.float64))))


def accuracy(middle: Any, what: Callable[[Any], Any] = lambda p: p) -> NDArray[np.float64]:
    """Mean over problems of what(chance), for one m or several."""
    chance = logistic(np.asarray(middle)[..., None] + math.hypot(SPREAD, OWN) * _NODES)
    return np.asarray(what(chance) @ _WEIGHTS / _WEIGHTS.sum())


def middle_of(wanted: float) -> float:
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if accuracy(middle) < wanted else (low, middle)
    return middle


def draw(
    rng: np.random.Generator, middles: list[float], problems: int, corr: float, n: int,
    seeds: int, seed_sd: float = 0.0,
) -> tuple[list[paired.Runs], NDArray[np.float64]]:  # fmt: skip
    """Of each arm its runs, and what each seed's model would score on all problems: (arms, seeds)."""
    hard_P = rng.standard_normal(problems) * SPREAD * math.sqrt(corr)
    shift_AS = rng.standard_normal((len(middles), seeds)) * seed_sd + np.array(middles)[:, None]
    own_AP = rng.standard_normal((len(middles), problems)) * SPREAD * math.sqrt(1 - corr)
    apart_ASP = rng.standard_normal((len(middles), seeds, problems)) * OWN
    chance_ASP = logistic(hard_P + own_AP[:, None] + shift_AS[..., None] + apart_ASP)
    correct_ASP, n_P = rng.binomial(n, chance_ASP), np.full(problems, n)
    return [[(c, n_P) for c in arm] for arm in correct_ASP], accuracy(shift_AS)


def holds(got: Any, truth: float) -> bool:
    return bool(got.low - 1e-9 <= truth <= got.high + 1e-9)


def one_paired(setting: tuple[Any, ...], trials: int) -> dict[str, float]:
    problems, wanted, corr, n, seeds = setting
    rng = np.random.default_rng(zlib.crc32(repr(setting).encode()))
    base, better = middle_of(wanted), middle_of(wanted + EFFECT)
    counts: dict[str, float] = defaultdict(float)
    for trial in range(trials):
        for name, mine in (("aa", base), ("effect", better)):
            (arm, other), truth_AS = draw(rng, [mine, base], problems, corr, n, seeds)
            truth = float((truth_AS[0] - truth_AS[1]).mean())
            steps_SP, denominator = paired.steps(arm, other)
            steps_P = steps_SP.sum(axis=0)
            values_P = steps_P / (denominator * seeds)
            got = paired.difference_interval(values_P)
            counts[f"cover {name}"] += holds(got, truth)
            if trial % 5 == 0:
                boot = paired.bootstrap(values_P[None], resamples=1000, seed=trial)
                counts[f"boot {name}"] += 5 * holds(boot, truth)
            p, exact, _ = paired.sign_flip_p(steps_P)
            counts[f"mid-p {name}"] += p <= 0.05
            counts[f"exact {name}"] += exact <= 0.05
            shown = p <= 0.05 and (got.low > 0 or got.high < 0)
            counts[f"shown {name}"] += shown
            counts["discordant"] += float(np.count_nonzero(steps_P)) / 200
    return {name: 100 * count / trials for name, count in counts.items()}


def one_seeds(setting: tuple[Any, ...], trials: int) -> dict[str, float]:
    """Coverage over seeds. setting: problems, accuracy, correlation, samples, seeds, spread over seeds."""
    problems, wanted, corr, n, seeds, points = setting
    rng = np.random.default_rng(zlib.crc32(repr(setting).encode()))
    base = middle_of(wanted)
    # Seeds so far apart that accuracies have about the wanted standard deviation, in points.
    slope = float(accuracy(base + 0.01) - accuracy(base - 0.01)) / 0.02
    counts: dict[str, float] = defaultdict(float)
    for trial in range(trials):
        (arm, other), _ = draw(rng, [base, base], problems, corr, n, seeds, points / 100 / slope)
        steps_SP, denominator = paired.steps(arm, other)
        over = paired.over_seeds(steps_SP, denominator)
        counts["cover"] += over is None or holds(over.difference, 0.0)
        counts["reject"] += over is not None and over.p <= 0.05
        values_SP = steps_SP / denominator
        counts["given models"] += holds(paired.difference_interval(values_SP.mean(axis=0)), 0.0)
        if trial % 5 == 0:
            boot = paired.bootstrap(values_SP, resamples=1000, seed=trial)
            counts["boot"] += 5 * holds(boot, 0.0)
    return {name: 100 * count / trials for name, count in counts.items()}


def one_arms(setting: tuple[Any, ...], trials: int) -> dict[str, float]:
    """Four arms as good as their baseline: how often is one found to differ?"""
    problems, wanted, corr, n = setting
    rng = np.random.default_rng(zlib.crc32(repr(setting).encode()))
    base = middle_of(wanted)
    counts: dict[str, float] = defaultdict(float)
    for trial in range(trials):
        (other, *arms), _ = draw(rng, [base] * 5, problems, corr, n, 1)
        pairs = [paired.steps(arm, other) for arm in arms]
        values_AP = np.array([steps_SP[0] / denominator for steps_SP, denominator in pairs])
        p_values = [paired.sign_flip_p(steps_SP[0])[0] for steps_SP, _ in pairs]
        counts["any p"] += min(p_values) <= 0.05
        counts["any Holm"] += min(paired.holm(p_values)) <= 0.05
        joint = paired.joint_level(values_AP, draws=10_000, seed=trial)
        counts["all joint"] += all(
            holds(paired.difference_interval(v, joint), 0.0) for v in values_AP
        )
        counts["all plain"] += all(holds(paired.difference_interval(v), 0.0) for v in values_AP)
    return {name: 100 * count / trials for name, count in counts.items()}


def one_single(setting: tuple[Any, ...], trials: int) -> dict[str, float]:
    """Accuracy, pass@2, maj@3 (two answers, so that its truth is a formula) and best of 2 by a scorer
    that gives right samples one more than wrong ones, give or take one."""
    problems, wanted, n = setting
    rng = np.random.default_rng(zlib.crc32(repr(setting).encode()))
    base, gap = middle_of(wanted), 0.5 * math.erfc(-0.5)  # P(N(1, 2) > 0)
    truth = {
        "accuracy": float(accuracy(base)),
        "pass@2": float(accuracy(base, lambda p: 1 - (1 - p) ** 2)),
        "maj@3": float(accuracy(base, lambda p: p**3 + 3 * p**2 * (1 - p))),
        "best of 2": float(accuracy(base, lambda p: p**2 + 2 * p * (1 - p) * gap)),
    }
    counts: dict[str, float] = defaultdict(float)
    # maj@3 of n samples depends on the number of right ones alone.
    voted = np.array(
        [stats.maj_at_k(["r"] * c + ["w"] * (n - c), [True] * c + [False] * (n - c), 3) for c in range(n + 1)]
        if n >= 3 else []
    )  # fmt: skip
    for _ in range(trials):
        chance_P = logistic(base + math.hypot(SPREAD, OWN) * rng.standard_normal(problems))
        hits_PN = rng.random((problems, n)) < chance_P[:, None]
        correct_P = hits_PN.sum(axis=1)
        values = {"accuracy": correct_P / n}
        if n >= 3:
            values["pass@2"] = stats.pass_at_k(n, correct_P, 2)
            values["maj@3"] = voted[correct_P]
            told_PN = hits_PN + rng.standard_normal(hits_PN.shape)
            values["best of 2"] = stats.best_of_k(told_PN, hits_PN, 2)
        for name, of_problems in values.items():
            counts[name] += holds(stats.mean_interval(of_problems), truth[name])
    return {name: 100 * count / trials for name, count in counts.items()}


def one_margin(setting: tuple[Any, ...], trials: int) -> dict[str, float]:
    """An arm that is worse by just the margin (5 points): how often is it called no worse? And one that is
    better by the least detectable effect, as told by experiments in which it is: how often is that shown?"""
    problems, wanted, corr, n = setting
    rng = np.random.default_rng(zlib.crc32(repr(setting).encode()))
    base, worse = middle_of(wanted), middle_of(wanted - EFFECT)
    counts: dict[str, float] = defaultdict(float)
    for _ in range(trials):
        (arm, other), _ = draw(rng, [worse, base], problems, corr, n, 1)
        steps_SP, denominator = paired.steps(arm, other)
        got = paired.equivalence(steps_SP[0] / denominator, EFFECT)
        counts["no worse, wrongly"] += got.p_no_worse <= 0.05
        counts["equivalent, wrongly"] += got.p_equivalent <= 0.05
    least = 0.0
    for _ in range(3):
        better, found = middle_of(min(wanted + least, 0.9999)), []
        for _ in range(200):
            (arm, other), _ = draw(rng, [better, base], problems, corr, n, 1)
            parts = power.components(arm, other)
            assert parts is not None
            found.append(power.detectable(math.sqrt(parts.variance())))
        least = float(np.mean(found))
    better = middle_of(min(wanted + least, 0.9999))
    for _ in range(trials):
        (arm, other), _ = draw(rng, [better, base], problems, corr, n, 1)
        counts["shown at MDE"] += paired.sign_flip_p(paired.steps(arm, other)[0][0])[0] <= 0.05
    return {"MDE, points": 100 * least, **{k: 100 * v / trials for k, v in counts.items()}}


def one_gap(setting: tuple[Any, ...], trials: int) -> dict[str, float]:
    """Accuracy on some problems minus that on others, of one arm: equal, and higher by `more` points."""
    problems, seen, wanted, n = setting
    rng = np.random.default_rng(zlib.crc32(repr(setting).encode()))
    counts: dict[str, float] = defaultdict(float)
    for name, more in (("cover, equal", 0.0), ("cover, +10", 0.1)):
        middles = middle_of(wanted), middle_of(wanted + more)
        for _ in range(trials):
            here, there = (
                rng.binomial(n, logistic(m + math.hypot(SPREAD, OWN) * rng.standard_normal(size)))
                for m, size in zip(middles, (problems, seen))
            )
            got = stats.apart(stats.mean_interval(there / n), stats.mean_interval(here / n))
            counts[name] += holds(got, more)
    return {name: 100 * count / trials for name, count in counts.items()}


TABLES: dict[
    str, tuple[Callable[..., dict[str, float]], tuple[str, ...], list[tuple[Any, ...]]]
] = {
    "paired": (
        one_paired,
        ("problems", "accuracy", "corr", "n", "seeds"),
        list(product(SIZES, ACCURACIES, CORRELATIONS, SAMPLES, SEEDS)),
    ),
    "seeds": (
        one_seeds,
        ("problems", "accuracy", "corr", "n", "seeds", "sd, points"),
        list(product(SIZES, (0.5,), (0.5, 0.95), SAMPLES, (3, 5), (0, 1, 3))),
    ),
    "arms": (
        one_arms,
        ("problems", "accuracy", "corr", "n"),
        list(product(SIZES, (0.1, 0.5), (0.5, 0.95), SAMPLES)),
    ),
    "single": (
        one_single,
        ("problems", "accuracy", "n"),
        list(product(SIZES, ACCURACIES, (1, 4))),
    ),
    "gap": (
        one_gap,
        ("held out", "seen", "accuracy", "n"),
        list(product((50, 300, 1319), (50, 200), (0.03, 0.1, 0.5), (1, 4))),
    ),
    "margin": (
        one_margin,
        ("problems", "accuracy", "corr", "n"),
        list(product((300, 1319), (0.1, 0.5, 0.9), (0.5, 0.95), SAMPLES)),
    ),
}


def show(headings: tuple[str, ...], told: list[tuple[tuple[Any, ...], dict[str, float]]]) -> None:
    columns = list(dict.fromkeys(name for _, row in told for name in row))
    print("  ".join([*(f"{h:>10}" for h in headings), *(f"{c:>11}" for c in columns)]))
    for setting, row in told:
        cells = [f"{row[c]:11.1f}" if c in row else " " * 11 for c in columns]
        print("  ".join([*(f"{s!s:>10}" for s in setting), *cells]))


def summary(told: list[tuple[tuple[Any, ...], dict[str, float]]]) -> None:
    """Least and most over accuracies and correlations, with few discordant problems kept apart."""
    groups: dict[tuple[Any, ...], list[dict[str, float]]] = defaultdict(list)
    for (problems, _, _, n, seeds), row in told:
        groups[problems, n, seeds, row["discordant"] < FEW].append(row)
    columns = (
        "cover aa",
        "cover effect",
        "boot aa",
        "boot effect",
        "mid-p aa",
        "exact aa",
        "shown aa",
    )
    print(
        f"{'problems':>8} {'n':>2} {'seeds':>5}  {'discordant':>12}", *(f"{c:>13}" for c in columns)
    )
    for (problems, n, seeds, few), found in sorted(groups.items(), key=lambda g: (g[0][3], g[0])):
        names = ("discordant", *columns)
        spans = [f"{min(r[c] for r in found):.1f} to {max(r[c] for r in found):.1f}" for c in names]
        start = f"{problems:8} {n:2} {seeds:5} {'<' if few else ' '}{spans[0]:>13}"
        print(start, *(f"{span:>13}" for span in spans[1:]))


def cost() -> None:
    """The report's comparison of a million verdicts, rows in memory."""
    from rft.report.compare import compare
    from rft.report.load import ArmRun
    from rft.types import ProblemRow

    for arms, problems, n, seeds in ((10, 100_000, 1, 1), (2, 500_000, 1, 1), (5, 16_667, 4, 3)):
        rng = np.random.default_rng(0)
        names = [f"{i:016x}" for i in range(problems)]
        runs = []
        for arm, seed in product(range(arms), range(seeds)):
            hits = (rng.random((problems, n)) < 0.5).tolist()
            rows = tuple(
                ProblemRow(name, n, sum(one), 0, 0, tuple("7" if hit else "3" for hit in one), tuple(one), 9)
                for name, one in zip(names, hits)
            )  # fmt: skip
            name = ("sft", "rft", *map(str, range(8)))[arm]
            manifest = {"eval_sample": {}}
            runs.append(ArmRun(name, seed, {}, manifest, rows, ()))
        job = {"name": "cost", "level": 0.95, "resamples": 10_000, "baseline": "sft", "margin": 0.01, "k": [1, n]}  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        compare(job, runs)
        took = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{arms} arms x {problems:,} problems x {n} samples x {seeds} seeds: {took:.1f} s, "
            f"peak {peak / 2**20:.2f} GiB, {before / 2**20:.2f} of it the rows"
        )
        del runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=[*TABLES, "cost"], nargs="*", default=[*TABLES, "cost"])
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument(
        "--each", action="store_true", help="a line for every setting, not a summary"
    )
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    for name in asked.only:
        if name == "cost":
            cost()
            continue
        one, headings, settings = TABLES[name]
        started = time.perf_counter()
        with ProcessPoolExecutor(asked.workers) as pool:
            found = list(pool.map(one, settings, [asked.trials] * len(settings)))
        told = list(zip(settings, found))
        print(f"\n{name}, {asked.trials:,} trials each, {time.perf_counter() - started:.0f} s")
        if name == "paired" and not asked.each:
            summary(told)
        else:
            show(headings, told)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
