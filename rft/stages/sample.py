"""Stage 2 (and the first half of evaluation): drawing the candidates.

One process serves all jobs that share a model and an engine, because an engine takes half a minute
to start. Each job is an iterator of requests; the sampler pulls from all of them in turn and its
candidates go to their jobs by id. A request whose id is already on disk, in this stage's folder or
in another of the run with the same policy and settings, is never made again: resuming is an
iterator that skips, and raising n draws only what is missing.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rft import components, process, rows
from rft.chat import Renderer
from rft.config import Chat, Decoding, Engine, Model
from rft.rundir import StageDir
from rft.types import Candidate, Finish, Prompt, Request, RftError, Setup, digest


class Job:
    """One stage folder's share of the work."""

    def __init__(self, spec: dict[str, Any], renderer: Renderer):
        self.spec, self.renderer = spec, renderer
        self.folder = Path(spec["folder"])
        self.prompts = list(rows.read(Path(spec["prompts"]), Prompt))
        self.decoding = Decoding(**spec["decoding"])
        self.dropped: Counter[str] = Counter()
        # Every few seconds, since scorers may wait for the part.
        self.writer = rows.Writer(self.folder, Candidate, seconds=5.0)
        self.done: set[str] = set()

    def requests(self) -> Iterator[Request]:
        """Every sample that this job wants, prompt by prompt so that siblings share a prefix."""
        adapter = self.spec["adapter"]
        max_len = self.spec["model"]["max_len"]
        for prompt in self.prompts:
            if self.spec["use"] == "reference" and prompt.solution is None:
                self.dropped["no_solution"] += 1
                continue
            ids = self.renderer.prompt_ids(prompt.question)
            if len(ids) >= max_len:
                self.dropped["prompt_too_long"] += 1
                continue
            if self.spec["use"] == "reference" and len(ids) + self._solution(prompt) > max_len:
                self.dropped["solution_too_long"] += 1
                continue
            for index in range(self.decoding.n):
                key = digest(self.spec["pool"], prompt.id, index)
                # 63 bits: engines take the seed as a signed 64-bit number.
                seed = int(digest(key, "seed")[:16], 16) >> 1
                yield Request(key, prompt.id, index, ids, self.decoding, seed, adapter)

    def _solution(self, prompt: Prompt) -> int:
        """Tokens of a prompt's worked solution."""
        text = self.renderer.chat.solution.replace("{solution}", prompt.solution or "")
        return len(self.renderer.completion_ids(text))

    def _same(self, row: Candidate) -> bool:
        """Whether a candidate drawn with another max_len or fewer log-probabilities is what this
        job would draw."""
        if self.decoding.logprobs == "tokens" and row.token_logprobs is None:
            return False
        room = self.spec["model"]["max_len"] - len(row.prompt_token_ids)
        if row.finish is Finish.LENGTH:
            return len(row.token_ids) == min(room, self.decoding.max_tokens)
        return len(row.token_ids) <= room

    def adopt(self, wanted: set[str]) -> None:
        """Takes over candidates that other stages of this run have drawn already."""
        self.done = rows.ids(self.folder)
        for other in sorted(self.folder.parent.glob("sample-*")):
            missing = wanted - self.done
            if not missing:
                return
            if other != self.folder and missing & rows.ids(other):
                for row in rows.read(other, Candidate):
                    if row.id in missing and self._same(row):
                        self.writer.add(row)
                        self.done.add(row.id)
                self.writer.flush()


