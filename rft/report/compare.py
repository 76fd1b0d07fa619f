"""The comparison as plain data: what comparison.json holds, and what every page shows.

The headline compares one arm with the baseline. It is chosen by name and place in the experiment
file, never by its result: the arm called `rft`, else the last arm that trains on samples, else the
last one. Choosing the arm that came out best would make its p-value untrue.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from rft import paired, power, stats
from rft.config_inference import NAMES
from rft.report.harness import TaskRuns
from rft.report.load import STAGES, ArmRun
from rft.stats import Interval

POWER = 0.8
"""How often an effect of the least detectable size would be shown."""

METHODS = {
    "accuracy": "mean over problems of the share of samples that are correct; unknown and "
    "cut-off answers count as not correct",
    "interval": "Wilson's score interval, with the effective number of problems (Korn and Graubard "
    "1998) where a problem's value is not just 0 or 1; `no variation` where every problem has the same "
    "value, other than 0 or 1: the mean may be off by as much as a group of different problems could "
    "move it, if that group is too small to have appeared in this sample",
    "difference": "arm minus baseline, paired by problem; Tango's score interval (1998) with one sample "
    "a problem, else a t-interval corrected for skewness (Hall 1992); bootstrap, over problems and seeds, "
    "is a check",
    "p": "two-sided sign-flip permutation test on per-problem differences, as mid-p (with one sample "
    "a problem McNemar's); p_exact is the exact test, which errs less often than it says",
    "p_holm": "Holm's adjustment (1979) among all arms against the baseline, and among the headline "
    "arm's controls; joint_low and joint_high hold for all of these at once (single-step max-t)",
    "pooled": "each problem's value is averaged over seeds first: interval and p treat the "
    "trained models as given, and the spread over seeds is the standard deviation beside them",
    "over_seeds": "for other training seeds as well: problems and seeds as crossed random effects, t "
    "with Satterthwaite's degrees of freedom (1946); with 3 seeds rough",
    "power": f"least true difference shown in {POWER:.0%} of such experiments (Bloom 1995), and what it "
    "would take for one point; variance: components by the method of moments",
    "equivalence": "two one-sided tests (Schuirmann 1987) of compare.margin, at the same level",
    "formats": "each number format minus the arm's first, paired by problem as arms are. weights_gb: what "
    "the sampler says its weights take, GiB; peak_gb: GiB of a GPU's memory where there is one, else of the "
    "sampling process since it began: libraries, loading and vLLM's key-value cache included; "
    "tokens_per_s: while sampling. Arms that one engine served share its figures",
    "harness": "lm-evaluation-harness's value of each problem, from 0 to 1, by the metric and filter that are "
    "named; compared as arms are, each task a family of its own; a group's problems together, each counted once",
    "pass_at_k": "unbiased (Chen et al. 2021, equation 1), mean over problems",
    "maj_at_k": "the most frequent answer of k drawn without replacement; ties split evenly, "
    "empty answers do not vote; exact where at most 1,000 choices of k exist, else 1,000 random ones",
    "claims": "the headline arm minus each control; shown where the interval leaves out 0 and p, Holm's where "
    "it is one of several, agrees",
    "rates": "answers cut off, or without a verdict: sign flips by problem, Holm's adjustment",
    "slices": "difficulty by quantiles of the other arms' accuracy, ties together; varies_p: permutation test "
    "of the spread of the groups' mean differences",
    "diversity": "ways: different sets of equations (or texts) among a problem's training answers; entropy "
    "of these, bits; alike: mean Jaccard similarity of their three-word pieces; at most 2,000 problems, "
    "8 answers of each; Spearman's correlation with an exact p over arms",
    "gap": "accuracy on training problems minus accuracy on held-out ones; Newcombe 1998, method 10",
    "cost": "seconds of the stages that made an arm, with those it needs of other arms; per_point: what it "
    "takes beyond the baseline by the points it gains, where a gain is shown",
    "best_of_k": "the sample with a scorer's highest value of k drawn without replacement; exact, ties "
    "split evenly",
}


def compare(
    job: dict[str, Any], runs: list[ArmRun], tasks: Sequence[TaskRuns] = ()
) -> dict[str, Any]:
    """comparison.json. tasks: of lm-evaluation-harness. Accuracies and differences are fractions, not percent."""
    level = job["level"]
    arms = list(dict.fromkeys(run.arm for run in runs))
    baseline = job["baseline"] if job["baseline"] in arms else None
    headline = job.get("headline") or headline_arm(runs, baseline)
    comparisons = _compared(runs, job, baseline, headline)
    every_n = np.concatenate([run.n_P for run in runs])
    return {
        "name": job["name"],
        "answer": "",
        "headline": {"arm": headline, "baseline": baseline},
        "level": level,
        "resamples": job["resamples"],
        "flags": job.get("flags", []),
        "notes": job.get("notes", []),
        "problems": len(runs[0].problems),
        "samples_per_problem": {"smallest": int(every_n.min()), "largest": int(every_n.max())},
        "arms": [_one(run, job["k"], level) for run in runs],
        "pooled": {arm: _pooled([r for r in runs if r.arm == arm], job) for arm in arms},
        "comparisons": comparisons,
        "formats": _formats(runs, job),
        "harness": [_task(task, job, baseline, headline) for task in tasks],
        "methods": METHODS,
    }


def _compared(
    runs: list[ArmRun], job: dict[str, Any], baseline: str | None, headline: str | None
) -> list[dict[str, Any]]:
    """Every arm against the baseline, then the headline arm against the others: for each seed, then
    pooled."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    pairs = [(arm, baseline) for arm in arms if baseline and arm != baseline]
    if baseline and headline:
        # The headline arm against its controls: did the filter and the samples matter?
        pairs += [(headline, arm) for arm in arms if arm not in (baseline, headline)]
    comparisons = []
    for arm, other in pairs:
        both = _by_seed(runs, arm, other)
        if len(both) > 1:
            comparisons += [_pair(arm, other, [one], job, seed) for seed, one in both]
        comparisons.append(_pair(arm, other, [one for _, one in both], job, None))
    for family in (
        [c for c in comparisons if c["seed"] is None and c["baseline"] == baseline],
        [c for c in comparisons if c["seed"] is None and c["baseline"] != baseline],
    ):
        _adjust(family, runs, job["level"])
    return comparisons


