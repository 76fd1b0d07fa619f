"""Candidates through scorers: worker processes for those that judge one by one, this process for those
that batch or wait, and one verdict out of several (rft/combine.py).

Candidates go to worker processes as columns, straight from the parts on disk. A scorer that hangs,
crashes or raises makes that candidate unknown and nothing else. Truncated candidates are settled
before any scorer sees them, and so are those that were stopped in a loop: whatever their text holds,
they are `unknown`, as `truncated`, `loop` or `rejected`.
"""

import json
import numbers
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rft import components, rows, spread, workers
from rft.combine import combine, settled
from rft.config import Combine, Ray
from rft.config_decoding import Loops
from rft.loops import AUDIT_COLUMNS, audit, is_audited
from rft.rundir import StageDir
from rft.section import Component
from rft.stats import wilson
from rft.types import (
    CUT_OFF,
    Candidate,
    Finish,
    Prompt,
    RftError,
    Score,
    ScoreRow,
    StreamScorer,
    Verdict,
)

TIMEOUT_S = 10.0
"""Seconds that the scorers in worker processes may together spend on one candidate."""

CHUNK_S = 0.25
"""Seconds of work to give a worker at a time."""

HERE = Ray()
"""Worker processes of this machine."""

COLUMNS = ["id", "prompt_id", "index", "text", "finish", "logprob"]
"""What scorers see of a candidate."""

Specs = list[dict[str, Any]]
Pair = tuple[Prompt, Candidate]
Scores = list[Score | None]


@dataclass(frozen=True)
class Chunk:
    """Candidates as columns, with their prompts."""

    prompts: dict[str, Prompt]
    batch: pa.RecordBatch
    stage: int = 0
    """Which of the stages that are scored together it is of."""

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def __getitem__(self, part: slice) -> "Chunk":
        return Chunk(self.prompts, self.batch[part], self.stage)

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrow's own pickle of a slice holds all that it was cut from; its messages don't.
        return _unpacked, (self.prompts, self.batch.serialize(), self.batch.schema, self.stage)


def _unpacked(
    prompts: dict[str, Prompt], message: pa.Buffer, schema: pa.Schema, stage: int
) -> Chunk:
    return Chunk(prompts, pa.ipc.read_record_batch(message, schema), stage)


@dataclass
class _Row:
    """A candidate on its way through several scorers."""

    prompt: Prompt
    candidate: Candidate
    scores: Scores = field(default_factory=list)
    """Of the scorers so far; None where one was not asked."""


@dataclass
class Pace:
    """How large the next chunk should be: small enough for both cores to end together."""

    done: int = 0
    begun: float = field(default_factory=time.monotonic)

    def rows(self) -> int:
        rate = self.done / max(time.monotonic() - self.begun, 1e-3)
        return min(max(int(rate * CHUNK_S), 32), 4096)


# In the workers ----------------------------------------------------------------------------------


def load_scorers(
    specs: Specs, rule: Combine, alone: bool
) -> Callable[[Any, Callable[[int], None]], Any]:
    """What a worker does with a chunk, or with a list of rows.

    alone: there are no other scorers, so the verdicts are final: the result is a batch of score
    rows. Otherwise it is what the scorers said, one list for each row.
    """
    made = [components.make("scorers", Component(**spec)) for spec in specs]

    def ask(prompt: Prompt, candidate: Candidate, before: Sequence[Score | None]) -> Scores:
        scores: Scores = []
        for spec, scorer in zip(specs, made):
            if settled(rule, [*before, *scores]):
                scores.append(None)
                continue
            try:
                scores.append(_checked(scorer(prompt, candidate), spec["use"]))
            except Exception as fault:
                scores.append(_unknown("error", f"{type(fault).__name__}: {fault}"))
        return scores

    def work(chunk: Any, begin: Callable[[int], None]) -> Any:
        results = []
        for i, (prompt, candidate, before) in enumerate(_members(chunk)):
            begin(i)
            results.append(ask(prompt, candidate, before))
        return _final(chunk, rule, results) if alone else results

    return work


def _members(chunk: Any) -> Iterator[tuple[Prompt, Candidate, Sequence[Score | None]]]:
    if isinstance(chunk, Chunk):
        for candidate in rows.objects(chunk.batch, Candidate):
            yield chunk.prompts[candidate.prompt_id], candidate, ()
    else:
        for row in chunk:
            yield row.prompt, row.candidate, row.scores