def run(specs: list[dict[str, Any]]) -> None:
    specs = [s for s in specs if StageDir(Path(s["folder"])).manifest() is None]
    if not specs:
        return
    started = time.monotonic()
    first = specs[0]
    model = Model(**first["model"])
    renderer = Renderer(model, Chat(**first["chat"]))
    jobs = [Job(spec, renderer) for spec in specs]
    # A sample that several jobs want is drawn for the first: the one that wants most of it.
    jobs.sort(key=lambda job: job.decoding.logprobs != "tokens")

    owners: dict[str, list[Job]] = defaultdict(list)
    wanted: list[Request] = []
    for job in jobs:
        requests = list(job.requests())
        _check_lengths(job, len(requests))
        job.adopt({request.id for request in requests})
        for request in requests:
            if request.id in job.done:
                continue
            if request.id not in owners:
                wanted.append(request)
            owners[request.id].append(job)
    stats: dict[str, float] = {}
    if wanted:
        stats = _draw(first, model, renderer, jobs, wanted, owners)
    seconds = time.monotonic() - started
    for job in jobs:
        # One engine served all of them: each is charged for its share of what was drawn.
        drawn = sum(job in got for got in owners.values())
        share = drawn / sum(map(len, owners.values())) if owners else 1 / len(jobs)
        _commit(job, seconds * share, {**stats, "stages": len(jobs)})


def _check_lengths(job: Job, wanted: int) -> None:
    too_long, label = job.dropped["prompt_too_long"], job.spec["label"]
    advice = "Raise model.max_len, or take the long ones out of the data."
    if too_long and job.spec["split"] == "eval":
        raise RftError(
            f"{label}: {too_long} held-out prompts do not fit into model.max_len = "
            f"{job.spec['model']['max_len']} tokens, and leaving them out would change what "
            f"accuracy means. {advice}"
        )
    if not wanted:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in job.dropped.items())
        raise RftError(f"{label}: there is nothing to sample for ({reasons}). {advice}")


def _draw(
    spec: dict[str, Any],
    model: Model,
    renderer: Renderer,
    jobs: list[Job],
    wanted: list[Request],
    owners: dict[str, list[Job]],
) -> dict[str, float]:
    prompts = {p.id: p for job in jobs for p in job.prompts}
    adapters = tuple(dict.fromkeys(r.adapter for r in wanted if r.adapter))
    if spec["use"] != "reference":
        process.say(f"  starting {spec['use']} (can take a minute) ...")
    make = components.find("samplers", spec["use"])
    sampler = make(Setup(model, Engine(**spec["engine"]), renderer, prompts, adapters))
    total = sum(len(job.done) for job in jobs) + len(wanted)
    label = spec["label"] if len(jobs) == 1 else f"{spec['label']} and {len(jobs) - 1} more"
    progress = process.Progress(label, total, total - len(wanted))
    tokens, begun = 0, time.monotonic()
    try:
        for candidate in sampler.sample(iter(wanted)):
            for job in owners[candidate.id]:
                job.writer.add(candidate)
            tokens += len(candidate.token_ids)
            rate = tokens / max(time.monotonic() - begun, 1e-9)
            progress.step(note=f"{rate:,.0f} tokens/s")
    finally:
        # Ctrl-C or a failing engine: what is finished was paid for.
        for job in jobs:
            job.writer.flush()
        progress.close()
        stats = sampler.stats()
        sampler.close()
    return stats


def _commit(job: Job, seconds: float, stats: dict[str, float]) -> None:
    finish: Counter[str] = Counter()
    count = tokens = 0
    for row in rows.read(job.folder, Candidate, columns=["id", "finish", "token_ids"]):
        count += 1
        finish[str(row.finish)] += 1
        tokens += len(row.token_ids)
    n = job.decoding.n
    dropped = {reason: lost * n for reason, lost in job.dropped.items()}
    expected = len(job.prompts) * n - sum(dropped.values())
    if count != expected:
        raise RftError(
            f"{job.spec['label']}: {count:,} candidates on disk where {expected:,} were asked for: "
            "the sampler lost some. Run the command again to draw the missing ones."
        )
    StageDir(job.folder).commit(
        seconds,
        rows=count,
        tokens=tokens,
        finish=dict(finish),
        engine=stats,
        funnel={"in": len(job.prompts) * n, "out": count, "dropped": dropped},
    )


if __name__ == "__main__":
    process.stage_main(run)
