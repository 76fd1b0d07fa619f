"""Which samples a pool wants, and what becomes of them: the core of the sample stage.

Each job has an allocator, which chooses the prompt of its next sample. A feed makes the requests of
several jobs one iterator, which a sampler pulls from; its candidates go to their jobs by id. A sample
that is on disk, in this stage's folder or in another of the run with the same policy and settings, is
never drawn again: resuming is an allocator that begins with what there is, and raising n draws only
what is missing.

Where the scorers run in worker processes, candidates are scored as they come, into the folders of
their score stages, and allocators see the verdicts. Candidates reach the disk before their verdicts.
"""

import dataclasses
import functools
import resource
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from rft import components, rows
from rft.chat import Renderer
from rft.config import Chat, Combine, Model, Ray
from rft.config_decoding import Decoding
from rft.rundir import StageDir
from rft.section import Component
from rft.tallies import KEYS, Board
from rft.types import (
    Candidate,
    Finish,
    Prompt,
    Request,
    RftError,
    Sampler,
    ScoreRow,
    Verdict,
    digest,
    seed_of,
)
from rft.verdicts import MOST, Beside

_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
SOON_S, LATE_S = 0.5, 60.0
"""Least and most seconds between two parts: a hundredth of the time so far, so that a kill costs about
one percent of it, and long runs have few parts."""


def seed_for(spec: dict[str, Any], prompt_id: str, index: int) -> int:
    """Of a sample of the job `spec`. In another number format a sample has the seed that it has in the
    main one."""
    return seed_of(digest(spec.get("seeds", spec["pool"]), prompt_id, index), "seed")


