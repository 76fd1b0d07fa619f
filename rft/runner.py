"""Runs a plan: one process for each batch of stages of a kind, and never a finished stage again.

Ready stages of one kind run in one process, because starting Python, torch or an engine costs more
than many stages do. Evaluation comes last, so that one engine serves every arm and seed.
"""

import time
from pathlib import Path
from typing import Any

from rft import (
    components,
    forecast,
    harness,
    integrity,
    loops,
    pilots,
    process,
    rows,
    rundir,
    spawn,
)
from rft.config import Experiment
from rft.loader import dump
from rft.mend import mend
from rft.nodes import Node, in_order, refuse_formats
from rft.plan import Plan
from rft.report import paper
from rft.types import Prompt, RftError, digest

KINDS = ("tasks", "prompts", "sample", "score", "select", "train", "eval", "harness")
"""In order of urgency: what is ready and comes first here runs first."""


def run(experiment: Experiment, until: str | None = None, update: bool = False) -> Path:
    """Runs an experiment up to the stages of kind `until`, or to the end with its report.

    update: let a run folder follow a changed config; stages that no longer fit stay on disk.
    Returns the run's folder. Raises RftError; everything finished until then is kept.
    """
    folder = experiment.folder
    with rows.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with rundir.lock(folder) as handle:
        plan = Plan(experiment)
        nodes = list(plan.nodes())
        wanted = _needed(nodes, until)
        refuse_formats(wanted)
        harness.refuse(wanted)
        _refuse_changes(plan, update)
        _lay_out(plan)
        mend(nodes)
        _skip_note(nodes)
        while batch := _next_batch(wanted):
            _run_batch(plan, batch, nodes, handle)
        if until is None:
            _report(plan, handle)
            forecast.hold(plan)
    return folder


def pilot(experiment: Experiment, prompts: int, samples: int) -> None:
    """Samples and scores a few of the training prompts, and prints what the run will bring and cost.

    Runs what that needs (the training of the policy to sample from), and nothing of it is done
    again by `run`. Raises RftError.
    """
    folder = experiment.folder
    with rows.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with rundir.lock(folder) as handle:
        plan = Plan(experiment)
        found = [pilots.pilot(plan, node, prompts, samples) for node in pilots.to_pilot(plan)]
        if not found:
            raise RftError(
                f"{experiment.path}: no arm samples anything whose cost could be told: every sample.use "
                "is reference"
            )
        nodes = list(in_order(node for pair in found for node in pair))
        mend(nodes)
        refuse_formats(nodes)
        while batch := _next_batch(nodes):
            _run_batch(plan, batch, nodes, handle)
        forecast.tell(plan, found)


def _needed(nodes: list[Node], until: str | None) -> list[Node]:
    if until is None:
        return nodes
    ends = [n for n in nodes if n.kind == until and (not n.late or until == "eval")]
    kept: dict[str, Node] = {}

    def keep(node: Node) -> None:
        kept[node.key] = node
        for need in node.needs:
            keep(need)

    for node in ends:
        keep(node)
    return [n for n in nodes if n.key in kept]


def _skip_note(nodes: list[Node]) -> None:
    done = sum(node.done for node in nodes)
    if done:
        process.say(f"{done} of {len(nodes)} stages are done already")


def _refuse_changes(plan: Plan, update: bool) -> None:
    """Names what differs from the config that this folder was begun with."""
    told: list[str] = []
    moved: set[tuple[str, str]] = set()
    for row in plan.rows:
        for name, node in row.links.items():
            old = rundir.StageDir(plan.folder / row.arm / f"seed{row.seed}" / name).inputs()
            if old and old["key"] != node.key:
                moved.add((old["key"], node.key))
    for row in plan.rows:
        home = plan.folder / row.arm / f"seed{row.seed}"
        had = {p.name for p in home.glob("*") if p.is_symlink()}
        if had and had != row.links.keys():
            gone, new = sorted(had - row.links.keys()), sorted(row.links.keys() - had)
            told.append(
                f"  {row.arm}, seed {row.seed}: stages {', '.join(gone) or 'none'} -> "
                f"{', '.join(new) or 'none'}"
            )
        for name, node in row.links.items():
            place = home / name
            old = rundir.StageDir(place).inputs() if place.is_symlink() else None
            if old is None or old["key"] == node.key:
                continue
            changed = [
                line
                for line in rundir.changes(old["inputs"], node.inputs)
                # A stage that differs only in what it reads is named there already.
                if not any(a in line and b in line for a, b in moved)
            ]
            if changed:
                told.append(f"  {row.arm}, seed {row.seed}, {name}: " + "; ".join(changed))
    if told and not update:
        shown = "\n".join(told[:12]) + (f"\n  and {len(told) - 12} more" if len(told) > 12 else "")
        raise RftError(
            f"{plan.folder}: this run was begun with another config:\n{shown}\n"
            "Use name=NEW_NAME to run beside it, or --update to go on here: what still fits is "
            "used again, and nothing is deleted."
        )


