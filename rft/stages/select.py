"""Stage 4: which candidates become training rows, and why the others do not.

The pools (the data set's own solutions, and what each policy sampled) are brought together prompt
by prompt, references first. Each selector sees what the one before it kept. Every candidate gets a
row with its reason, and the stage stops the run if nothing is left to train on: fine-tuning on
nothing, or on references alone in the belief that samples were added, is a known failure of peers.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rft import components, process, rows
from rft.chat import Renderer
from rft.config import Chat, Component, Model
from rft.rundir import StageDir
from rft.types import (
    Candidate,
    Choice,
    ChoiceRow,
    Group,
    Prompt,
    RftError,
    Score,
    Scored,
    ScoreRow,
    TrainRow,
)


def run(jobs: list[dict[str, Any]]) -> None:
    renderers: dict[str, Renderer] = {}
    for job in jobs:
        folder = Path(job["folder"])
        if StageDir(folder).manifest() is None:
            _select(job, folder, renderers)


def apply(selectors: list[Any], groups: list[Group]) -> dict[str, str | None]:
    """Runs selectors one after the other; {candidate id: reason it is dropped for, or None}.

    Raises RftError if a selector loses a row: every row must come back, kept or with a reason.
    """
    reasons: dict[str, str | None] = {}
    for number, selector in enumerate(selectors):
        waiting = {row.candidate.id for group in groups for row in group.rows}
        for row, reason in _choices(number, selector, groups):
            if row.candidate.id not in waiting:
                raise RftError(f"select.{number}: candidate {row.candidate.id} came back twice")
            waiting.discard(row.candidate.id)
            if not (reason is None or isinstance(reason, str)):
                raise RftError(f"select.{number}: a reason must be text or None, not {reason!r}")
            reasons[row.candidate.id] = reason
        if waiting:
            raise RftError(
                f"select.{number}: {len(waiting)} candidates vanished without a reason, for "
                f"instance {min(waiting)}: a selector must yield every row it is given"
            )
        # In the order that they had, whatever order the selector gave them back in.
        left = (
            (g.prompt, tuple(r for r in g.rows if reasons[r.candidate.id] is None)) for g in groups
        )
        groups = [Group(prompt, members) for prompt, members in left if members]
    return reasons


def _choices(number: int, selector: Any, groups: list[Group]) -> Iterator[Choice]:
    """What a selector yields; its ValueError or TypeError is the user's to fix."""
    try:
        yield from selector(iter(groups))
    except (TypeError, ValueError) as fault:
        raise RftError(f"select.{number}: {type(fault).__name__}: {fault}") from fault


def _groups(job: dict[str, Any]) -> Iterator[Group]:
    prompts = {p.id: p for p in rows.read(Path(job["prompts"]), Prompt)}
    by_prompt: dict[str, list[Scored]] = defaultdict(list)
    for pool in job["pools"]:
        scores = {r.id: r for r in rows.read(Path(pool["score"]), ScoreRow)}
        for candidate in rows.read(Path(pool["sample"]), Candidate):
            row = scores[candidate.id]
            score = Score(row.verdict, row.reason, row.extracted, row.value)
            by_prompt[candidate.prompt_id].append(Scored(candidate, score))
    for prompt_id in sorted(by_prompt):
        members = by_prompt[prompt_id]
        # Files hold candidates in the order they finished; the result must not depend on it.
        members.sort(key=lambda r: (not r.is_reference, r.candidate.index, r.candidate.id))
        yield Group(prompts[prompt_id], tuple(members))


def _select(job: dict[str, Any], folder: Path, renderers: dict[str, Renderer]) -> None:
    started = time.monotonic()
    groups = list(_groups(job))
    selectors = []
    for spec in job["selectors"]:
        args = dict(spec["args"])
        for key, stage in spec["counts"].items():
            manifest = StageDir(Path(stage)).manifest()
            assert manifest is not None
            args[key] = manifest["sampled"]
        selectors.append(components.make("selectors", Component(use=spec["use"], args=args)))
    reasons = apply(selectors, groups)
    rows_in = [row for group in groups for row in group.rows]
    # `overlap:1a2b3c4d` is counted as overlap: a funnel has a line a reason, not a line a row.
    dropped = Counter(r.partition(":")[0] for r in reasons.values() if r is not None)
    chosen = [row for row in rows_in if reasons[row.candidate.id] is None]
    sampled = sum(not row.is_reference for row in chosen)
    funnel = {"in": len(rows_in), "out": len(chosen), "dropped": dict(dropped.most_common())}
    if not chosen or (job["must_sample"] and not sampled):
        lost = ", ".join(f"{n:,} {reason}" for reason, n in dropped.most_common())
        what = "sampled candidate" if chosen else "candidate"
        raise RftError(
            f"{job['label']}: no {what} of {len(rows_in):,} is left to train on ({lost}). Nothing "
            "was trained. Look at some with `rft show`, then check the scorer, raise sample.n or "
            "sample.max_tokens, or start from a stronger policy."
        )
    name = str(job["model"]["base"]) + str(job["chat"])
    if name not in renderers:
        renderers[name] = Renderer(Model(**job["model"]), Chat(**job["chat"]))
    rendered = renderers[name]
    rows.replace_parts(
        folder / "choices",
        [
            ChoiceRow(r.candidate.id, r.candidate.prompt_id, reasons[r.candidate.id])
            for r in rows_in
        ],
        ChoiceRow,
    )
    rows.replace_parts(
        folder / "train",
        [
            TrainRow(
                r.candidate.id,
                r.candidate.prompt_id,
                r.candidate.prompt_token_ids,
                rendered.train_ids(r.candidate),
                r.is_reference,
            )
            for r in chosen
        ],
        TrainRow,
    )
    StageDir(folder).commit(
        time.monotonic() - started,
        rows=len(chosen),
        sampled=sampled,
        prompts=len({row.candidate.prompt_id for row in chosen}),
        funnel=funnel,
    )


if __name__ == "__main__":
    process.stage_main(run)