class Job:
    """One stage folder's share of the work."""

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.folder = Path(spec["folder"])
        self.renderer = Renderer(Model(**spec["model"]), Chat(**spec["chat"]))
        found = {p.id: p for p in rows.read(Path(spec["prompts"]), Prompt)}
        only = spec["only"]
        self.prompts = found if only is None else {name: found[name] for name in only}
        self.decoding = Decoding(**spec["decoding"])
        self.dropped: Counter[str] = Counter()
        """Samples that are not drawn, by the reason."""
        self.writer = rows.Writer(self.folder, Candidate, rows=4096, seconds=LATE_S)
        self.board = Board(self._asked(), self.decoding.n)
        self.scores = [_Scores(one) for one in spec.get("scores", [])]
        self.owed: deque[tuple[str, int]] = deque()
        """Samples that an interrupted run was drawing."""
        self.bank: dict[tuple[str, int], Candidate] = {}
        """Samples that others have drawn, by prompt and index, for an allocator that may not want them."""
        self.resumed = False
        """Whether an earlier process has drawn some of them."""
        self.drawn = 0
        """Samples drawn in this process."""
        self.dtype: str | None = None
        """Number format that the sampler computes in, where it tells."""
        self._begun = self._flushed = time.monotonic()
        self.prompt_ids = functools.lru_cache(maxsize=1024)(self._prompt_ids)

    @property
    def adapts(self) -> bool:
        """Whether the allocator looks at verdicts."""
        return bool(self.spec["allocate"]["use"] != "uniform")

    def _asked(self) -> list[str]:
        """Ids of the prompts to draw samples of; counts the others."""
        n, spec = self.decoding.n, self.spec
        solved = _solved(map(Path, spec["unless_solved_by"]))
        asked = []
        some = set(self.prompts)
        if pilot := spec.get("pilot"):
            # In the order of their hashes prompts are a sample of the data.
            order = sorted(some, key=functools.partial(digest, pilot["seed"]))
            some = set(order[: pilot["prompts"]])
        for prompt in self.prompts.values():
            reason = "solved" if prompt.id in solved else self._unfit(prompt)
            if reason is None and prompt.id not in some:
                reason = "not_in_pilot"
            if reason:
                self.dropped[reason] += n
            else:
                asked.append(prompt.id)
        return asked

    def _unfit(self, prompt: Prompt) -> str | None:
        is_reference, max_len = self.spec["use"] == "reference", self.spec["model"]["max_len"]
        if is_reference and prompt.solution is None:
            return "no_solution"
        if self.renderer.shows_answer and prompt.answer is None:
            return "no_answer"
        length = len(self.renderer.prompt_ids(prompt.question, prompt.answer))
        if length >= max_len:
            return "prompt_too_long"
        if is_reference and length + len(self._solution(prompt)) > max_len:
            return "solution_too_long"
        return None

    def _solution(self, prompt: Prompt) -> tuple[int, ...]:
        text = self.renderer.chat.solution.replace("{solution}", prompt.solution or "")
        return self.renderer.completion_ids(text)

    def _prompt_ids(self, prompt_id: str) -> tuple[int, ...]:
        prompt = self.prompts[prompt_id]
        return self.renderer.prompt_ids(prompt.question, prompt.answer)

    def id(self, prompt_id: str, index: int) -> str:
        return digest(self.spec["pool"], prompt_id, index)

    def request(self, prompt_id: str, index: int) -> Request:
        key = self.id(prompt_id, index)
        seed = seed_for(self.spec, prompt_id, index)
        ids, adapter = self.prompt_ids(prompt_id), self.spec["adapter"]
        return Request(key, prompt_id, index, ids, self.decoding, seed, adapter)

    def open(self) -> None:
        """Takes stock of what is drawn already, here and in other stages of this run."""
        for row in rows.read(self.folder, Candidate, ["id", "prompt_id", "index"]):
            self.resumed |= self.board.note(row.prompt_id, row.index)
        for other in sorted(self.folder.parent.glob("sample-*")):
            if self.board.drawn == self.board.limit:
                break
            if other != self.folder and self._is_same_pool(other):
                self._adopt(other)
        self.owed.extend(self.board.gaps())
        if self.adapts:
            self._recall()

    def _is_same_pool(self, folder: Path) -> bool:
        for row in rows.read(folder, Candidate, ["id", "prompt_id", "index"]):
            return row.id == self.id(row.prompt_id, row.index)
        return False

    def _adopt(self, folder: Path) -> None:
        for row in rows.read(folder, Candidate):
            if not self._same(row):
                continue
            if self.adapts:
                # What it asks for must not depend on what happens to be there.
                if self.board.lacks(row.prompt_id, row.index):
                    self.bank[row.prompt_id, row.index] = row
            elif self.board.note(row.prompt_id, row.index):
                self.keep(row)
        self.flush()

    def _same(self, row: Candidate) -> bool:
        """Whether a candidate drawn with another max_len or fewer log-probabilities is what this
        job would draw."""
        if self.decoding.logprobs == "tokens" and row.token_logprobs is None:
            return False
        room = self.spec["model"]["max_len"] - len(row.prompt_token_ids)
        if row.finish is Finish.LENGTH:
            return len(row.token_ids) == min(room, self.decoding.max_tokens)
        if row.finish is Finish.LOOP:
            # At the last token the budget would have ended it.
            return len(row.token_ids) < room
        return len(row.token_ids) <= room

    def _recall(self) -> None:
        """Tells the board what was found out before this process, and asks for the verdicts that
        are missing."""
        if self.spec["train_on_reference"]:
            way = KEYS[self.spec["distinct"]]
            for prompt_id in (tally.prompt_id for tally in self.board):
                if solution := self.prompts[prompt_id].solution:
                    self.board.know(prompt_id, way(solution))
        judge = self.scores[0]
        known = {row.id: row for row in rows.read(judge.folder, ScoreRow, ["id", "verdict"])}
        columns = ["id", "prompt_id", "index", "text", "finish", "logprob", "token_ids"]
        for row in rows.read(self.folder, Candidate, columns):
            if row.prompt_id in self.board:
                self.board.tokens += len(row.token_ids)
                judge.ask(self, row, known[row.id].verdict if row.id in known else None)

    def keep(self, candidate: Candidate) -> None:
        """A candidate to be written."""
        self.writer.add(dataclasses.replace(candidate, pool=self.spec["pool_name"]))

    def arrived(self, candidate: Candidate, drawn: bool = True) -> None:
        """A candidate that was asked for. drawn: just now; else it was in the bank."""
        self.drawn += drawn
        self.board.tokens += len(candidate.token_ids)
        self.keep(candidate)
        for scores in self.scores:
            scores.ask(self, candidate)
        now = time.monotonic()
        if now - self._flushed > min(max((now - self._begun) / 100, SOON_S), LATE_S):
            self.flush()

    def fit(self, sampler: Sampler) -> None:
        """Asks for no more samples of a prompt than there are, where they come from a file, and for the
        number format."""
        self.dtype = getattr(sampler, "dtype", None)
        if available := getattr(sampler, "available", None):
            for tally in self.board:
                self.dropped["not_in_source"] += self.board.lower(
                    tally.prompt_id, available(tally.prompt_id)
                )

    def flush(self) -> None:
        self.writer.flush()
        for scores in self.scores:
            scores.writer.flush()
        self._flushed = time.monotonic()

    def commit(self, seconds: float, stats: dict[str, float]) -> None:
        rows.merge_small(self.folder)
        finish: Counter[str] = Counter()
        count = tokens = 0
        for batch in rows.batches(self.folder, ["id", "finish", "token_ids"]):
            count += batch.num_rows
            finish.update(batch.column("finish").to_pylist())
            tokens += pc.sum(pc.list_value_length(batch.column("token_ids"))).as_py() or 0
        if count != self.board.drawn:
            raise RftError(
                f"{self.spec['label']}: {count:,} candidates on disk where {self.board.drawn:,} were "
                "asked for: the sampler lost some. Run the command again to draw the missing ones."
            )
        whole = len(self.prompts) * self.decoding.n
        if left := whole - count - self.dropped.total():
            self.dropped["not_needed"] = left
        StageDir(self.folder).commit(
            seconds,
            rows=count,
            tokens=tokens,
            finish=dict(finish),
            engine=stats,
            funnel={"in": whole, "out": count, "dropped": dict(self.dropped)},
            dtype=self.dtype,
            resumed=self.resumed,
            shows_answer=self.renderer.shows_answer,
            # Of this process and its children at their largest, in KiB on Linux.
            memory_gb=round(sum(resource.getrusage(who).ru_maxrss for who in _WHO) / (1 << 20), 2),
            **({"allocation": self._allocation()} if self.adapts else {}),
        )

    def _allocation(self) -> dict[str, int]:
        """What the verdicts were that the allocator saw."""
        tallies = list(self.board)
        return {
            "prompts": len(tallies),
            "solved": sum(t.correct > 0 for t in tallies),
            "judged": sum(t.judged for t in tallies),
            "correct": sum(t.correct for t in tallies),
            "distinct": sum(t.distinct for t in tallies),
            "never_all": sum(t.drawn < t.limit for t in tallies),
            "first": self._first_draws(),
        }

    def _first_draws(self) -> int:
        """Draws that every prompt got whatever their verdicts: the allocator's argument `first`."""
        first = components.argument("allocators", Component(**self.spec["allocate"]), "first")
        return int(min(first or 0, self.decoding.n))


