"""How varied an arm's training answers are, beside what it gained, and how much it learnt by heart.

Rejection sampling is said to help because a problem is seen solved in several ways. So: different
ways a problem, their entropy, and how alike the words of a problem's answers are; then the gap between
accuracy on problems that were trained on and on held-out ones (`eval.train_problems`). With a handful
of arms a relation among them is an observation, never a proof.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rft import rows, stats
from rft.overlap import words
from rft.report.compare import find
from rft.report.load import ArmRun, pieces
from rft.report.settings import Settings
from rft.tallies import KEYS, Key
from rft.types import Prompt, TrainRow, digest

MOST_PROMPTS = 2000
"""Problems whose answers are read; of more of them as many are chosen by a hash of their ids."""
MOST_ANSWERS = 8
"""Answers of a problem whose words are compared, pair by pair."""
GRAM = 3
"""Words in a row that two answers are compared by."""
FEW_ARMS = 20
"""Below it a relation among arms is told with a caveat."""


def gather(
    settings: dict[str, Settings], runs: list[ArmRun], comparison: dict[str, Any]
) -> dict[str, Any]:
    """comparison.json's `diversity`: a row for each arm that trains, and how they go together."""
    out = []
    baseline = comparison["headline"]["baseline"]
    for arm in comparison["pooled"]:
        mine = [run for run in runs if run.arm == arm]
        trained = [run for run in pieces(mine) if {"select", "prompts"} <= run.folders.keys()]
        distinct = settings.get(arm.partition("@")[0], {}).get("sample", {}).get("distinct")
        way = KEYS["text" if distinct in ("text", "any") else "equations"]
        gap = _gap(mine, comparison["level"])
        if not trained and gap is None:
            continue
        level_with = dict.fromkeys(("difference", "low", "high"), 0.0)
        pair = (
            level_with if arm == baseline else find(comparison, arm, baseline) if baseline else None
        )
        out.append(
            {
                "arm": arm,
                **_mean([measure(run, way) for run in trained]),
                "gain": pair and {k: pair[k] for k in ("difference", "low", "high")},
                "seen": gap and gap[0],
                "gap": gap and gap[1],
            }
        )
    ways = [one for one in out if one.get("ways")]
    return {
        "arms": out,
        "ways_and_gain": _together(
            [(one["ways"], one["gain"]["difference"]) for one in ways if one["gain"]]
        ),
        "ways_and_gap": _together(
            [(one["ways"], one["gap"]["value"]) for one in ways if one["gap"]]
        ),
    }


def _together(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    found = stats.rank_correlation([a for a, _ in pairs], [b for _, b in pairs])
    return {"arms": len(pairs), "spearman": found[0], "p": found[1]} if found else None


def measure(run: ArmRun, way: Key) -> dict[str, float | None]:
    """Figures of the answers that one arm and seed was trained on, references among them.

    way: key of a text by which two answers are alike. `ways`: different ones a problem, over problems
    with an answer. `entropy`: of a problem's ways, bits, mean over problems. `alike`: mean Jaccard
    similarity of the word n-grams of two answers to one problem, mean over problems with two or more;
    None where no problem has. `covered`: share of the training problems with an answer.
    """
    columns = ["id", "prompt_id", "is_reference", "weight"]
    by_prompt: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for row in rows.read(run.folders["select"] / "train", TrainRow, columns):
        if row.weight >= 0:
            by_prompt[row.prompt_id].append((row.id, row.is_reference))
    answers = sum(map(len, by_prompt.values()))
    problems = len(rows.ids(run.folders["prompts"] / "train"))
    looked_at = sorted(by_prompt, key=lambda id: digest("diversity", id))[:MOST_PROMPTS]
    texts = _texts(run, {id: by_prompt[id] for id in looked_at})
    counts = [Counter(map(way, found)) for found in texts if found]
    alike = [one for one in map(_alike, texts) if one is not None]
    return {
        "answers": answers,
        "covered": len(by_prompt) / problems if problems else None,
        "per_problem": answers / len(by_prompt) if by_prompt else None,
        "ways": fmean(map(len, counts)) if counts else None,
        "entropy": fmean(map(_entropy, counts)) if counts else None,
        "alike": fmean(alike) if alike else None,
    }


def _texts(run: ArmRun, wanted: dict[str, list[tuple[str, bool]]]) -> list[list[str]]:
    """The answers of each wanted problem: samples from the pools, references from the data."""
    ids = pa.array([id for found in wanted.values() for id, is_reference in found if not is_reference], pa.string())  # fmt: skip
    drawn: dict[str, str] = {}
    for pool in run.pools:
        for batch in rows.batches(pool.sample, ["id", "text"]):
            kept = batch.filter(pc.is_in(batch.column("id"), value_set=ids))
            drawn.update(zip(kept.column("id").to_pylist(), kept.column("text").to_pylist()))
    solved = {
        p.id: p.solution
        for p in rows.read(run.folders["prompts"] / "train", Prompt, ["id", "solution"])
        if p.id in wanted
    }
    return [
        [
            text
            for id, is_reference in found
            if (text := solved.get(prompt_id) if is_reference else drawn.get(id)) is not None
        ]
        for prompt_id, found in wanted.items()
    ]


def _entropy(counts: Counter[int]) -> float:
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values()) + 0.0


def _alike(texts: Sequence[str]) -> float | None:
    """Mean Jaccard similarity of two of the texts; None where there is no pair."""
    grams = []
    for text in texts[:MOST_ANSWERS]:
        found = words(text)
        size = min(GRAM, len(found)) or 1
        grams.append({tuple(found[i : i + size]) for i in range(len(found) - size + 1)})
    pairs = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(grams, 2)]
    return fmean(pairs) if pairs else None


def _mean(seeds: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Each figure's mean over the seeds that have it."""
    out: dict[str, float | None] = {}
    for key in seeds[0] if seeds else ():
        known = [value for one in seeds if (value := one[key]) is not None]
        out[key] = fmean(known) if known else None
    return out


def _gap(runs: list[ArmRun], level: float) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Accuracy on training problems, and how much higher it is than on held-out ones: other problems,
    so the two are independent (`stats.apart`)."""
    seen = [run.seen for run in runs if run.seen is not None]
    if len(seen) < len(runs):
        return None
    ids = {tuple(p.prompt_id for p in one.problems) for one in seen}
    if len(ids) > 1:
        return None  # seeds that were asked about different problems cannot be averaged by problem
    there = stats.mean_interval(np.mean([one.accuracy_P for one in seen], axis=0), level)
    here = stats.mean_interval(np.mean([run.accuracy_P for run in runs], axis=0), level)
    told = stats.apart(there, here)
    return {**_ends(there), "problems": len(seen[0].problems)}, _ends(told)


def _ends(got: stats.Interval) -> dict[str, float]:
    return {"value": got.value, "low": got.low, "high": got.high}
