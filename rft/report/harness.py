"""Per-problem outcomes that EleutherAI's lm-evaluation-harness wrote (`lm_eval run --log_samples`).

A file `samples_TASK_DATE.jsonl` has a line for each problem and filter: a filter is one way of
reading the answer, so `gsm8k` has two of `exact_match`. The harness joins both names with a comma,
and so do the settings here: `exact_match,strict-match`. Problems are known by the harness's hash of
their content, never by their position.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft.types import ProblemRow, RftError

MILLION = 1_000_000
"""Denominator of values that are no simple fractions, such as an F1: they are rounded to a millionth."""

_NAME = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[\d.-]+\.jsonl")
_KNOWN = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
          "doc_hash", "prompt_hash", "target_hash"}  # fmt: skip


@dataclass(frozen=True)
class Outcomes:
    """What one model made of one task, by one metric."""

    task: str
    metric: str
    """`METRIC,FILTER`."""
    problems: tuple[ProblemRow, ...]
    """By prompt id, sorted. `correct / n` is the metric's value: n is 1 where all values are 0 or 1,
    the length where the harness gives a list of verdicts (IFEval's instructions), else the common
    denominator. `answers` holds the answer as the filter left it, `hits` the verdict, both empty
    unless n is 1. Unknown, truncated and tokens are not told, and 0."""
    prompts: tuple[str, ...]
    """Hash of the text that each problem was asked with, in the same order: two models can only be
    compared where it is the same, or the difference may be the prompt's."""


def read(path: Path, metric: str | None = None) -> Outcomes:
    """Reads a file of samples. metric: `METRIC,FILTER`, or `METRIC` (of its first filter); by default
    the first metric of the first filter, in the file's order, so never by its result.

    Raises RftError where the file cannot be read, has no such metric, or none with a value from 0 to 1
    for each problem: a corpus metric (BLEU, perplexity) has only parts there that make no value.
    """
    found = re.fullmatch(_NAME, path.name)
    task = found["task"] if found else path.stem.removeprefix("samples_")
    values: dict[str, list[tuple[str, Any, str, str]]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for place, row in _lines(path):
        try:
            chosen, doc, prompt = row.get("filter", "none"), row["doc_hash"], row["prompt_hash"]
            names = row.get("metrics") or [k for k in row if k not in _KNOWN]
            told = {name: row[name] for name in names}
        except (KeyError, TypeError, AttributeError) as fault:
            raise RftError(
                f"{place}: no row of lm-eval's samples (no {fault}): give a samples_*.jsonl file that "
                "`lm_eval run --log_samples` wrote"
            ) from None
        seen[chosen, doc] += 1
        # A task may hold the same problem twice.
        nth = f"#{seen[chosen, doc]}" if seen[chosen, doc] > 1 else ""
        answer = row.get("filtered_resps")
        for name, value in told.items():
            one = f"{task}:{doc}{nth}", value, _text(answer), prompt
            values.setdefault(f"{name},{chosen}", []).append(one)
    if not values:
        raise RftError(f"{path}: there are no samples in it: run the task again with --log_samples")
    name = _choose(path, metric, values)
    rows = sorted(values[name], key=lambda row: row[0])
    counts = _counts([value for _, value, _, _ in rows])
    if counts is None:
        good = [n for n, told in values.items() if _counts([row[1] for row in told])]
        raise RftError(
            f"{path}: metric {name} has no value from 0 to 1 for each problem, such as {rows[0][1]!r}, so "
            f"models cannot be compared on it problem by problem. Metrics that have: "
            f"{'; '.join(good) or 'none in this task'}"
        )
    plain = all(n == 1 for _, n in counts)
    problems = [
        ProblemRow(
            prompt_id=id,
            n=n,
            correct=correct,
            unknown=0,
            truncated=0,
            answers=(answer,) if plain else (),
            hits=(correct == 1,) if plain else (),
            tokens=0,
        )
        for (id, _, answer, _), (correct, n) in zip(rows, counts)
    ]
    return Outcomes(task, name, tuple(problems), tuple(row[3] for row in rows))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except (OSError, ValueError) as fault:
        raise RftError(f"{path}: cannot be read as JSON lines: {fault}") from None


def _choose(path: Path, metric: str | None, values: dict[str, Any]) -> str:
    if metric is None:
        return next(iter(values))
    for name in values:
        if metric in (name, name.partition(",")[0]):
            return name
    raise RftError(f"{path}: no metric {metric} in it; it has {'; '.join(values)}")


def _text(answer: Any) -> str:
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    return answer if isinstance(answer, str) else json.dumps(answer)


def _counts(values: list[Any]) -> list[tuple[int, int]] | None:
    """Each value as (correct, n); None where one is not from 0 to 1."""
    if all(isinstance(v, list) and v and set(map(type, v)) == {bool} for v in values):
        return [(sum(v), len(v)) for v in values]
    if not all(isinstance(v, int | float) and math.isfinite(v) and 0 <= v <= 1 for v in values):
        return None
    for n in (*range(1, 101), 1000, MILLION):
        if all(abs(v * n - round(v * n)) < 1e-9 for v in values):
            break
    return [(round(v * n), n) for v in values]
