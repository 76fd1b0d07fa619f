"""Not a model: samples that are there already, from a finished run or from somebody else's files.

A request for a prompt's i-th sample is answered by the prompt's i-th row of the source, so a pool
can be scored, selected and trained on again without a GPU, and so can samples of another tool. A
prompt may have fewer rows than are asked for: `available` says how many, and the sample stage asks
for no more.

The source is read once from end to end, and no text stays in memory: 80 bytes of each at the most
while it is read (measured with 1,000,000), 16 afterwards. A text is read again when it is asked for,
from a JSON Lines file at its place, from anything else out of a temporary file in $TMPDIR, or in
/var/tmp.
"""

import contextlib
import functools
import os
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rft import process
from rft.prompts import normalised
from rft.rundir import StageDir
from rft.samplers import _source
from rft.samplers._common import budget, completion_text, until_stop
from rft.samplers._source import STAGE, Fields, Item, Unusable
from rft.types import Candidate, Finish, Prompt, Request, RftError, Sampler, Setup, digest


def replay(
    setup: Setup,
    *,
    path: str | list[str],
    prompt_id: str | None = None,
    question: str | None = None,
    text: str | None = None,
    finish: str | None = None,
    logprob: str | None = None,
    token_ids: str | None = None,
    repeats: Literal["drop", "keep"] = "drop",
) -> Sampler:
    """`use: replay`. Raises RftError if a source can't be read, or none of its rows can be used.

    A row's text is tokenised here and gets the EOS token if it was finished; token ids of the source
    are kept where they decode to the text with this model's tokenizer. A text that is longer than
    `max_tokens` or that holds a stop string ends there, as a sample would have.

    path: a sample stage's folder, an arm's seed (`runs/NAME/rft/seed0`) or a run; or a file, or a
    folder of files: JSON Lines (also .gz, .zst) or Parquet. Or a list of these.
    prompt_id: field with the prompt's id; by default `prompt_id`, if there is one.
    question: field with the question's text, or with a chat whose last user message it is; compared
    with case, spaces and punctuation aside where it isn't the same. By default a common name.
    text: field with one answer, a chat that ends in it, or a list of answers. By default a common name.
    finish: field that says why a text ends: `stop`, `length`, or other tools' words for these; a text
    without one counts as finished.
    logprob: field with the summed log-probability, in nats.
    token_ids: field with the completion's token ids.
    repeats: `drop` leaves out a text that its prompt has had already; `keep` takes it as another
    sample. Candidates of a run are told apart by their ids, and kept.
    """
    given = Fields(prompt_id, question, text, finish, logprob, token_ids)
    return Replay(setup, _listed(path), given, repeats == "keep")


def _listed(path: str | list[str]) -> list[str]:
    return [path] if isinstance(path, str) else path


def _check_args(args: dict[str, Any]) -> None:
    """Raises RftError for a path that can't be a source, before anything is run."""
    if "path" in args:
        _source.sources(_listed(args["path"]))


replay.check_args = _check_args  # type: ignore[attr-defined]


