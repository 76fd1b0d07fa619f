"""Stage 4: which candidates become training rows, and why the others do not.

The pools (the data set's own solutions, and what each policy sampled) are brought together prompt
by prompt, references first. Each selector sees what the one before it kept. Prompts stream through
the whole chain, so that millions of candidates fit; a selector that must see all of them goes over
them twice instead of holding them. Every candidate gets a row with its reason, and the stage stops
the run if nothing is left to train on: fine-tuning on nothing, or on references alone in the belief
that samples were added, is a known failure of peers.
"""

import contextlib
import dataclasses
import functools
import gc
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rft import collapse, components, process, rows
from rft.chat import Renderer
from rft.config import Chat, Model
from rft.groups import Partitions, Source
from rft.rundir import StageDir
from rft.section import Component
from rft.tallies import KEYS
from rft.types import (
    Candidate,
    ChoiceRow,
    Finish,
    Group,
    Prompt,
    RftError,
    Score,
    Scored,
    TrainRow,
    Verdict,
)
from rft.weights import weights


def run(jobs: list[dict[str, Any]]) -> None:
    renderers: dict[str, Renderer] = {}
    for job in jobs:
        folder = Path(job["folder"])
        if StageDir(folder).manifest() is None:
            _select(job, folder, renderers)


def apply(selectors: list[Any], groups: Iterable[Group], tell: Callable[[ChoiceRow], None]) -> None:
    """Runs selectors one after the other; tells each candidate's fate as soon as it is settled.

    groups: can be gone through more than once, as a list can. Raises RftError if a selector loses a
    row: every row must come back, kept or with a reason.
    """
    fates: Fates = {}
    left = groups
    for number, selector in enumerate(selectors):
        left = _Kept(number, selector, left, groups, fates, tell)
    for group in left:
        for row in group.rows:
            tell(ChoiceRow(row.candidate.id, row.candidate.prompt_id, None))


Fates = dict[str, dict[int, str]]
"""Of each prompt, by the selectors' numbers, the ids of the candidates that they dropped. Joined into
one text, since millions of texts of their own cost ten times the memory."""


class _Kept:
    """The groups as a selector leaves them: going through them runs the selector.

    The second time nothing is run: what has been dropped is known by then. That is how a selector
    over all prompts can count first and choose afterwards.
    """

    def __init__(
        self,
        number: int,
        selector: Any,
        given: Iterable[Group],
        groups: Iterable[Group],
        fates: Fates,
        tell: Callable[[ChoiceRow], None],
    ):
        self.number, self.selector, self.given, self.groups = number, selector, given, groups
        self.fates, self.tell = fates, tell
        self.complete = False

    def __iter__(self) -> Iterator[Group]:
        return self._again() if self.complete else self._first()

    def _again(self) -> Iterator[Group]:
        """The groups with the rows that no selector up to this one has dropped."""
        for group in self.groups:
            dropped: set[str] = set()
            for number, ids in self.fates.get(group.prompt.id, {}).items():
                if number <= self.number:
                    dropped.update(ids.split("\n"))
            members = tuple(r for r in group.rows if r.candidate.id not in dropped)
            if members:
                yield Group(group.prompt, members)

    def _first(self) -> Iterator[Group]:
        waiting: dict[str, _Waiting] = {}
        for choice in self._choices(waiting):
            try:
                row, reason = choice
                id, prompt_id = row.candidate.id, row.candidate.prompt_id
            except (AttributeError, TypeError, ValueError):
                raise RftError(
                    f"select.{self.number}: a selector must yield (row, reason), not {choice!r:.80}"
                ) from None
            one = waiting.get(prompt_id)
            if one is None or not one.take(id):
                raise RftError(f"select.{self.number}: candidate {id} came back twice")
            if isinstance(reason, str):
                one.dropped[id] = reason
            elif reason is None:
                one.kept[id] = row
            else:
                raise RftError(
                    f"select.{self.number}: a reason must be text or None, not {reason!r}"
                )
            if not one.missing:
                del waiting[prompt_id]
                yield from self._settle(one)
        if waiting:
            lost = sorted(id for one in waiting.values() for id in one.left())
            raise RftError(
                f"select.{self.number}: {len(lost)} candidates vanished without a reason, for "
                f"instance {lost[0]}: a selector must yield every row it is given"
            )
        self.complete = True

    def _settle(self, one: "_Waiting") -> Iterator[Group]:
        """Writes down what was dropped of a prompt, and hands on what was kept."""
        known = self.fates.setdefault(one.prompt.id, {})
        if one.dropped and self.number not in known:  # else it is gone through for the second time
            known[self.number] = "\n".join(one.dropped)
            for id, reason in one.dropped.items():
                self.tell(ChoiceRow(id, one.prompt.id, reason))
        if one.kept:
            # In the order that they had, whatever order the selector gave them back in.
            ids = one.ids.split("\n")
            yield Group(one.prompt, tuple(one.kept[id] for id in ids if id in one.kept))

    def _choices(self, waiting: "dict[str, _Waiting]") -> Iterator[Any]:
        """What the selector yields; its ValueError or TypeError is the user's to fix."""
        try:
            yield from self.selector(_Watched(self.given, waiting))
        except (TypeError, ValueError) as fault:
            raise RftError(f"select.{self.number}: {type(fault).__name__}: {fault}") from fault