def _lay_out(plan: Plan) -> None:
    experiment = plan.experiment
    rows.write_bytes(plan.folder / "experiment.yaml", dump(experiment).encode())
    for row in plan.rows:
        home = plan.folder / row.arm / f"seed{row.seed}"
        home.mkdir(parents=True, exist_ok=True)
        stale = {p.name for p in home.iterdir() if p.is_symlink()} - row.links.keys()
        for name in stale:
            (home / name).unlink()
        for name, node in row.links.items():
            rundir.link(home / name, node.dir.path)
    links = {
        f"{row.arm}/seed{row.seed}/{name}": node.dir.path.name
        for row in plan.rows
        for name, node in row.links.items()
    }
    integrity.seal(plan.folder, links)


def _next_batch(nodes: list[Node]) -> list[Node]:
    """The most urgent ready stages that one process can run; empty when all are done."""
    todo = [n for n in nodes if not n.done]
    for late in (False, True):
        for kind in KINDS:
            batch: list[Node] = []
            for node in todo:
                if node.kind != kind or node.late != late:
                    continue
                if batch and _process_of(node) != _process_of(batch[0]):
                    continue
                # A stage may need one of its own kind that runs before it in the same process.
                if all(need.done or need in batch for need in node.needs):
                    batch.append(node)
            if batch:
                return batch
    return []


def _process_of(node: Node) -> str:
    """Stages with equal answers can share a process."""
    if node.kind == "sample":
        job = node.job
        # Other samplers may look at the text of a prompt, these take its tokens.
        chat = None if job["use"] in ("vllm", "ray", "transformers") else job["chat"]
        return digest(*(job[part] for part in ("use", "args", "model", "engine")), chat)
    if node.kind == "harness":
        return digest(node.job["model"])
    if node.kind == "train":
        return str(node.job["train"]["launch"])
    return ""


def _scored_with(batch: list[Node], nodes: list[Node]) -> list[Node]:
    """Score stages that are filled while these sample: their scorers are all in worker processes, so
    that they need no memory of the GPU and no prompt as a whole."""
    return [
        node
        for node in nodes
        if node.kind == "score"
        and any(need in batch for need in node.needs)
        and not any(components.is_stream(spec["use"]) for spec in node.job["scorers"])
    ]


def _run_batch(plan: Plan, batch: list[Node], nodes: list[Node], lock: int) -> None:
    beside = _scored_with(batch, nodes) if batch[0].kind == "sample" else []
    labels = [node.label for node in batch]
    process.say(", ".join(labels) if len(labels) < 4 else f"{labels[0]} and {len(labels) - 1} more")
    for node in batch + beside:
        node.dir.path.mkdir(parents=True, exist_ok=True)
        node.dir.begin(node.kind, node.inputs)
    started = time.monotonic()
    if batch[0].kind == "prompts":
        for node in batch:
            _write_prompts(node)
    else:
        jobs = [node.job for node in batch]
        if batch[0].kind == "sample":
            jobs = [
                {**node.job, "scores": [score.job for score in beside if node in score.needs]}
                for node in batch
            ]
        launch = batch[0].job["train"]["launch"] if batch[0].kind == "train" else None
        spawn.stage(plan.folder / "logs", batch[0].kind, jobs, lock, launch)
    for node in batch:
        manifest = node.dir.manifest()
        if manifest is None:
            raise RftError(f"{node.label}: its process ended without finishing it")
    for node in batch + beside:
        if manifest := node.dir.manifest():
            _say_done(node, manifest)
    process.say(f"  {time.monotonic() - started:.1f} s")