class Replay:
    def __init__(self, setup: Setup, paths: list[str], given: Fields, keep_repeats: bool):
        began = time.monotonic()
        self._setup = setup
        self._pool = Pool(_source.sources(paths), given, setup.prompts, keep_repeats)
        self._special = frozenset(setup.renderer.tokenizer.all_special_ids)
        self._vocabulary = len(setup.renderer.tokenizer)
        self._stats = dict.fromkeys(("requests", "tokens", "retokenised", "shortened"), 0)
        self._read_s = time.monotonic() - began
        process.say(f"  replay: {self._pool.summary()}")

    def available(self, prompt_id: str) -> int:
        """How many samples of a prompt there are; requests have indices below it."""
        return self._pool.available(prompt_id)

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]:
        """Yields one candidate a request. Raises RftError for an index that the source lacks."""
        for request in filter(None, requests):
            if request.adapter is not None:
                raise RftError(
                    "use: replay: its samples are what they are, and not from the adapter "
                    f"{request.adapter}: set policy: base (an arm's evaluation can't be replayed)"
                )
            count = self.available(request.prompt_id)
            if request.index >= count:
                raise RftError(
                    f"use: replay: the source has {count} samples of prompt {request.prompt_id}, "
                    f"and number {request.index + 1} was asked for: set a lower n"
                )
            yield self._candidate(request, self._pool.item(request.prompt_id, request.index))

    def _candidate(self, request: Request, item: Item) -> Candidate:
        renderer, stop = self._setup.renderer, request.decoding.stop
        limit = budget(request, self._setup.model.max_len)
        text = until_stop(item.text, stop)
        ends = text != item.text
        finish = Finish.STOP if ends else item.finish
        logprob = None if ends else item.logprob
        ids, logprobs = None if ends else self._own_ids(item, stop), item.token_logprobs
        if ids is None:
            self._stats["retokenised"] += 1
            ids, logprobs = renderer.completion_ids(text), None
            if finish is not Finish.STOP:
                ids = ids[:-1]
        if len(ids) > limit:
            self._stats["shortened"] += 1
            ids, finish = ids[:limit], Finish.LENGTH
            text = completion_text(renderer, ids, stop)
            logprob = sum(logprobs[:limit]) if logprobs else None
        if request.decoding.logprobs != "tokens" or len(logprobs or ()) < len(ids):
            logprobs = None
        self._stats["requests"] += 1
        self._stats["tokens"] += len(ids)
        return Candidate(
            id=request.id,
            prompt_id=request.prompt_id,
            index=request.index,
            text=text,
            prompt_token_ids=request.prompt_token_ids,
            token_ids=ids,
            finish=finish,
            logprob=logprob,
            token_logprobs=logprobs and logprobs[: len(ids)],
        )

    def _own_ids(self, item: Item, stop: list[str]) -> tuple[int, ...] | None:
        """The source's ids, if they say the text in this tokenizer's tokens; with its end's token."""
        renderer, ids = self._setup.renderer, item.token_ids
        if not ids or max(ids) >= self._vocabulary:
            return None
        ended = ids[-1] in self._special
        body = ids[:-1] if ended else ids
        if self._special.intersection(body) or completion_text(renderer, body, stop) != item.text:
            return None
        if item.finish is not Finish.STOP:
            return body
        # A stop string ends a sample without a token of its own.
        by_string = len(renderer.decode(body)) > len(item.text)
        return ids if ended or by_string else (*ids, renderer.eos_id)

    def stats(self) -> dict[str, float]:
        """Counts of the source's rows by what became of them, and of what was given out."""
        return {**self._pool.counts, **self._stats, "source_read_s": self._read_s}

    def close(self) -> None:
        self._pool.close()