@dataclass(slots=True)
class _Waiting:
    """A prompt on its way through a selector. Its rows are held from when they come back: a selector
    that goes over all prompts before it chooses would hold them all otherwise."""

    prompt: Prompt
    ids: str
    """Joined into one text, as in `Fates`."""
    missing: int
    kept: dict[str, Scored] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    _left: set[str] | None = None

    def left(self) -> set[str]:
        """Ids that have not come back."""
        if self._left is None:
            self._left = set(self.ids.split("\n"))
        return self._left

    def take(self, id: str) -> bool:
        """Whether an id was missing; it is not any more."""
        if id not in self.left():
            return False
        self.left().remove(id)
        self.missing -= 1
        return True


class _Watched:
    """The groups that a selector is given, noted as it takes them."""

    def __init__(self, groups: Iterable[Group], waiting: dict[str, _Waiting]):
        self.groups, self.waiting = groups, waiting

    def __iter__(self) -> Iterator[Group]:
        return map(self._note, self.groups)

    def _note(self, group: Group) -> Group:
        ids = "\n".join([row.candidate.id for row in group.rows])
        self.waiting[group.prompt.id] = _Waiting(group.prompt, ids, len(group.rows))
        return group


_SCORE = [f.name for f in dataclasses.fields(Score)]
_VERDICTS = {str(verdict): verdict for verdict in Verdict}


class Pools:
    """A job's candidates with their scores, prompt by prompt, in the order of prompt ids."""

    def __init__(self, job: dict[str, Any], scratch: Path):
        self.prompts = {p.id: p for p in rows.read(Path(job["prompts"]), Prompt)}
        sources = []
        for pool in job["pools"]:
            columns = ["id", "prompt_id", "index", "text", "finish", "logprob", "token_ids"]
            sources.append(Source(Path(pool["sample"]), columns, _count_tokens))
            sources.append(Source(Path(pool["score"]), ["id", "prompt_id", *_SCORE]))
        self.partitions = Partitions(sources, scratch)
        self._held: list[Group] | None = None

    def __iter__(self) -> Iterator[Group]:
        if self._held is not None:
            yield from self._held
            return
        few = self.partitions.number == 1
        for tables in self.partitions:
            groups = self._groups(tables)
            if few:
                self._held = groups
            yield from groups
            gc.collect()  # what `_rarely_collecting` puts off

    def _groups(self, tables: list[pa.Table]) -> list[Group]:
        by_prompt: dict[str, list[Scored]] = defaultdict(list)
        # Pools of the same policy and settings have samples in common.
        seen: set[str] | None = set() if len(tables) > 2 else None
        for candidates, scores in zip(tables[::2], tables[1::2]):
            if not candidates.num_rows:
                continue
            # Aligned by Arrow, which is three times as quick as a dictionary of score rows.
            scored = scores.column("id").combine_chunks()
            scores = scores.take(pc.index_in(candidates.column("id"), value_set=scored))
            told = {name: scores.column(name).to_pylist() for name in _SCORE}
            told["verdict"] = [_VERDICTS[verdict] for verdict in told["verdict"]]
            counts = candidates.column("tokens").to_pylist()
            for row in map(
                Scored, rows.objects(candidates, Candidate), map(Score, *told.values()), counts
            ):
                if seen is not None:
                    if row.candidate.id in seen:
                        continue
                    seen.add(row.candidate.id)
                by_prompt[row.candidate.prompt_id].append(row)
        groups = []
        for prompt_id in sorted(by_prompt):
            members = by_prompt[prompt_id]
            # Files hold candidates in the order they finished; the result must not depend on it.
            members.sort(key=lambda r: (not r.is_reference, r.candidate.index, r.candidate.id))
            groups.append(Group(self.prompts[prompt_id], tuple(members)))
        return groups


