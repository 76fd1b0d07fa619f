"""The comparison as plain data: what comparison.json holds, and what every page shows.

The headline compares one arm with the baseline. It is chosen by name and place in the experiment
file, never by its result: the arm called `rft`, else the last arm that trains on samples, else the
last one. Choosing the arm that came out best would make its p-value untrue.
"""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np

from rft import stats
from rft.config_inference import NAMES
from rft.report.load import STAGES, ArmRun
from rft.stats import Interval, Paired

METHODS = {
    "accuracy": "mean over problems of the share of samples that are correct; unknown and "
    "cut-off answers count as not correct",
    "interval": "percentile bootstrap over problems; Wilson's interval where each problem counts "
    "as 0 or 1; `no variation` where every problem has the same value, other than 0 or 1: the mean may "
    "be off by as much as a group of different problems could move it, if that group is too small to "
    "have appeared in this sample",
    "difference": "arm minus baseline, paired by problem, with a percentile bootstrap over problems",
    "p": "two-sided sign-flip permutation test on per-problem differences; with one sample a "
    "problem it equals the exact McNemar test; not adjusted for the number of comparisons",
    "pooled": "each problem's value is averaged over seeds first: interval and p treat the "
    "trained models as given, and the spread over seeds is the standard deviation beside them",
    "formats": "each number format minus the arm's first, paired by problem as arms are. weights_gb: what "
    "the sampler says its weights take, GiB; peak_gb: GiB of a GPU's memory where there is one, else of the "
    "sampling process since it began: libraries, loading and vLLM's key-value cache included; "
    "tokens_per_s: while sampling. Arms that one engine served share its figures",
    "pass_at_k": "unbiased (Chen et al. 2021, equation 1), mean over problems",
    "maj_at_k": "the most frequent answer of k drawn without replacement; ties split evenly, "
    "empty answers do not vote; exact where at most 1,000 choices of k exist, else 1,000 random ones",
}


def compare(job: dict[str, Any], runs: list[ArmRun]) -> dict[str, Any]:
    """comparison.json. Accuracies and differences are fractions, not percent."""
    level, resamples = job["level"], job["resamples"]
    arms = list(dict.fromkeys(run.arm for run in runs))
    baseline = job["baseline"] if job["baseline"] in arms else None
    headline = headline_arm(runs, baseline)
    pairs = [(arm, baseline) for arm in arms if baseline and arm != baseline]
    if baseline and headline:
        # The headline arm against its controls: did the filter and the samples matter?
        pairs += [(headline, arm) for arm in arms if arm not in (baseline, headline)]
    comparisons = []
    for arm, other in pairs:
        both = _by_seed(runs, arm, other)
        if len(both) > 1:
            comparisons += [_pair(arm, other, [one], level, resamples, seed) for seed, one in both]
        comparisons.append(_pair(arm, other, [one for _, one in both], level, resamples, None))
    every_n = np.concatenate([run.n_P for run in runs])
    return {
        "name": job["name"],
        "answer": "",
        "headline": {"arm": headline, "baseline": baseline},
        "level": level,
        "resamples": resamples,
        "problems": len(runs[0].problems),
        "samples_per_problem": {"smallest": int(every_n.min()), "largest": int(every_n.max())},
        "arms": [_one(run, job["k"], level, resamples) for run in runs],
        "pooled": {arm: _pooled([r for r in runs if r.arm == arm], job) for arm in arms},
        "comparisons": comparisons,
        "formats": _formats(runs, level, resamples),
        "methods": METHODS,
    }


def _formats(runs: list[ArmRun], level: float, resamples: int) -> list[dict[str, Any]]:
    """A row for each arm and number format, over its seeds; of an arm the first is the one that the
    others are compared with."""
    out = []
    for arm in dict.fromkeys(run.arm for run in runs):
        # zip: of each format its seeds.
        each = list(zip(*(run.formats for run in runs if run.arm == arm)))
        names = [NAMES.get(one[0].dtype, one[0].dtype) for one in each]
        for name, mine in zip(names, each):
            if name == names[0] and mine is not each[0]:
                continue  # what `auto` is here was asked for by name as well
            both = list(zip(mine, each[0]))
            pair = _pair(name, names[0], both, level, resamples, None)
            mean_P = np.mean([run.accuracy_P for run in mine], axis=0)
            engines = [run.manifests["eval_sample"].get("engine", {}) for run in mine]
            peaks = [one.get("peak_gpu_gb", one.get("peak_rss_gb")) for one in engines]
            out.append(
                {
                    "arm": arm,
                    "format": name,
                    "use": mine[0].use,
                    "accuracy": _interval(stats.mean_interval(mean_P, level, resamples)),
                    "pair": pair if mine is not each[0] else None,
                    "weights_gb": _known(max, [e.get("weights_gb") for e in engines]),
                    "peak_gb": _known(max, peaks),
                    "tokens_per_s": _known(fmean, [e.get("tokens_per_s") for e in engines]),
                }
            )
    return out