def _checked(score: Any, use: str) -> Score:
    # Checked here, so that a faulty scorer costs its verdicts and not the run.
    if not isinstance(score, Score) or not isinstance(score.verdict, Verdict):
        raise TypeError(f"{use} returned {score!r:.80}, not a Score")
    for name in ("reason", "extracted"):
        if not isinstance(getattr(score, name), str | None):
            raise TypeError(f"{use}: Score.{name} is {getattr(score, name)!r:.80}")
    value = score.value
    try:
        # numpy's and torch's numbers too.
        value = float(value) if isinstance(value, numbers.Real) else value
    except OverflowError:
        pass
    if not isinstance(value, float | None):
        raise TypeError(f"{use}: Score.value is {value!r:.80}")
    return Score(score.verdict, _storable(score.reason), _storable(score.extracted), value)


def _storable(text: str | None) -> str | None:
    """The text without halves of surrogate pairs, which JSON's escapes can make and no file can hold."""
    if text is None or text.isascii():
        return text
    return text.encode(errors="replace").decode()


def _unknown(reason: str, detail: str | None) -> Score:
    return Score(Verdict.UNKNOWN, reason, _storable(detail))


# Batches of score rows ---------------------------------------------------------------------------


def _final(chunk: Chunk, rule: Combine, told: list[Scores]) -> pa.RecordBatch:
    """Score rows of a chunk, given what the scorers said of each candidate."""
    if len(told[0]) == 1:
        scores = [each[0] for each in told]
    else:
        scores = [combine(rule, each) for each in told]
    return _batch(chunk.batch.column("id"), chunk.batch.column("prompt_id"), scores, told)


def _batch(ids: Any, prompt_ids: Any, scores: Sequence[Any], told: list[Scores]) -> pa.RecordBatch:
    columns = [
        ids,
        prompt_ids,
        [s.verdict for s in scores],
        [s.reason for s in scores],
        [s.extracted for s in scores],
        [s.value for s in scores],
        # Of a single scorer the row itself tells what it said.
        ["" if len(each) == 1 else _json(each) for each in told],
    ]
    return pa.record_batch(
        [
            pa.array(column, f.type) if isinstance(column, list) else column
            for column, f in zip(columns, rows.schema(ScoreRow))
        ],
        schema=rows.schema(ScoreRow),
    )


def _json(told: Scores) -> str:
    listed = [s and [str(s.verdict), s.reason, s.extracted, s.value] for s in told]
    return json.dumps(listed, ensure_ascii=False)