def _task(
    task: TaskRuns, job: dict[str, Any], baseline: str | None, headline: str | None
) -> dict[str, Any]:
    """A task of lm-evaluation-harness: the arms' means and differences, each task a family of its own."""
    runs = list(task.runs)
    comparisons = _compared(runs, job, baseline, headline) if runs else []
    if any(n > 1 for run in runs[:1] for n in run.n_P):
        for one in comparisons:
            one["power"] = None  # a value's denominator is no number of samples
    return {
        "task": task.task,
        "metric": task.metric,
        "tasks": list(task.tasks),
        "fault": task.fault,
        "problems": len(runs[0].problems) if runs else 0,
        "cut_prompts": task.cut_prompts,
        "pooled": {
            arm: _pooled([run for run in runs if run.arm == arm], job)
            for arm in dict.fromkeys(run.arm for run in runs)
        },
        "comparisons": comparisons,
    }


def _formats(runs: list[ArmRun], job: dict[str, Any]) -> list[dict[str, Any]]:
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
            pair = _pair(name, names[0], both, job, None)
            mean_P = np.mean([run.accuracy_P for run in mine], axis=0)
            engines = [run.manifests["eval_sample"].get("engine", {}) for run in mine]
            peaks = [one.get("peak_gpu_gb", one.get("peak_rss_gb")) for one in engines]
            out.append(
                {
                    "arm": arm,
                    "format": name,
                    "use": mine[0].use,
                    "accuracy": _interval(stats.mean_interval(mean_P, job["level"])),
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
    job: dict[str, Any],
    seed: int | None,
) -> dict[str, Any]:
    level, resamples = job["level"], job["resamples"]
    mine, theirs = _runs([a for a, _ in both]), _runs([b for _, b in both])
    got = paired.compare(mine, theirs, level, resamples)
    steps_SP, denominator = paired.steps(mine, theirs)
    values_SP = steps_SP / denominator
    over = paired.over_seeds(steps_SP, denominator, level)
    within = job["margin"] and paired.equivalence(values_SP.mean(axis=0), job["margin"], level)
    check = paired.bootstrap(values_SP, level, resamples)
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
        "p_exact": got.p_exact,
        "p_method": got.p_method,
        "bootstrap": {"low": check.low, "high": check.high},
        "wins": got.wins,
        "losses": got.losses,
        "ties": got.ties,
        "problems": got.problems,
        "smallest_n": int(min(r.n_P.min() for pair in both for r in pair)),
        "seed_differences": by_seed,
        "seed_spread": stats.spread(by_seed),
        "over_seeds": over and {**_interval(over.difference), "p": over.p, "df": over.df},
        "equivalence": asdict(within) if within else None,
        "power": _power(mine, theirs, level),
    }


def _runs(runs: list[ArmRun]) -> paired.Runs:
    return [(run.correct_P, run.n_P) for run in runs]