class Pool:
    """Where the rows of all sources lie, by prompt and in the order of the source."""

    def __init__(
        self,
        sources: list[Path],
        given: Fields,
        prompts: Mapping[str, Prompt],
        keep_repeats: bool,
    ):
        self._sources, self._given, self._keep = sources, given, keep_repeats
        self._names: list[Fields] = []
        """The fields of each source."""
        self._prompts = _Prompts(prompts)
        self.counts: Counter[str] = Counter(source_rows=0, source_samples=0, usable=0)
        """Rows and texts that were read, texts that can be asked for, and what was left out, by
        reason."""
        self._first: dict[str, str] = {}
        # One entry a text: its prompt, its source, the byte it starts at in the source or in the
        # temporary file, which of its row's texts it is, its own number in a run, and its hash.
        self._at = {name: array(code) for name, code in _COLUMNS.items()}
        self._items = functools.lru_cache(maxsize=16)(self._read_again)
        self._spool = _Spool()
        for number in range(len(sources)):
            self._scan(number)
        self._sort()
        if not self.counts["usable"]:
            raise RftError(
                f"use: replay: none of the rows can be used: {self.summary()}. Name the right fields "
                "in args (question, text and others), or check that these are samples of the prompts"
            )

    def available(self, prompt_id: str) -> int:
        at = self._prompts.number(prompt_id)
        return 0 if at is None else int(self._starts[at + 1] - self._starts[at])

    def item(self, prompt_id: str, index: int) -> Item:
        """A prompt's text number `index`, below `available(prompt_id)`."""
        at = self._prompts.number(prompt_id)
        assert at is not None and 0 <= index < self.available(prompt_id)
        row = self._starts[at] + index
        source, place, nth = (int(self._rows[name][row]) for name in ("source", "place", "nth"))
        if not self._in_place(source):
            return self._spool.read(place)
        return self._items(source, place)[nth]

    def _read_again(self, source: int, place: int) -> dict[int, Item]:
        path = self._sources[source]
        try:
            with open(path, "rb") as file:
                file.seek(place)
                row = _source.parsed(file.readline())
            found = enumerate(_source.items(row, self._names[source]))
            return {nth: item for nth, item in found if isinstance(item, Item)}
        except (OSError, Unusable) as fault:
            raise RftError(
                f"use: replay: args.path: {path}: cannot be read at byte {place} any more: {fault}"
            ) from fault

    def _in_place(self, source: int) -> bool:
        return _source.is_plain(self._sources[source])

    def close(self) -> None:
        self._spool.close()

    def summary(self) -> str:
        """One sentence for people: what was found, and what was left out for which reason."""
        counts = self.counts
        where = f"{len(self._sources)} sources" if len(self._sources) > 1 else self._sources[0]
        text = (
            f"{counts['usable']:,} samples of {counts['prompts']:,} prompts "
            f"({counts['source_rows']:,} rows in {where})"
        )
        left_out = [
            f"{counts[reason]:,} {reason} (first: {self._first[reason]})" for reason in self._first
        ]
        return "; left out: ".join([text, *([", ".join(left_out)] if left_out else [])])

    # ---- reading ----

    def _scan(self, number: int) -> None:
        path = self._sources[number]
        if path.is_dir() and StageDir(path).inputs():
            self._names.append(STAGE)
            for row in _source.stage_rows(path):
                self._take(number, row, f"{path}: candidate {row['id']}")
        elif path.name.endswith(".parquet"):
            columns = _source.parquet_names(path)
            self._names.append(self._given.completed(columns, f"{path}:"))
            for at, row in enumerate(_source.parquet_rows(path, self._names[-1]), 1):
                self._take(number, row, f"{path}: row {at}")
        else:
            names: Fields | None = None
            for line_number, place, line in _source.lines(path):
                if not line.strip():
                    continue
                where = f"{path}:{line_number}"
                try:
                    row = _source.parsed(line)
                except Unusable as fault:
                    self.counts["source_rows"] += 1
                    self._leave_out(fault, where)
                    continue
                if names is None:
                    names = self._given.completed(list(row), where)
                    self._names.append(names)
                self._take(number, row, where, place)
            if names is None:
                self._names.append(self._given)

    def _take(self, number: int, row: dict[str, Any], where: str, place: int = 0) -> None:
        """Writes down where a row's texts are. place: the byte it starts at."""
        names = self._names[number]
        self.counts["source_rows"] += 1
        try:
            found = _source.items(row, names)
            self.counts["source_samples"] += len(found)
            prompt = self._prompts.of(row, names)
        except Unusable as fault:
            self._leave_out(fault, where)
            return
        own_id = row["id"] if names is STAGE else None
        for nth, item in enumerate(found):
            if isinstance(item, Unusable):
                self._leave_out(item, where)
                continue
            told_apart = own_id or item.text
            entry = {
                "prompt": prompt,
                "source": number,
                "place": place,
                "nth": nth,
                "index": row["index"] if names is STAGE else 0,
                "hash": int.from_bytes(blake2b(told_apart.encode(), digest_size=8).digest()),
            }
            if not self._in_place(number):
                entry["place"] = self._spool.write(item)
            for name, value in entry.items():
                self._at[name].append(value)

    def _leave_out(self, fault: Unusable, where: str) -> None:
        self.counts[fault.reason] += 1
        self._first.setdefault(fault.reason, f"{where}: {fault.detail}"[:300])

    def _sort(self) -> None:
        """Orders the entries by prompt, source, index in a run and place, each text of a prompt once."""
        columns = {name: np.asarray(values) for name, values in self._at.items()}
        order = np.lexsort(
            [columns[name] for name in ("nth", "place", "index", "source", "hash", "prompt")]
        )
        prompt, mark = columns["prompt"][order], columns["hash"][order]
        again = np.zeros(len(order), bool)
        again[1:] = (prompt[1:] == prompt[:-1]) & (mark[1:] == mark[:-1])
        if self._keep:
            # An id stands for one candidate, however often its stage is named.
            again &= np.array([n is STAGE for n in self._names])[columns["source"][order]]
        if again.any():
            self.counts["repeated"] = int(again.sum())
            first = columns["source"][order[np.argmax(again)]]
            self._first["repeated"] = str(self._sources[first])
        kept = np.sort(order[~again])
        del order, prompt, mark, again
        names = ("nth", "place", "index", "source", "prompt")
        kept = kept[np.lexsort([columns[name][kept] for name in names])]
        self._rows = {name: columns[name][kept] for name in ("source", "place", "nth")}
        count = len(self._prompts)
        self._starts = np.searchsorted(columns["prompt"][kept], np.arange(count + 1))
        self.counts["usable"] = len(kept)
        self.counts["prompts"] = int((np.diff(self._starts) > 0).sum())
        del columns
        self._at.clear()