def split_truncated(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The candidates to be scored, and the score rows of those that were cut off."""
    cut = pc.is_in(batch.column("finish"), value_set=pa.array(map(str, CUT_OFF)))
    of = batch.filter(cut)
    ends = of.column("finish").to_pylist()
    scores = [Score(Verdict.UNKNOWN, CUT_OFF[Finish(end)]) for end in ends]
    told: list[Scores] = [[score] for score in scores]
    final = _batch(of.column("id"), of.column("prompt_id"), scores, told)
    return batch.filter(pc.invert(cut)), final


# Scorers one after the other ---------------------------------------------------------------------


def mixed(
    chunks: Iterator[Chunk],
    specs: Specs,
    rule: Combine,
    made: dict[int, StreamScorer],
    counts: Counter[str],
    keep: Callable[[pa.RecordBatch], None],
    ray: Ray = HERE,
) -> None:
    """Scores the chunks' candidates; `keep` is given batches of score rows as they are done.

    made: the stream scorers, by their place in specs. counts: how many candidates each prompt has,
    for scorers that want them all.
    """

    def finish(done: list[_Row]) -> None:
        ids = [row.candidate.id for row in done]
        prompt_ids = [row.candidate.prompt_id for row in done]
        told = [[*row.scores, *([None] * (len(specs) - len(row.scores)))] for row in done]
        keep(_batch(ids, prompt_ids, [combine(rule, each) for each in told], told))

    gathering = max((i for i, scorer in made.items() if scorer.whole_prompts), default=-1)
    flow: Iterator[list[_Row]] = (_as_rows(chunk) for chunk in chunks)
    for is_pool, places in groupby(range(len(specs)), key=lambda i: i not in made):
        each = list(places)
        if is_pool:
            flow = _pooled([specs[i] for i in each], rule, flow, ray)
            continue
        for i in each:
            if made[i].whole_prompts:
                flow = _gathered(flow, counts)
            # A later scorer may wait for all of a prompt's candidates, also those not asked here.
            leave = finish if i >= gathering else None
            flow = _streamed(specs[i]["use"], made[i], rule, flow, leave)
    for done in flow:
        finish(done)


def _pool(args: tuple[Any, ...], chunks: Iterable[Any], ray: Ray) -> Iterator[tuple[Any, Any]]:
    if ray.scorer_actors:
        return spread.run(
            load_scorers,
            args,
            chunks,
            workers=ray.cpus_per_actor,
            timeout_s=TIMEOUT_S,
            address=ray.address,
            actors=ray.scorer_actors,
        )
    count = min(len(os.sched_getaffinity(0)), 16)
    return workers.run(load_scorers, args, chunks, workers=count, timeout_s=TIMEOUT_S)


def _failed(failure: workers.Failure, of: int) -> Scores:
    return [_unknown(failure.reason, failure.detail or None), *([None] * (of - 1))]


def by_workers(
    chunks: Iterator[Chunk | None], specs: Specs, rule: Combine, ray: Ray = HERE
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of score rows, each with its stage, by scorers that all run in worker processes."""
    for chunk, got in _pool((specs, rule, True), chunks, ray):
        if isinstance(got, workers.Failure):
            got = _final(chunk, rule, [_failed(got, len(specs))])
        yield chunk.stage, got


def _as_rows(chunk: Chunk) -> list[_Row]:
    return [_Row(prompt, candidate) for prompt, candidate, _ in _members(chunk)]


def _pooled(
    specs: Specs, rule: Combine, source: Iterator[list[_Row]], ray: Ray
) -> Iterator[list[_Row]]:
    for some, got in _pool((specs, rule, False), source, ray):
        if isinstance(got, workers.Failure):
            got = [_failed(got, len(specs))]
        for row, told in zip(some, got, strict=True):
            row.scores.extend(told)
        yield some


def _gathered(source: Iterator[list[_Row]], counts: Counter[str]) -> Iterator[list[_Row]]:
    """The rows of a prompt once they are all there."""
    held: dict[str, list[_Row]] = defaultdict(list)
    for some in source:
        for row in some:
            prompt_id = row.prompt.id
            held[prompt_id].append(row)
            if len(held[prompt_id]) == counts[prompt_id]:
                yield held.pop(prompt_id)
    assert not held, "a prompt has fewer candidates than were counted"


def _streamed(
    use: str,
    scorer: StreamScorer,
    rule: Combine,
    source: Iterator[list[_Row]],
    leave: Callable[[list[_Row]], None] | None,
) -> Iterator[list[_Row]]:
    """The rows with what a stream scorer says of them.

    It is not asked about rows whose verdict is settled, unless it `hears_settled` ones beside others
    of their prompt; then its word on them is left out. Settled rows leave at once, since it may be
    long until it says something again; without `leave` they go on with the others when it does.
    """
    held: dict[str, _Row] = {}
    passed: list[_Row] = []
    hears = getattr(scorer, "hears_settled", False)
    heard: set[str] = set()

    def groups() -> Iterator[tuple[Prompt, list[Candidate]]]:
        for some in source:
            rest = [row for row in some if settled(rule, row.scores)]
            for row in rest:
                row.scores.append(None)
            if rest:
                (leave or passed.extend)(rest)
            asked = [row for row in some if not settled(rule, row.scores)]
            held.update((row.candidate.id, row) for row in asked)
            if hears:
                open_ = {row.prompt.id for row in asked}
                beside = [row for row in rest if row.prompt.id in open_]
                heard.update(row.candidate.id for row in beside)
                asked += beside
            asked.sort(key=lambda row: (row.prompt.id, row.candidate.index, row.candidate.id))
            for _, members in groupby(asked, key=lambda row: row.prompt.id):
                each = list(members)
                yield each[0].prompt, [row.candidate for row in each]

    for id, score in scorer.score(groups()):
        if id in heard:
            heard.remove(id)
            continue
        row = held.pop(id, None)
        if row is None:
            raise RftError(f"score: {use} gave a second score, or one unasked, for {id}")
        try:
            row.scores.append(_checked(score, use))
        except TypeError as fault:
            raise RftError(f"score: {fault}") from None
        yield [row, *passed]
        passed.clear()
    if passed:
        yield passed
    if held:
        raise RftError(
            f"score: {use} gave no score for {len(held)} candidates, for instance {min(held)}: it "
            "must yield one for each that it takes"
        )


def commit(
    folder: Path,
    source: Path,
    label: str,
    seconds: float,
    loops: Loops | None = None,
    **more: Any,
) -> None:
    """Ends a score stage. folder: of its score rows; source: of its candidates; loops: the rule by
    which these were stopped.

    Raises RftError unless each candidate has one verdict.
    """
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    right: set[str] = set()
    spared, spared_right = _spared(source), 0
    count = 0
    for batch in rows.batches(folder, ["id", "verdict", "reason"]):
        count += batch.num_rows
        verdicts.update(batch.column("verdict").to_pylist())
        if loops is not None or spared:
            correct = batch.filter(pc.equal(batch.column("verdict"), str(Verdict.CORRECT)))
            ids = correct["id"].to_pylist()
            if loops is not None:
                right.update(id for id in ids if is_audited(id, loops))
            spared_right += sum(id in spared for id in ids)
        unknown = batch.filter(pc.equal(batch.column("verdict"), str(Verdict.UNKNOWN)))
        # `format:tags` is counted as format: a line a reason, not a line a row.
        told = unknown.column("reason").to_pylist()
        reasons.update((reason or "unknown").partition(":")[0] for reason in told)
    total = rows.count(source)
    if count != total:
        raise RftError(
            f"{label}: {count:,} verdicts on disk for {total:,} candidates, where each has one. "
            f"Delete {folder} and give the same command again."
        )
    if loops is not None:
        more["loops"] = audit(rows.batches(source, AUDIT_COLUMNS), right, loops)
    if spared:
        # Of each of the rejected we expect what the spared were worth.
        rejected = reasons[CUT_OFF[Finish.REJECTED]]
        lost = wilson(spared_right, len(spared))
        more["rejected"] = {
            "rejected": rejected,
            "spared": len(spared),
            "spared_correct": spared_right,
            "correct": verdicts[str(Verdict.CORRECT)],
            "lost": [rejected * share for share in (lost.value, lost.low, lost.high)],
        }
    StageDir(folder).commit(
        seconds,
        rows=count,
        verdicts=dict(verdicts),
        unknown=dict(reasons),
        funnel={"in": total, "out": count, "dropped": {}},
        **more,
    )


def _spared(source: Path) -> set[str]:
    """Candidates that speculative rejection let run on to see what it costs."""
    found: set[str] = set()
    for batch in rows.batches(source, ["id", "spared"]):
        found.update(batch.filter(pc.is_valid(batch.column("spared")))["id"].to_pylist())
    return found


# For rft check, and whoever has pairs in memory --------------------------------------------------


def score_all(
    pairs: Iterable[Pair], specs: Specs, rule: Combine | None = None
) -> Iterator[tuple[Pair, ScoreRow]]:
    """Scores pairs by scorers in worker processes; yields in any order. Ids must differ."""
    flight: dict[str, Pair] = {}
    settled: list[pa.RecordBatch] = []
    source, pace = iter(pairs), Pace()

    def chunks() -> Iterator[Chunk]:
        while some := list(islice(source, pace.rows())):
            flight.update((candidate.id, (prompt, candidate)) for prompt, candidate in some)
            table = rows.table([candidate for _, candidate in some], Candidate).select(COLUMNS)
            rest, cut = split_truncated(table.combine_chunks().to_batches()[0])
            settled.append(cut)
            yield Chunk({prompt.id: prompt for prompt, _ in some}, rest)

    def told(batch: pa.RecordBatch) -> Iterator[tuple[Pair, ScoreRow]]:
        pace.done += batch.num_rows
        for row in rows.objects(batch, ScoreRow):
            yield flight.pop(row.id), row

    for _, batch in by_workers(chunks(), specs, rule or Combine()):
        yield from told(batch)
        while settled:
            yield from told(settled.pop())
    while settled:
        yield from told(settled.pop())