def _power(arm: paired.Runs, baseline: paired.Runs, level: float) -> dict[str, Any] | None:
    """What this pair could have shown; None where the arms differ on no problem, or there is one."""
    found = power.components(arm, baseline)
    if found is None or found.variance() <= 0:
        return None
    return {
        "power": POWER,
        "detectable": power.detectable(math.sqrt(found.variance()), level, POWER),
        "problems_for_one_point": power.problems_needed(found, 0.01, level, POWER),
        "samples_for_one_point": power.samples_needed(found, 0.01, level, POWER),
        "variance": {k: getattr(found, k) for k in ("problem", "seed", "interaction", "sample")},
        "shares": found.shares(),
    }


def _adjust(family: list[dict[str, Any]], runs: list[ArmRun], level: float) -> None:
    """Adds what holds for all comparisons of a family at once."""
    if not family:
        return
    differences_AP = np.array(
        [
            np.mean([a.accuracy_P - b.accuracy_P for _, (a, b) in _by_seed(runs, *key)], axis=0)
            for key in ((c["arm"], c["baseline"]) for c in family)
        ]
    )
    joint = paired.joint_level(differences_AP, level)
    adjusted = paired.holm([c["p"] for c in family])
    for pair, values_P, p in zip(family, differences_AP, adjusted):
        ends = paired.difference_interval(values_P, joint)
        pair |= {"family": len(family), "p_holm": p, "joint_low": ends.low, "joint_high": ends.high}


def _one(run: ArmRun, ks: list[int], level: float) -> dict[str, Any]:
    table, samples = run.columns, int(run.n_P.sum())
    total = {name: pc.sum(table[name]).as_py() for name in ("unknown", "truncated", "tokens")}
    hits, answers = (pc.list_flatten(table[name]) for name in ("hits", "answers"))
    # A scorer that reads no answer gives majority voting nothing to count.
    readable = (
        len(hits) == len(answers) == samples
        and not pc.any(pc.and_(hits, pc.equal(answers, "")), min_count=0).as_py()
    )
    # Where values are fractions, their denominators are no samples to choose from.
    usable = [k for k in ks if k <= run.n_P.min() and (k == 1 or len(hits) == samples)]
    passed = {k: stats.pass_at_k(run.n_P, run.correct_P, k) for k in usable}
    voted = {k: _voted(run, k) for k in (usable if readable else ())}
    return {
        "arm": run.arm,
        "seed": run.seed,
        "accuracy": _interval(stats.mean_interval(run.accuracy_P, level)),
        "pass_at_k": _by_k(passed, level),
        "maj_at_k": _by_k(voted, level),
        "best_of_k": {
            scorer: _by_k({k: _best(run, values, k) for k in usable}, level)
            for scorer, values in run.values.items()
        },
        "samples": samples,
        "unknown": total["unknown"],
        "truncated": total["truncated"] if run.counted else None,
        "tokens": total["tokens"] if run.counted else None,
        "tokens_per_sample": total["tokens"] / samples if run.counted else None,
        "train_rows": run.trained_on("rows"),
        "train_rows_sampled": run.trained_on("sampled"),
        "steps": run.steps,
        "seconds": {s: told for s in STAGES if (told := run.seconds(s)) is not None},
    }


def _voted(run: ArmRun, k: int) -> NDArray[np.float64]:
    """maj@k by problem."""
    if k == 1:
        return run.accuracy_P
    answers, hits = (run.columns[name].to_pylist() for name in ("answers", "hits"))
    return np.array([stats.maj_at_k(a, h, k) for a, h in zip(answers, hits)])


def _by_k(values: dict[int, NDArray[np.float64]], level: float) -> dict[str, Any]:
    return {str(k): _interval(stats.mean_interval(v, level)) for k, v in values.items()}


def _best(run: ArmRun, values: tuple[tuple[float, ...], ...], k: int) -> NDArray[np.float64]:
    """Best of k by problem, in groups of problems that have as many samples."""
    found_P = np.empty(len(run.problems))
    for n in np.unique(run.n_P):
        where = np.flatnonzero(run.n_P == n)
        hits_PN = run.columns["hits"].take(where).to_pylist()
        found_P[where] = stats.best_of_k([values[i] for i in where], hits_PN, k)
    return found_P


def _pooled(runs: list[ArmRun], job: dict[str, Any]) -> dict[str, Any]:
    """One arm over its seeds."""
    mean_P = np.mean([run.accuracy_P for run in runs], axis=0)
    by_seed = [float(run.accuracy_P.mean()) for run in runs]
    return {
        "accuracy": _interval(stats.mean_interval(mean_P, job["level"])),
        "seed_accuracies": by_seed,
        "seed_spread": stats.spread(by_seed),
    }


def _known(choose: Callable[[list[float]], float], told: list[float | None]) -> float | None:
    """Of what is known; None where nothing is: all samples were there already, and no engine ran."""
    known = [value for value in told if value]
    return choose(known) if known else None


def _interval(got: Interval) -> dict[str, Any]:
    return {"value": got.value, "low": got.low, "high": got.high, "method": got.method}