_COLUMNS = {"prompt": "I", "source": "I", "place": "Q", "nth": "I", "index": "I", "hash": "Q"}
"""Of the table of texts, with their types: 32 bytes a text."""


class _Spool:
    """Texts in a temporary file without a name, which is gone when the process is."""

    def __init__(self) -> None:
        self._folder = os.environ.get("TMPDIR") or "/var/tmp"
        with self._errors():
            self._file: Any = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        self._end = 0

    def write(self, item: Item) -> int:
        """Returns the place to read it at."""
        place = self._end
        with self._errors():
            self._end += self._file.write(item.packed())
        return place

    def read(self, place: int) -> Item:
        with self._errors():
            self._file.seek(place)
            return Item.unpacked(self._file.readline())

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise RftError(
                f"use: replay: its temporary file in {self._folder}: {fault}. Set TMPDIR to a folder "
                "with room for all texts of the source"
            ) from fault

    def close(self) -> None:
        # What is left to write has no reader any more, and may not fit on the disk.
        with contextlib.suppress(OSError):
            self._file.close()


class _Prompts:
    """Finds a row's prompt: by its id, by the exact question, by the question in its plain form."""

    def __init__(self, prompts: Mapping[str, Prompt]):
        self._prompts = prompts
        self._numbers = {id: at for at, id in enumerate(prompts)}
        self._find = functools.lru_cache(maxsize=4096)(self._by_question)

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, prompt_id: str) -> int | None:
        return self._numbers.get(prompt_id)

    def of(self, row: dict[str, Any], names: Fields) -> int:
        """Number of a row's prompt. Raises Unusable if there is none."""
        id = row.get(names.prompt_id) if names.prompt_id else None
        if isinstance(id, str) and id in self._numbers:
            return self._numbers[id]
        given = row.get(names.question) if names.question else None
        question = _source.said(given, "user")
        found = None if question is None else self._find(question)
        if found is None:
            named = f"question {question or given!r}" if names.question else f"id {id!r}"
            raise Unusable("no_such_prompt", f"no prompt has the {named[:120]}")
        return found

    def _by_question(self, question: str) -> int | None:
        exact = self._numbers.get(digest(question))
        return self._plain.get(normalised(question)) if exact is None else exact

    @functools.cached_property
    def _plain(self) -> dict[str, int]:
        """Plain form -> number, where only one prompt has that form."""
        found: dict[str, int] = {}
        twice: set[str] = set()
        for id, prompt in self._prompts.items():
            form = normalised(prompt.question)
            if found.setdefault(form, self._numbers[id]) != self._numbers[id]:
                twice.add(form)
        return {form: at for form, at in found.items() if form not in twice}
