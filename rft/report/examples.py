"""Which candidates and held-out problems the report shows: a seeded choice, never the best looking.

Candidates are drawn round robin over the reasons they were kept or dropped for, so that rare
reasons are seen too. All text is the model's or the data set's, and hostile until escaped.
"""

import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np

from rft import rows
from rft.report import trace
from rft.report.load import ArmRun
from rft.types import Candidate, ChoiceRow, Prompt, ScoreRow

LONGEST = 4000
"""Characters of one text that are shown."""
SHORT = 12
"""Digits of an id that a command names it by."""


def visible(text: str) -> str:
    """Text without control or direction-changing characters."""
    return "".join(
        c if c.isprintable() or c in "\n\t" or category(c) == "Zs" else "\ufffd" for c in text
    )


def clean(text: str) -> str:
    """Text that can be shown: `visible`, and not too long."""
    more = len(text) - LONGEST
    shown = visible(text[:LONGEST])
    return f"{shown}\n[{more:,} more characters]" if more > 0 else shown


def candidates(run: ArmRun, count: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    """Sampled training candidates of one arm with verdict and reason, spread over the reasons."""
    pool = {id for one in run.pools for id in rows.ids(one.sample)}
    by_reason: dict[str, list[str]] = defaultdict(list)
    whole: dict[str, str] = {}
    for choice in rows.read(run.folders["select"] / "choices", ChoiceRow):
        if choice.id in pool:
            whole[choice.id] = choice.reason or ""
            by_reason[whole[choice.id].partition(":")[0]].append(choice.id)
    rng = random.Random(seed)
    for ids in by_reason.values():
        ids.sort()
        rng.shuffle(ids)
    reasons: dict[str, str] = {}
    # Kept comes first: its name is "", the rest follow by how common they are.
    order = sorted(by_reason, key=lambda reason: (reason != "", -len(by_reason[reason]), reason))
    while len(reasons) < count and any(by_reason.values()):
        for reason in order:
            if by_reason[reason] and len(reasons) < count:
                reasons[by_reason[reason].pop()] = reason
    found = {id: c for one in run.pools for id, c in _texts(one.sample, reasons).items()}
    told = {
        r.id: r for one in run.pools for r in rows.read(one.score, ScoreRow, among=("id", reasons))
    }
    asked = _prompts(run.folders["prompts"] / "train", {c.prompt_id for c in found.values()})
    place = {reason: i for i, reason in enumerate(order)}
    ids = sorted(found, key=lambda i: (place[reasons[i]], i))
    return [
        {
            **_problem(asked[found[i].prompt_id]),
            **_answer(found[i], told[i]),
            "kept": not reasons[i],
            "reason": clean(whole[i]),
            "command": trace.command(run, "select", i[:SHORT]),
        }
        for i in ids
    ]


KINDS = ("fixed", "broken", "still")


def changed(run: ArmRun, baseline: ArmRun, count: int = 5, seed: int = 0) -> dict[str, Any]:
    """Held-out problems that `run` does better on (`fixed`), worse on (`broken`), or that neither gets
    right once (`still`): at most `count` of each, drawn by `seed`.

    Each shows the arm's and the baseline's first sample of the verdict that makes the difference, and
    the command that shows its row. Returns the three lists, and how many problems there are of each
    kind.
    """
    gap_P = run.correct_P * baseline.n_P - baseline.correct_P * run.n_P
    found = {
        "fixed": np.flatnonzero(gap_P > 0).tolist(),
        "broken": np.flatnonzero(gap_P < 0).tolist(),
        "still": np.flatnonzero((gap_P == 0) & (run.correct_P == 0)).tolist(),
    }
    rng = random.Random(seed)
    chosen = {
        kind: [
            (run.problems[i], baseline.problems[i])
            for i in rng.sample(places, min(count, len(places)))
        ]
        for kind, places in found.items()
    }
    ids = {mine.prompt_id for pairs in chosen.values() for mine, _ in pairs}
    asked = _prompts(run.folders["prompts"] / "eval", ids)
    sides = [(one, _by_problem(one, ids)) for one in (run, baseline)]
    out: dict[str, Any] = {f"{kind}_count": len(places) for kind, places in found.items()}
    for kind, pairs in chosen.items():
        out[kind] = []
        for both in pairs:
            answers = []
            for (side, drawn), row, hit in zip(sides, both, (kind == "fixed", kind == "broken")):
                candidate, score = drawn[row.prompt_id][row.hits.index(hit)]
                shown = trace.command(side, "eval_score", candidate.id[:SHORT])
                told = {"arm": side.arm, "rate": f"{row.correct} of {row.n}", "command": shown}
                answers.append({**told, **_answer(candidate, score)})
            out[kind].append({**_problem(asked[both[0].prompt_id]), "answers": answers})
    return out


def _by_problem(run: ArmRun, ids: set[str]) -> dict[str, list[tuple[Candidate, ScoreRow]]]:
    """Prompt id -> its candidates and scores by index."""
    asked = ("prompt_id", ids)
    told = {r.id: r for r in rows.read(run.folders["eval_score"], ScoreRow, among=asked)}
    found: dict[str, list[tuple[Candidate, ScoreRow]]] = defaultdict(list)
    columns = ["id", "prompt_id", "index", "text", "finish"]
    for candidate in rows.read(run.folders["eval_sample"], Candidate, columns, asked):
        found[candidate.prompt_id].append((candidate, told[candidate.id]))
    for pairs in found.values():
        pairs.sort(key=lambda pair: pair[0].index)
    return found


def _texts(folder: Path, ids: Iterable[str]) -> dict[str, Candidate]:
    columns = ["id", "prompt_id", "index", "text", "finish"]
    return {c.id: c for c in rows.read(folder, Candidate, columns, ("id", ids))}


def _prompts(folder: Path, ids: set[str]) -> dict[str, Prompt]:
    return {p.id: p for p in rows.read(folder, Prompt, among=("id", ids))}


def _problem(prompt: Prompt) -> dict[str, str]:
    gold = "(none)" if prompt.answer is None else clean(prompt.answer)
    return {"id": prompt.id, "question": clean(prompt.question), "gold": gold}


def _answer(candidate: Candidate, score: ScoreRow) -> dict[str, str]:
    return {
        "text": clean(candidate.text),
        "finish": str(candidate.finish),
        "verdict": str(score.verdict),
        "why": clean(score.reason or ""),
        "extracted": clean(score.extracted or ""),
    }