@contextlib.contextmanager
def _rarely_collecting() -> Iterator[None]:
    """Millions of small objects come and go here, and no cycles among them: looking for some took a
    third of the time."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _count_tokens(batch: pa.RecordBatch) -> pa.RecordBatch:
    counts = pc.list_value_length(batch.column("token_ids"))
    names = [name for name in batch.schema.names if name != "token_ids"]
    return pa.RecordBatch.from_arrays(
        [*(batch.column(name) for name in names), counts], names=[*names, "tokens"]
    )


def _watch(job: dict[str, Any]) -> dict[str, Any]:
    """How much variety this round's samples have, for the manifest. Raises RftError if it has
    collapsed and the run is to stop then."""
    spec = job["rounds"]

    def measured(paths: list[dict[str, str]]) -> collapse.Variety | None:
        pools = Pools({**job, "pools": paths}, Path(job["folder"]) / ".scratch")
        try:
            return collapse.measure(pools, KEYS[spec["distinct"]])
        finally:
            pools.partitions.close()

    now = measured(spec["pools"])
    if now is None:
        return {}
    found: dict[str, Any] = {"round": spec["number"], "variety": now.as_dict()}
    first = measured(spec["first"]) if spec["first"] else None
    if first:
        found["collapse"] = collapse.signs(first, now)
        if found["collapse"]:
            told = f"{job['label']}: since the first round: {'; '.join(found['collapse'])}"
            if spec["on_collapse"] == "stop":
                raise RftError(
                    f"{told}. Stopped before training on it (rounds.on_collapse: stop). Set it to warn "
                    f"to go on, or rounds.n to {spec['number'] - 1} to end with the last good round; a "
                    "higher temperature, survivors: keep and init: base keep more variety."
                )
            process.say(f"  warning: {told}")
    return found


def _select(job: dict[str, Any], folder: Path, renderers: dict[str, Renderer]) -> None:
    started = time.monotonic()
    watched = _watch(job) if job.get("rounds") else {}
    selectors = []
    for spec in job["selectors"]:
        args = dict(spec["args"])
        for key, stage in spec["counts"].items():
            manifest = StageDir(Path(stage)).manifest()
            assert manifest is not None
            args[key] = manifest["sampled"]
        selectors.append(components.make("selectors", Component(use=spec["use"], args=args)))
    for inner in ("choices", "train"):
        rows.clear(folder / inner)
    pools = Pools(job, folder / ".scratch")
    dropped: Counter[str] = Counter()
    chosen: list[str] = []
    weighed: dict[str, float] = {}
    progress = process.Progress(job["label"], pools.partitions.counts.total() // 2)

    def tell(choice: ChoiceRow) -> None:
        progress.step()
        writer.add(choice)
        if choice.reason is None:
            chosen.append(choice.id)
        else:
            # `overlap:1a2b3c4d` is counted as overlap: a line a reason, not a line a row.
            dropped[choice.reason.partition(":")[0]] += 1

    try:
        with (
            _rarely_collecting(),
            rows.Writer(folder / "choices", ChoiceRow, rows=65536, seconds=600) as writer,
        ):
            apply(selectors, pools, tell)
            if job.get("loss") and chosen:
                weighed = weights(pools, set(chosen), job["loss"], job["label"])
    finally:
        progress.close()
        pools.partitions.close()
    total, sampled = len(chosen) + dropped.total(), 0
    negatives = [id for id, weight in weighed.items() if weight < 0]
    if chosen:
        left = _chosen(job, pa.array(chosen + negatives, pa.string()))
        sampled = sum(finish != Finish.REFERENCE for finish in left.column("finish").to_pylist())
        sampled -= len(negatives)
    funnel = {"in": total, "out": len(chosen), "dropped": dict(dropped.most_common())}
    if not chosen or (job["must_sample"] and not sampled):
        lost = ", ".join(f"{n:,} {reason}" for reason, n in dropped.most_common())
        what = "sampled candidate" if chosen else "candidate"
        raise RftError(
            f"{job['label']}: no {what} of {total:,} is left to train on ({lost}). Nothing "
            "was trained. Look at some with `rft show`, then check the scorer, raise sample.n or "
            "sample.max_tokens, or start from a stronger policy."
        )
    name = str(job["model"]["base"]) + str(job["chat"])
    if name not in renderers:
        renderers[name] = Renderer(Model(**job["model"]), Chat(**job["chat"]))
    _write_train(job, left, pools.prompts, renderers[name], weighed)
    StageDir(folder).commit(
        time.monotonic() - started,
        rows=len(chosen),
        sampled=sampled,
        prompts=len(left.column("prompt_id").unique()),
        **({"negatives": len(negatives)} if "negatives" in job.get("loss", {}) else {}),
        funnel=funnel,
        **watched,
    )


def _chosen(job: dict[str, Any], ids: pa.Array) -> pa.Table:
    """The chosen candidates with their tokens, in an order that follows from the rows alone, and the
    number of the pool that each is of."""
    columns = [f.name for f in dataclasses.fields(Candidate)]
    if not _needs_logprobs(job):
        columns.remove("token_logprobs")
    kept: list[pa.RecordBatch] = []
    for number, pool in enumerate(job["pools"]):
        before = len(kept)
        for batch in rows.batches(Path(pool["sample"]), columns):
            batch = batch.filter(pc.is_in(batch.column("id"), value_set=ids))
            kept.append(batch.append_column("number", pa.array([number] * len(batch), pa.int16())))
        # The first of the pools that have a sample in common counts as its own.
        for batch in kept[before:]:
            ids = ids.filter(pc.invert(pc.is_in(ids, value_set=batch.column("id"))))
    table = pa.Table.from_batches(kept, kept[0].schema)
    sampled = pc.not_equal(table.column("finish"), str(Finish.REFERENCE)).cast(pa.int8())
    keys = ["prompt_id", "sampled", "index", "id"]
    order = pc.sort_indices(
        table.append_column("sampled", sampled).select(keys),
        sort_keys=[(key, "ascending") for key in keys],
    )
    return table.take(order)


def _needs_logprobs(job: dict[str, Any]) -> bool:
    return "logprobs" in job.get("loss", {})


def _write_train(
    job: dict[str, Any],
    table: pa.Table,
    prompts: dict[str, Prompt],
    renderer: Renderer,
    weighed: dict[str, float],
) -> None:
    """The training rows: tokens as they were sampled wherever they are the trained model's own."""
    asked = functools.lru_cache(maxsize=1024)(renderer.prompt_ids)
    folder = Path(job["folder"]) / "train"
    with rows.Writer(folder, TrainRow, rows=16384, seconds=600) as writer:
        for batch in table.to_batches(max_chunksize=4096):
            numbers = batch.column("number").to_pylist()
            for number, c in zip(numbers, rows.objects(batch, Candidate)):
                pool = job["pools"][number]
                ids = (
                    renderer.train_ids(c) if pool["own_tokens"] else renderer.completion_ids(c.text)
                )
                prompt = c.prompt_token_ids
                if not (pool["own_tokens"] and pool["own_prompts"]):
                    # Asked in another way, or of another model: learnt as the answer to the question.
                    prompt = asked(prompts[c.prompt_id].question)
                is_reference = c.finish is Finish.REFERENCE
                weight, known = weighed.get(c.id, 1.0), _needs_logprobs(job) and not is_reference
                told = _logprobs(c, ids) if known else ()
                writer.add(
                    TrainRow(c.id, c.prompt_id, prompt, ids, is_reference, c.pool, weight, told)
                )


def _logprobs(candidate: Candidate, ids: tuple[int, ...]) -> tuple[float, ...]:
    """Of the tokens to learn as far as they are those that were sampled: a stop string has made way for
    an EOS. Raises RftError where the sampler gave none."""
    if candidate.token_logprobs is None:
        raise RftError(
            f"train.loss.clip: candidate {candidate.id} has no log-probabilities of its tokens. Sample "
            "with logprobs: tokens from a sampler that gives them, or set train.loss.clip to null"
        )
    both = zip(ids, candidate.token_ids, candidate.token_logprobs)
    same = itertools.takewhile(lambda one: one[0] == one[1], both)
    return tuple(logprob for _, _, logprob in same)


if __name__ == "__main__":
    process.stage_main(run)