def headline_arm(runs: list[ArmRun], baseline: str | None) -> str | None:
    """The arm whose comparison with the baseline is the answer; see the top of this file."""
    others = [run for run in runs if run.arm != baseline]
    if not others:
        return None
    if any(run.arm == "rft" for run in others):
        return "rft"
    sampled = [run.arm for run in others if run.pools]
    return sampled[-1] if sampled else others[-1].arm


def find(comparison: dict[str, Any], arm: str, other: str) -> dict[str, Any]:
    """The pooled comparison of two arms."""
    found: dict[str, Any] = next(
        c
        for c in comparison["comparisons"]
        if (c["arm"], c["baseline"], c["seed"]) == (arm, other, None)
    )
    return found


def is_shown(pair: dict[str, Any], level: float) -> bool:
    """Whether a difference is shown: the interval leaves out 0, and the test agrees."""
    return bool((pair["low"] > 0 or pair["high"] < 0) and pair["p"] <= 1 - level)


def _by_seed(runs: list[ArmRun], arm: str, other: str) -> list[tuple[int, tuple[ArmRun, ArmRun]]]:
    found = {(run.arm, run.seed): run for run in runs}
    seeds = [run.seed for run in runs if run.arm == arm and (other, run.seed) in found]
    return [(seed, (found[arm, seed], found[other, seed])) for seed in seeds]


def _pair(
    arm: str,
    other: str,
    both: list[tuple[ArmRun, ArmRun]],
    level: float,
    resamples: int,
    seed: int | None,
) -> dict[str, Any]:
    got: Paired = stats.compare(
        [(a.correct_P, a.n_P) for a, _ in both],
        [(b.correct_P, b.n_P) for _, b in both],
        level,
        resamples,
    )
    by_seed = [float(a.accuracy_P.mean() - b.accuracy_P.mean()) for a, b in both]
    return {
        "arm": arm,
        "baseline": other,
        "seed": seed,
        "seeds": [a.seed for a, _ in both],
        "difference": got.difference.value,
        "low": got.difference.low,
        "high": got.difference.high,
        "method": got.difference.method,
        "p": got.p,
        "p_method": got.p_method,
        "wins": got.wins,
        "losses": got.losses,
        "ties": got.ties,
        "problems": got.problems,
        "smallest_n": int(min(r.n_P.min() for pair in both for r in pair)),
        "seed_differences": by_seed,
        "seed_spread": stats.spread(by_seed),
    }


def _one(run: ArmRun, ks: list[int], level: float, resamples: int) -> dict[str, Any]:
    samples = int(run.n_P.sum())
    tokens = sum(p.tokens for p in run.problems)
    # A scorer that reads no answer gives majority voting nothing to count.
    readable = all(a for p in run.problems for a, hit in zip(p.answers, p.hits) if hit)
    usable = [k for k in ks if k <= run.n_P.min()]
    passed = {k: stats.pass_at_k(run.n_P, run.correct_P, k) for k in usable}
    voted = {
        k: np.array([stats.maj_at_k(p.answers, p.hits, k) for p in run.problems])
        for k in (usable if readable else ())
    }
    select = run.manifests.get("select", {})
    return {
        "arm": run.arm,
        "seed": run.seed,
        "accuracy": _interval(stats.mean_interval(run.accuracy_P, level, resamples)),
        "pass_at_k": {
            str(k): _interval(stats.mean_interval(v, level, resamples)) for k, v in passed.items()
        },
        "maj_at_k": {
            str(k): _interval(stats.mean_interval(v, level, resamples)) for k, v in voted.items()
        },
        "samples": samples,
        "unknown": sum(p.unknown for p in run.problems),
        "truncated": sum(p.truncated for p in run.problems),
        "tokens": tokens,
        "tokens_per_sample": tokens / samples,
        "train_rows": select.get("rows") if "train" in run.folders else None,
        "train_rows_sampled": select.get("sampled") if "train" in run.folders else None,
        "steps": run.steps,
        "seconds": {s: told for s in STAGES if (told := run.seconds(s)) is not None},
    }


def _pooled(runs: list[ArmRun], job: dict[str, Any]) -> dict[str, Any]:
    """One arm over its seeds."""
    mean_P = np.mean([run.accuracy_P for run in runs], axis=0)
    by_seed = [float(run.accuracy_P.mean()) for run in runs]
    return {
        "accuracy": _interval(stats.mean_interval(mean_P, job["level"], job["resamples"])),
        "seed_accuracies": by_seed,
        "seed_spread": stats.spread(by_seed),
    }


def _known(choose: Callable[[list[float]], float], told: list[float | None]) -> float | None:
    """Of what is known; None where nothing is: all samples were there already, and no engine ran."""
    known = [value for value in told if value]
    return choose(known) if known else None


def _interval(got: Interval) -> dict[str, Any]:
    return {"value": got.value, "low": got.low, "high": got.high, "method": got.method}
