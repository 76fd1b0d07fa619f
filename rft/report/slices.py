"""Accuracy by groups of held-out problems: how hard they are, and what they are about.

How hard a problem is must not be read off the arms that are compared: whichever arm was lucky on it
would sort it among the easy ones, and its gain there would be chance. So difficulty is the share of
the other arms' answers that are correct; only where there is no other arm do both take part.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rft import paired, rows, stats
from rft.report.load import ArmRun, pieces
from rft.report.verdicts import LABELS

QUANTILES = 4
MOST_KINDS = 12
"""Kinds of problems that have a row of their own; the rarest share one."""
_ORDERS = 1000
_MOST_PROBLEMS = 20_000
"""Above it the test of whether groups differ is left out: it would take longer than the rest."""

Floats = NDArray[np.float64]


def gather(runs: list[ArmRun], comparison: dict[str, Any]) -> dict[str, Any]:
    """comparison.json's `slices`: `difficulty` and `kind`, each with its groups or null."""
    kinds = _kinds(runs)
    return {
        "difficulty": _difficulty(runs, comparison),
        "kind": _by(kinds, runs, comparison) if kinds else None,
    }


def mean_P(runs: list[ArmRun], arm: str) -> Floats:
    """An arm's accuracy by problem, over its seeds."""
    return np.asarray(np.mean([run.accuracy_P for run in runs if run.arm == arm], axis=0))


def _difficulty(runs: list[ArmRun], comparison: dict[str, Any]) -> dict[str, Any] | None:
    compared = [arm for arm in comparison["headline"].values() if arm]
    others = [arm for arm in comparison["pooled"] if arm not in compared]
    told = others or compared
    rate_P = np.mean([mean_P(runs, arm) for arm in told], axis=0)
    groups = quantiles(rate_P, QUANTILES)
    if len(groups) < 2:
        return None
    names = np.empty(len(rate_P), dtype=object)
    spans = {}
    for i, members in enumerate(groups):
        name = f"{i + 1}"
        names[members] = name
        spans[name] = [float(rate_P[members].min()), float(rate_P[members].max())]
    found = _by(list(names), runs, comparison, list(spans))
    for group in found["groups"]:
        group["rate"] = spans[group["name"]]
    return {**found, "told_by": told, "compared_arms": not others}


def quantiles(values_P: Floats, count: int) -> list[NDArray[np.int64]]:
    """Problems in at most `count` groups of about one size, lowest values first. Equal values are never
    parted, so there may be fewer groups."""
    place = np.unique(values_P.round(12), return_inverse=True)[1]
    sizes = np.bincount(place)
    middle = (np.cumsum(sizes) - sizes / 2) / len(values_P)
    group_of_level = np.minimum((middle * count).astype(int), count - 1)
    return [
        np.flatnonzero(group_of_level[place] == group)
        for group in sorted(set(group_of_level.tolist()))
    ]


def _kinds(runs: list[ArmRun]) -> list[str] | None:
    """The label of each problem in the order of `ArmRun.problems`; None where there are none."""
    for name in LABELS:  # of verdicts made elsewhere
        for run in runs:
            if name in run.columns.column_names:
                return _common([one or "(no label)" for one in run.columns[name].to_pylist()])
    folders = {run.folders["prompts"] for run in pieces(runs) if "prompts" in run.folders}
    told: dict[str, str | None] = {}
    for folder in sorted(folders):
        for batch in rows.batches(folder / "eval", ["id", "kind"]):
            if batch.column("kind").null_count < len(batch):
                told.update(zip(batch.column("id").to_pylist(), batch.column("kind").to_pylist()))
    if not any(told.values()):
        return None
    ids = runs[0].columns["prompt_id"].to_pylist()
    return _common([told.get(id) or "(no label)" for id in ids])


def _common(labels: list[str]) -> list[str] | None:
    """The labels, the rarest as one; None where all have the same."""
    common = [name for name, _ in Counter(sorted(labels)).most_common()]
    if len(common) < 2:
        return None
    kept = set(common if len(common) <= MOST_KINDS else common[: MOST_KINDS - 1])
    return [name if name in kept else "(other)" for name in labels]


def _by(
    names: Sequence[str],
    runs: list[ArmRun],
    comparison: dict[str, Any],
    order: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The figures of each group of problems. names: of each problem its group."""
    level = comparison["level"]
    arm, baseline = comparison["headline"]["arm"], comparison["headline"]["baseline"]
    by_arm = {one: mean_P(runs, one) for one in comparison["pooled"]}
    difference_P = by_arm[arm] - by_arm[baseline] if arm and baseline else None
    counts = Counter(names)
    groups = []
    names_P = np.asarray(names)
    for name in order or [one for one, _ in sorted(counts.items(), key=lambda c: (-c[1], c[0]))]:
        mine = names_P == name
        row: dict[str, Any] = {"name": name, "problems": int(mine.sum()), "difference": None}
        row["arms"] = {one: _ends(stats.mean_interval(v[mine], level)) for one, v in by_arm.items()}
        if difference_P is not None:
            row["difference"] = _ends(paired.difference_interval(difference_P[mine], level))
        groups.append(row)
    varies = None if difference_P is None else _vary_p(difference_P, names_P)
    return {"groups": groups, "varies_p": varies}


def _vary_p(difference_P: Floats, names_P: NDArray[Any]) -> float | None:
    """Whether the difference is another in some group: the spread of the groups' means against that of
    groups made by chance (a permutation test: Fisher 1935; p by the rule of Phipson and Smyth 2010)."""
    problems = len(difference_P)
    if problems > _MOST_PROBLEMS:
        return None
    _, group_P = np.unique(names_P, return_inverse=True)
    sizes = np.bincount(group_P)

    def spread(values_P: Floats) -> float:
        sums = np.bincount(group_P, weights=values_P)
        return float((sums * sums / sizes).sum())

    rng = np.random.default_rng(0)
    seen = spread(difference_P)
    hits = sum(spread(rng.permutation(difference_P)) >= seen - 1e-12 for _ in range(_ORDERS))
    return (1 + hits) / (1 + _ORDERS)


def _ends(got: stats.Interval) -> dict[str, float]:
    return {"value": got.value, "low": got.low, "high": got.high}