def _say_done(node: Node, manifest: dict[str, Any]) -> None:
    funnel = manifest.get("funnel")
    if funnel and node.kind in ("sample", "select", "prompts") and not node.late:
        lost = ", ".join(f"{n:,} {reason}" for reason, n in funnel["dropped"].items())
        process.say(
            f"  {node.label}: {funnel['in']:,} in, {funnel['out']:,} out"
            + (f" (dropped: {lost})" if lost else "")
        )
    if node.kind == "sample":
        cut = manifest["finish"].get("length", 0)
        # A budget that is too small is the commonest reason for a run without survivors.
        if cut > 0.2 * manifest["rows"]:
            process.say(
                f"  warning: {cut / manifest['rows']:.0%} of the candidates were cut off at "
                "max_tokens; they never count as correct. Raise max_tokens."
            )
        looped = manifest["finish"].get("loop", 0)
        if looped > 0.2 * manifest["rows"]:
            process.say(
                f"  warning: {looped / manifest['rows']:.0%} of the candidates repeated themselves and "
                "were stopped. Raise the temperature, set repetition_penalty, or sample from a better "
                "policy."
            )
    elif node.kind == "score" and not node.late:
        process.say(
            f"  {node.label}: " + ", ".join(f"{n:,} {v}" for v, n in manifest["verdicts"].items())
        )
        for sentence in loops.told(manifest):
            process.say(f"  {sentence}")


def _write_prompts(node: Node) -> None:
    started = time.monotonic()
    got = node.job["set"]
    for split, prompts in (("train", got.train), ("eval", got.eval)):
        if not rows.parts(node.dir.path / split):
            rows.write_part(node.dir.path / split, prompts, Prompt)
    node.dir.commit(
        time.monotonic() - started,
        rows=len(got.train),
        held_out=len(got.eval),
        with_answer=sum(p.answer is not None for p in got.train),
        with_solution=sum(p.solution is not None for p in got.train),
        funnel={"in": got.rows_in, "out": len(got.train), "dropped": got.dropped},
        held_out_funnel={"in": got.eval_rows_in, "out": len(got.eval), "dropped": got.eval_dropped},
    )


def report(experiment: Experiment, figures: bool = False) -> None:
    """Compares the arms of a finished run and writes its report. Raises RftError.

    figures: write them as files as well.
    """
    if figures:
        paper.check()
    if not (experiment.folder / "stages").is_dir():
        raise RftError(f"{experiment.folder}: no such run: start it with `rft run`")
    with rundir.lock(experiment.folder) as handle:
        plan = Plan(experiment)
        missing = [node.label for node in plan.nodes() if not node.done]
        if missing:
            raise RftError(
                f"{plan.folder}: {len(missing)} stages are not done, the first is {missing[0]}: "
                "`rft run` does them and reports"
            )
        _report(plan, handle, figures)


def _report(plan: Plan, lock: int, figures: bool = False) -> None:
    experiment = plan.experiment
    integrity.refuse(integrity.run_faults(plan.folder))
    entries = []
    for row in plan.rows:
        link = {name: str(node.dir.path) for name, node in row.links.items()}
        arm = plan.arms[row.arm.partition("@")[0]]
        formats = arm.eval.in_formats()
        entries.append(
            {
                "arm": row.arm,
                "seed": row.seed,
                "prompts": link["1_prompts"],
                "pools": [
                    {
                        "name": name.removeprefix("2_sample").removeprefix("_"),
                        "sample": link[name],
                        "score": link[name.replace("2_sample", "3_score")],
                    }
                    for name in link
                    if name.startswith("2_sample") and name != "2_sample_reference"
                ],
                "select": link.get("4_select"),
                "train": link.get("5_train"),
                "eval_sample": link["6_eval_sample"],
                "eval_score": link["6_eval_score"],
                "eval": link["6_eval"],
                "seen": {
                    "eval_sample": link["6_eval_sample_seen"],
                    "eval_score": link["6_eval_score_seen"],
                    "eval": link["6_eval_seen"],
                }
                if "6_eval_seen" in link
                else None,
                "scorers": [scorer.use for scorer in arm.scorers("eval")[1]],
                "formats": [
                    {
                        "dtype": asked.engine.dtype,
                        "use": asked.use,
                        "eval_sample": link[f"6_eval_sample{suffix}"],
                        "eval_score": link[f"6_eval_score{suffix}"],
                        "eval": link[f"6_eval{suffix}"],
                    }
                    for suffix, asked in formats.items()
                ],
            }
        )
    job = {
        "folder": str(plan.folder / "report"),
        "name": experiment.name,
        "config": experiment.model_dump(mode="json"),
        "level": experiment.compare.level,
        "resamples": experiment.compare.resamples,
        "margin": experiment.compare.margin,
        "baseline": experiment.compare.baseline,
        "k": experiment.eval.k,
        "figures": figures,
        "arms": entries,
    }
    job["harness"] = harness.entry(plan, job)
    spawn.stage(plan.folder / "logs", "report", [job], lock, None)