class _Scores:
    """A score stage's folder, filled while its candidates are drawn."""

    def __init__(self, spec: dict[str, Any]):
        self.spec, self.folder = spec, Path(spec["folder"])
        # Written when the candidates are, and never before them.
        self.writer = rows.Writer(self.folder, ScoreRow, rows=1 << 60, seconds=float("inf"))
        self.beside: Beside
        self.number = 0
        """Of this stage among those that share `beside`."""
        self._waiting: dict[str, Candidate] = {}

    def ask(self, job: Job, candidate: Candidate, verdict: Verdict | None = None) -> None:
        """Asks for a verdict, unless it is known; the first of a job's scores goes to its board."""
        if verdict is not None:
            self._tell(job, candidate, verdict)
        elif self.beside.fault is None and (job.adapts or self.beside.pending < MOST):
            # Of those that are left out here the score stage takes care.
            self._waiting[candidate.id] = candidate
            self.beside.give(self.number, job.prompts[candidate.prompt_id], candidate)

    def told(self, job: Job, batch: Any) -> None:
        self.writer.extend(batch)
        ids, verdicts = batch.column("id").to_pylist(), batch.column("verdict").to_pylist()
        for id, verdict in zip(ids, verdicts):
            candidate = self._waiting.pop(id)
            if job.adapts and self is job.scores[0]:
                self._tell(job, candidate, verdict)

    def _tell(self, job: Job, candidate: Candidate, verdict: str) -> None:
        correct = verdict == Verdict.CORRECT
        way = KEYS[job.spec["distinct"]](candidate.text) if correct else None
        job.board.judge(candidate.prompt_id, candidate.index, len(candidate.token_ids), way)


def _solved(folders: Iterator[Path]) -> set[str]:
    """Prompts that have a correct candidate in one of these score stages."""
    found: set[str] = set()
    for folder in folders:
        for batch in rows.batches(folder, ["id", "prompt_id", "verdict"]):
            right = pc.equal(batch.column("verdict"), str(Verdict.CORRECT))
            found.update(batch.column("prompt_id").filter(right).to_pylist())
    return found


_BANKED = object()
_POINTS = 8192
"""Most that the pace of a run is told from."""


