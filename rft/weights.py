"""What each selected row weighs in the loss, and which wrong samples are made less likely beside them.

Weights are relative: training divides a step's loss by the sum of its weights' sizes. So the best row
weighs 1 here whatever the scale of the values, and exp((value - best) / beta) cannot overflow.
"""

import math
from collections.abc import Iterable
from typing import Any

from rft.config_train import Negatives, Reward
from rft.selectors._common import drawn, value
from rft.types import Group, RftError, Verdict

LOWEST = -20.0
"""Least exponent: a step of poor rows alone must still have weights to divide by."""


def weights(
    groups: Iterable[Group], kept: set[str], loss: dict[str, Any], label: str
) -> dict[str, float]:
    """Weights by candidate id: of all rows in `kept`, above 0 or 0, and of wrong samples, below 0.

    loss: `Loss.of_rows`. Raises RftError where a row has no value to be weighed by.
    """
    negatives = Negatives(**loss["negatives"]) if "negatives" in loss else None
    values: dict[str, float | None] = {}
    whose: dict[str, str] = {}
    missing: list[str] = []
    against: dict[str, float] = {}
    for group in groups:
        rows = [row for row in group.rows if row.candidate.id in kept]
        for row in rows:
            values[row.candidate.id] = found = value(row)
            whose[row.candidate.id] = row.candidate.prompt_id
            if found is None and not row.is_reference:
                missing.append(row.candidate.id)
        # A prompt that no sample solves says nothing about what is better than wrong.
        if negatives and not all(row.is_reference for row in rows):
            wrong = (
                row.candidate.id
                for row in group.rows
                if row.score.verdict is Verdict.WRONG
                and not row.is_reference
                and row.candidate.id not in kept
            )
            chosen = drawn(wrong, negatives.per_prompt, 0)
            against.update(dict.fromkeys(sorted(chosen), -negatives.weight))
    if "reward" not in loss:
        return dict.fromkeys(values, 1.0) | against
    if missing:
        raise RftError(
            f"{label}: train.loss.reward: {len(missing):,} of {len(values):,} rows have no value to be "
            f"weighed by, for instance {missing[0]}. Add a scorer that gives one (reward_model, judge), "
            "or set train.loss.reward to null"
        )
    if loss.get("weigh") != "prompts":
        whose = dict.fromkeys(whose, "")
    return _by_value(values, whose, Reward(**loss["reward"]), label) | against


def _by_value(
    values: dict[str, float | None], whose: dict[str, str], reward: Reward, label: str
) -> dict[str, float]:
    """whose: among which rows each is weighed: those of its prompt, or all."""
    if reward.by == "exp":
        tops: dict[str, float] = {}
        for id, v in values.items():
            if v is not None:
                tops[whose[id]] = max(v, tops.get(whose[id], v))
        return {
            id: 1.0 if v is None else math.exp(max((v - tops[whose[id]]) / reward.beta, LOWEST))
            for id, v in values.items()
        }
    best = max((v for v in values.values() if v is not None), default=1.0)
    least = min((v for v in values.values() if v is not None), default=1.0)
    if least < 0 or best == 0:
        raise RftError(
            f"{label}: train.loss.reward.by: linear weighs by values of at least 0, some of them above; "
            f"these go from {least:g} to {best:g}. Set it to exp"
        )
    return {id: 1.0 if v is None else v / best for id, v in values.items()}
