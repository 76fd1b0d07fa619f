"""Scoring while something else goes on: verdicts on candidates as soon as these are there.

A thread hands candidates to the scorers' worker processes (rft/scoring.py), so that an engine in the
same process does not wait for them.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator

import pyarrow as pa

from rft import rows
from rft.config import Combine, Ray
from rft.scoring import COLUMNS, HERE, Chunk, Pace, Specs, by_workers, split_truncated
from rft.types import Candidate, Prompt

MOST = 20_000
"""Candidates that may wait for their verdicts."""


class _Stopped(Exception):
    """Ends the thread though there is work left."""


class Beside:
    """Scores candidates of several stages that have the same scorers."""

    def __init__(self, specs: Specs, rule: Combine, ray: Ray = HERE):
        self.pending = 0
        """Candidates given, and not taken back as verdicts."""
        self.fault: Exception | None = None
        """What stopped it: a scorer that can't be made. It takes nothing more then."""
        self._specs, self._rule, self._ray = specs, rule, ray
        self._in: dict[int, deque[tuple[Prompt, Candidate]]] = {}
        self._out: queue.SimpleQueue[tuple[int, pa.RecordBatch] | None] = queue.SimpleQueue()
        self._stopped = False
        self._pace = Pace()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts a worker process, which takes a second; the first candidate does so otherwise."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def give(self, stage: int, prompt: Prompt, candidate: Candidate) -> None:
        """Asks for the verdict of a candidate of the stage with this number."""
        if self.fault:
            return
        self.pending += 1
        self._in.setdefault(stage, deque()).append((prompt, candidate))
        self.start()

    def take(self, wait_s: float = 0) -> list[tuple[int, pa.RecordBatch]]:
        """Score rows, each batch with its stage's number; waits so long for the first of them."""
        found: list[tuple[int, pa.RecordBatch]] = []
        try:
            while True:
                got = self._out.get(timeout=wait_s) if wait_s else self._out.get_nowait()
                wait_s = 0
                if got is None:
                    self.pending = 0
                    return found
                self.pending -= got[1].num_rows
                found.append(got)
        except queue.Empty:
            return found

    def close(self) -> None:
        """Ends the worker processes. What has not been taken by then is not scored."""
        self._stopped = True
        if self._thread is not None:
            # One that waits for a stuck item ends with this process.
            self._thread.join(timeout=2)

    def _work(self) -> None:
        try:
            for stage, batch in by_workers(self._chunks(), self._specs, self._rule, self._ray):
                self._pace.done += batch.num_rows
                self._out.put((stage, batch))
        except _Stopped:
            pass
        except Exception as fault:
            self.fault = fault
        self._out.put(None)

    def _chunks(self) -> Iterator[Chunk | None]:
        while True:
            if self._stopped:
                raise _Stopped
            idle = True
            for stage, waiting in list(self._in.items()):
                some = [waiting.popleft() for _ in range(min(len(waiting), self._pace.rows()))]
                if not some:
                    continue
                idle = False
                table = rows.table([candidate for _, candidate in some], Candidate, COLUMNS)
                rest, cut = split_truncated(table.combine_chunks().to_batches()[0])
                if cut.num_rows:
                    self._out.put((stage, cut))
                yield Chunk({prompt.id: prompt for prompt, _ in some}, rest, stage)
            if idle:
                yield None
