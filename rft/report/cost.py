"""What each arm took to make, with all that it needs of other arms: tokens, hours, energy, money.

Hours are those that the stages' manifests tell. A stage that several arms share counts in full for
each of them, since each would need it alone; the total counts it once. Scoring that went on beside
sampling took no hours of its own. Energy and money follow from `compare.cost`, and are left out where
it gives no figures.
"""

import math
from pathlib import Path
from typing import Any

from rft.report.compare import find, is_shown
from rft.report.load import ArmRun, pieces
from rft.report.settings import Settings

MADE = ("sample", "score", "select", "train")
"""Stages that make an arm; the evaluation is told apart."""
EVALUATED = ("eval_sample", "eval_score", "eval")

_Stages = dict[Path, tuple[str, dict[str, Any]]]
"""Folder -> kind of stage and manifest."""


def gather(
    job: dict[str, Any],
    settings: dict[str, Settings],
    runs: list[ArmRun],
    comparison: dict[str, Any],
) -> dict[str, Any]:
    """comparison.json's `cost`. Figures are means over seeds; hours in seconds."""
    prices = ((job.get("config") or {}).get("compare") or {}).get("cost") or {}
    every: _Stages = {}
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        made = _made(run.arm, run.seed, settings, runs, set())
        evaluated = {
            one.folders[stage]: (stage, one.manifests[stage])
            for one in pieces([run])
            for stage in EVALUATED
            if stage in one.folders
        }
        every |= made | evaluated | _also(run)
        by_arm.setdefault(run.arm, []).append(_told(made, evaluated))
    arms = []
    for arm, seeds in by_arm.items():
        row: dict[str, Any] = {"arm": arm}
        for key in ("tokens_sampled", "tokens_trained", "seconds", "evaluation_seconds"):
            row[key] = _mean([one[key] for one in seeds])
        row["by_stage"] = {
            stage: _mean([one["by_stage"][stage] for one in seeds]) for stage in MADE
        }
        arms.append({**row, **_priced(row["seconds"], prices)})
    baseline = comparison["headline"]["baseline"]
    first = next((one for one in arms if one["arm"] == baseline), None)
    for row in arms:
        row["per_point"] = _per_point(row, first, comparison) if first else None
    if not every:
        return {}
    total = sum(float(told.get("seconds") or 0.0) for _, told in every.values())
    return {
        "arms": arms,
        "total": {"seconds": total, **_priced(total, prices)},
        "prices": {
            k: prices.get(k) for k in ("watts", "price_per_kwh", "price_per_hour", "currency")
        },
    }


def _made(
    arm: str, seed: int, settings: dict[str, Settings], runs: list[ArmRun], known: set[str]
) -> _Stages:
    """The stages that made an arm: its own, those of its earlier rounds, and of the arms whose policies
    it has sampled from."""
    known.add(arm)
    found: _Stages = {}
    for run in pieces([one for one in runs if (one.arm, one.seed) == (arm, seed)]):
        for pool in run.pools:
            found[pool.sample] = ("sample", pool.sample_manifest)
            found[pool.score] = ("score", pool.score_manifest)
        for stage in ("select", "train"):
            if stage in run.folders:
                found[run.folders[stage]] = (stage, run.manifests[stage])
    name = arm.partition("@")[0]
    needed = {
        one.arm
        for one in runs
        # Verdicts made elsewhere may be of an arm called `llama@base`, which is no round.
        if (earlier := _round(one.arm, name)) and earlier < (_round(arm, name) or math.inf)
    }
    sample = settings.get(name, {}).get("sample") or {}
    if (settings.get(name) or {}).get("train") and sample.get("use") != "reference":
        run_name, slash, _ = name.rpartition("/")
        policies = [
            sample.get("policy"),
            *(p.get("policy") for p in sample.get("pools", {}).values()),
        ]
        needed |= {
            f"{run_name}{slash}{policy.removeprefix('arm:')}"
            for policy in policies
            if policy and policy.startswith("arm:")
        }
    for other in sorted(needed - known):
        found |= _made(other, seed, settings, runs, known)
    return found


def _round(arm: str, name: str) -> int | None:
    """The number in NAME@NUMBER; None where that is no name of a round."""
    number = arm.removeprefix(f"{name}@")
    return int(number) if number.isdecimal() and number != arm else None


def _also(run: ArmRun) -> _Stages:
    """All stages of an arm; some count for the total alone."""
    found: _Stages = {}
    for piece in pieces([run]):
        for one in piece.evaluations:
            found |= {
                folder: (stage, one.manifests[stage]) for stage, folder in one.folders.items()
            }
    return found


def _told(made: _Stages, evaluated: _Stages) -> dict[str, Any]:
    def total(stages: _Stages, key: str, *kinds: str) -> float:
        return sum(float(told.get(key) or 0.0) for kind, told in stages.values() if not kinds or kind in kinds)  # fmt: skip

    return {
        "tokens_sampled": total(made, "tokens", "sample"),
        "tokens_trained": total(made, "tokens", "train"),
        "seconds": total(made, "seconds"),
        "by_stage": {stage: total(made, "seconds", stage) for stage in MADE},
        "evaluation_seconds": total(evaluated, "seconds"),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _priced(seconds: float, prices: dict[str, Any]) -> dict[str, float | None]:
    """Energy in kWh and money, None where no figure was given for them."""
    hours, watts = seconds / 3600, prices.get("watts")
    kwh = None if watts is None else hours * watts / 1000
    per_hour, per_kwh = prices.get("price_per_hour") or 0.0, prices.get("price_per_kwh") or 0.0
    money = hours * per_hour + (kwh or 0.0) * per_kwh
    return {"kwh": kwh, "money": money if per_hour or (per_kwh and kwh is not None) else None}


def _per_point(
    row: dict[str, Any], first: dict[str, Any], comparison: dict[str, Any]
) -> dict[str, Any] | None:
    """What an arm takes beyond the baseline, by the points it gains over it: `low` by the most and `high`
    by the least that the interval allows. None where no gain is shown, or it takes no more."""
    if row["arm"] == first["arm"]:
        return None
    pair = find(comparison, row["arm"], first["arm"])
    extra = row["seconds"] - first["seconds"]
    if pair["low"] <= 0 or not is_shown(pair, comparison["level"]) or extra <= 0:
        return None
    gains = {"value": pair["difference"], "low": pair["high"], "high": pair["low"]}
    told: dict[str, Any] = {"seconds": {k: extra / (100 * gain) for k, gain in gains.items()}}
    if row["money"] is not None:
        more = row["money"] - first["money"]
        told["money"] = {k: more / (100 * gain) for k, gain in gains.items()}
    return told
