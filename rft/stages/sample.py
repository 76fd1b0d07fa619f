"""Stage 2 (and the first half of evaluation): drawing the candidates (rft/sampling.py).

One process serves all jobs that share a model and an engine, because an engine takes half a minute
to start; arms whose training saved a model of its own get an engine each, one after the other.
"""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rft import components, process, rows, scoring
from rft.config import Model
from rft.config_decoding import Engine
from rft.rundir import StageDir
from rft.sampling import Feed, Job
from rft.section import Component
from rft.types import RftError, Sampler, Setup


def run(specs: list[dict[str, Any]]) -> None:
    by_model: dict[str, list[Job]] = defaultdict(list)
    for spec in specs:
        if StageDir(Path(spec["folder"])).manifest() is None:
            job = Job(_of_its_weights(spec))
            _check_lengths(job)
            by_model[job.spec["model"]["base"]].append(job)
    for jobs in by_model.values():
        _run(jobs)


def _of_its_weights(spec: dict[str, Any]) -> dict[str, Any]:
    """A training that saves a whole model has it in the place of an adapter."""
    folder = spec["adapter"]
    if folder is None or not (Path(folder) / "config.json").is_file():
        return spec
    return {**spec, "adapter": None, "model": {**spec["model"], "base": folder, "revision": None}}


def _run(jobs: list[Job]) -> None:
    waves: dict[tuple[str, str], list[Job]] = defaultdict(list)
    # Of jobs that want the same samples the second takes over what the first has drawn: the one
    # first that wants most of them.
    jobs.sort(key=lambda job: (job.decoding.logprobs != "tokens", -job.decoding.n))
    for job in jobs:
        # Of different splits no two want the same sample.
        waves[job.spec["pool"], job.spec["split"]].append(job)
    engine = _Engine(jobs)
    try:
        while wave := [same.pop(0) for same in waves.values() if same]:
            _draw(engine, wave)
    finally:
        engine.close()


class _Engine:
    """The sampler of all jobs, made when the first of them wants a sample."""

    def __init__(self, jobs: list[Job]):
        self._jobs = jobs
        self._made: Sampler | None = None

    def made(self) -> Sampler:
        if self._made is None:
            spec = self._jobs[0].spec
            if spec["use"] != "reference":
                process.say(f"  starting {spec['use']} (can take a minute) ...")
            setup = Setup(
                Model(**spec["model"]),
                Engine(**spec["engine"]),
                self._jobs[0].renderer,
                {p.id: p for job in self._jobs for p in job.prompts.values()},
                tuple(dict.fromkeys(j.spec["adapter"] for j in self._jobs if j.spec["adapter"])),
                section="sample" if spec["split"] == "train" else "eval",
            )
            component = Component(use=spec["use"], args=spec["args"])
            self._made = components.make("samplers", component, "sample")(setup)
        return self._made

    def stats(self) -> dict[str, float]:
        return self._made.stats() if self._made else {}

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


def _check_lengths(job: Job) -> None:
    too_long, label = job.dropped["prompt_too_long"] // job.decoding.n, job.spec["label"]
    advice = "Raise model.max_len, or take the long ones out of the data."
    if too_long and job.spec["split"] != "train":
        raise RftError(
            f"{label}: {too_long} prompts of the evaluation do not fit into model.max_len = "
            f"{job.spec['model']['max_len']} tokens, and leaving them out would change what "
            f"accuracy means. {advice}"
        )
    if not len(job.board) and not job.dropped["solved"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in job.dropped.items())
        raise RftError(f"{label}: there is nothing to sample for ({reasons}). {advice}")


def _draw(engine: _Engine, jobs: list[Job]) -> None:
    """Draws what the jobs want and commits them. No two of them want the same sample."""
    started = time.monotonic()
    feed = Feed(jobs)
    try:
        if any(job.owed or job.board.drawn < job.board.limit for job in jobs):
            feed.start()
            sampler = engine.made()
            for job in jobs:
                job.fit(sampler)
            _pull(sampler, feed, jobs)
        while feed.pending:
            feed.listen(wait_s=0.1)
    finally:
        # Ctrl-C or a failing engine: what is finished was paid for.
        for job in jobs:
            job.flush()
        feed.close()
    seconds, drawn = time.monotonic() - started, sum(job.drawn for job in jobs)
    for job in jobs:
        # One engine served all of them: each is charged for its share of what was drawn.
        share = seconds * (job.drawn / drawn if drawn else 1 / len(jobs))
        stats = {**engine.stats(), **feed.pace(), "stages": len(jobs)}
        job.commit(share, stats)
        for scores in job.scores:
            # Not all are scored here if the run was interrupted: the score stage does the others.
            if rows.count(scores.folder) == job.board.drawn:
                # The time is that of the sampling, and counts once.
                label, loops = scores.spec["label"], job.decoding.loops
                scoring.commit(scores.folder, job.folder, label, 0.0, loops, beside=True)


def _pull(sampler: Sampler, feed: Feed, jobs: list[Job]) -> None:
    label = jobs[0].spec["label"] + (f" and {len(jobs) - 1} more" if len(jobs) > 1 else "")
    total = sum(job.board.limit for job in jobs)
    done = sum(job.board.drawn - len(job.owed) for job in jobs)
    progress = process.Progress(label, total, done, at_most=any(job.adapts for job in jobs))
    tokens, begun = 0, time.monotonic()
    try:
        for candidate in sampler.sample(feed):
            feed.arrived(candidate)
            tokens += len(candidate.token_ids)
            rate = tokens / max(time.monotonic() - begun, 1e-9)
            progress.step(note=f"{rate:,.0f} tokens/s")
    finally:
        progress.close()


if __name__ == "__main__":
    process.stage_main(run)