class Feed(Iterator[Request | None]):
    """The requests of several jobs, as one iterator that a sampler pulls from."""

    def __init__(self, jobs: list[Job]):
        self.in_flight: dict[str, Job] = {}
        self._tokens = self._finished = 0
        self._trace = [(time.monotonic(), 0, 0, 0)]
        """(time, tokens so far, samples so far, samples under way), `_every` seconds apart."""
        self._every = 0.02
        self._stages = [(job, scores) for job in jobs for scores in job.scores]
        self._beside: dict[str, Beside] = {}
        for number, (_, scores) in enumerate(self._stages):
            spec = scores.spec
            key = digest(spec["scorers"], spec["combine"])
            if key not in self._beside:
                self._beside[key] = Beside(
                    spec["scorers"], Combine(**spec["combine"]), Ray(**spec["ray"])
                )
            scores.beside, scores.number = self._beside[key], number
        for job in jobs:
            job.open()
        # Now that the boards hold what is known.
        self._choices = {job: iter(_allocator(job)(job.board)) for job in jobs}

    def __next__(self) -> Request | None:
        while True:
            self.listen()
            if any(job.adapts for job in self._choices) and self.pending >= MOST:
                if self.in_flight:
                    return None
            else:
                request: Any = None
                for job in list(self._choices):
                    if request := self._ask(job):
                        break
                if isinstance(request, Request):
                    return request
                if request is _BANKED:
                    continue
                if not self._choices:
                    raise StopIteration
                if self.in_flight:
                    return None
                if not self.pending:
                    raise RftError(
                        f"{next(iter(self._choices)).spec['label']}: allocate waits for verdicts, "
                        "and there are none to come: it must yield a tally, or end"
                    )
            # The engine is empty as well.
            self.listen(wait_s=0.02)

    def _ask(self, job: Job) -> "Request | object | None":
        """The job's next request, if it has one now; forgets the job when it has had its last. _BANKED
        where the sample was there already."""
        if job.owed:
            prompt_id, index = job.owed.popleft()
        else:
            try:
                tally = next(self._choices[job])
            except StopIteration:
                del self._choices[job]
                return None
            if tally is None:
                return None
            try:
                index = job.board.take(tally)
            except (ValueError, KeyError) as fault:
                raise RftError(f"{job.spec['label']}: allocate: {fault}") from None
            prompt_id = tally.prompt_id
        if candidate := job.bank.pop((prompt_id, index), None):
            job.arrived(candidate, drawn=False)
            return _BANKED
        request = job.request(prompt_id, index)
        self.in_flight[request.id] = job
        return request

    def start(self) -> None:
        """Has the scorers start, so that they do so while an engine does."""
        for beside in self._beside.values():
            beside.start()

    @property
    def pending(self) -> int:
        """Candidates that wait for verdicts."""
        return sum(beside.pending for beside in self._beside.values())

    def listen(self, wait_s: float = 0) -> None:
        """Takes the verdicts that are there. Raises RftError if an allocator will never have any."""
        for beside in self._beside.values():
            for number, batch in beside.take(wait_s):
                job, scores = self._stages[number]
                scores.told(job, batch)
            if beside.fault and any(
                job.adapts and job.scores[0].beside is beside for job in self._choices
            ):
                raise beside.fault

    def pace(self) -> dict[str, float]:
        """Tokens a second while there was enough to do: from when as many are finished as an engine
        holds, so that others are half done as they are later, to when only half as many are left."""
        most = max(under_way for *_, under_way in self._trace)
        full = [at for at in self._trace if 2 * at[2] >= most and 2 * at[3] >= most]
        if len(full) < 3 or full[-1][0] - full[0][0] < 0.2:
            return {}
        return {"steady_tokens_per_s": (full[-1][1] - full[0][1]) / (full[-1][0] - full[0][0])}

    def arrived(self, candidate: Candidate) -> None:
        self._tokens += len(candidate.token_ids)
        self._finished += 1
        now = time.monotonic()
        if now - self._trace[-1][0] > self._every:
            self._trace.append((now, self._tokens, self._finished, len(self.in_flight)))
            if len(self._trace) > _POINTS:
                self._trace, self._every = self._trace[::2], 2 * self._every
        job = self.in_flight.pop(candidate.id, None)
        if job is None:
            raise RftError(
                f"the sampler gave candidate {candidate.id} twice, or unasked: it must yield one for "
                "each request, with the request's id"
            )
        job.arrived(candidate)

    def close(self) -> None:
        for beside in self._beside.values():
            beside.close()


def _allocator(job: Job) -> Any:
    return components.make("allocators", Component(**job.spec["allocate"]), "sample.allocate")
