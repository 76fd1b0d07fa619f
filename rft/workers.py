"""Worker processes that can be killed, so that every check of model text has a deadline.

A signal or a thread cannot stop a loop inside a C library, and only a process's death frees its
memory. So items go to worker processes in chunks; each worker writes to shared memory which item
it has begun and when, and if that was longer ago than the deadline, the worker is killed, the item is
reported as failed, and the rest of its chunk goes to a fresh worker.
"""

import contextlib
import multiprocessing as mp
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rft.process import die_with_parent
from rft.types import RftError

START_S = 120
"""Seconds that a worker has to start in."""

LOOK_S = 0.25
"""Seconds between two looks at what the workers do: a deadline is held to within that."""


@dataclass(frozen=True)
class Failure:
    """Why an item has no result: `timeout`, `crashed`, or `error` with what was raised."""

    reason: str
    detail: str = ""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    begun: Any
    """Shared memory: how many items of the chunk are begun, and when the last one was. One clock
    (CLOCK_MONOTONIC) serves all processes."""
    started: bool = False
    has_worked: bool = False
    chunk: Any = None


def _serve(
    make: Callable[..., Any], args: Any, pipe: Connection, begun: Any, memory_gb: float
) -> None:
    # A worker that hangs in C would not see that its pipe is closed.
    die_with_parent()
    try:
        work = make(*args)
        # Writable memory, not address space, of which GPU libraries reserve terabytes.
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        most = pages * resource.getpagesize() + int(memory_gb * (1 << 30))
        resource.setrlimit(
            resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1])
        )
    except BaseException as fault:
        pipe.send(Failure("error", f"{type(fault).__name__}: {fault}"))
        raise
    pipe.send(None)

    def begin(i: int) -> None:
        begun[:] = i + 1, time.monotonic()

    while True:
        try:
            chunk = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            results = work(chunk, begin)
        except Exception as fault:
            results = Failure("error", f"{type(fault).__name__}: {fault}")
        pipe.send(results)


def run(
    make: Callable[..., Callable[[Any, Callable[[int], None]], Any]],
    args: tuple[Any, ...],
    chunks: Iterable[Any],
    *,
    workers: int,
    timeout_s: float,
    memory_gb: float = 4.0,
) -> Iterator[tuple[Any, Any]]:
    """Yields (chunk, results) for chunks of items as they are done, in any order.

    make(*args) is called once in each worker process and gives `work(chunk, begin)`, which returns
    the results of a chunk and calls `begin(i)` before it starts item i. A chunk is anything that has
    a length, can be sliced and pickled, for instance a list. If an item hangs, crashes or raises,
    the chunk comes back in pieces: (chunk[i : i + 1], Failure) for the item, and the rest with
    results; so results of items before it are made twice.

    make must be importable, as must be all that args and chunks hold. chunks: pulled as there is
    room; None stands for "none for the moment", and is asked again. timeout_s: seconds that one item
    may take. memory_gb: how much a worker may allocate on top of what it holds after `make` (GiB);
    beyond, an item fails with MemoryError or `crashed`. Raises RftError if `make` itself fails.
    """
    context = mp.get_context("spawn")
    source = iter(chunks)
    retry: deque[Any] = deque()
    live: list[_Worker] = []
    is_open = True

    def pull() -> Any:
        """The next chunk; None if there is none, now or ever."""
        nonlocal is_open
        while retry or is_open:
            if retry:
                return retry.popleft()
            try:
                chunk = next(source)
            except StopIteration:
                is_open = False
                return None
            if chunk is None or len(chunk):
                return chunk
        return None

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        begun = context.Array("d", [0, time.monotonic()], lock=False)
        process = context.Process(
            target=_serve, args=(make, args, theirs, begun, memory_gb), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, begun)

    def stop(worker: _Worker) -> None:
        live.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def hand(worker: _Worker, chunk: Any) -> None:
        worker.begun[:] = 0, time.monotonic()
        worker.chunk = chunk
        # Of a worker that has died since it worked last, the pipe tells below.
        with contextlib.suppress(OSError):
            worker.pipe.send(chunk)

    def check_start(worker: _Worker) -> None:
        """Reads a new worker's first word."""
        try:
            fault = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            fault = Failure("crashed", f"it ended with exit code {worker.process.exitcode}")
        if fault:
            raise RftError(f"a worker process could not start: {fault.detail}")
        worker.started = True

    def split(worker: _Worker, failure: Failure) -> tuple[Any, Failure]:
        # The count is of items begun: the last of them is the one that failed.
        at = max(int(worker.begun[0]), 1) - 1
        chunk, worker.chunk = worker.chunk, None
        retry.extend(part for part in (chunk[:at], chunk[at + 1 :]) if len(part))
        return chunk[at : at + 1], failure

    waiting: deque[Any] = deque()  # chunks that workers are being started for
    try:
        first = pull()
        if first is not None:
            waiting.append(first)
        if first is not None or is_open:
            # Even if there is nothing yet: it starts while something else does.
            live.append(start())
        while True:
            for worker in [w for w in live if w.started and w.chunk is None]:
                chunk = waiting.popleft() if waiting else pull()
                if chunk is None:
                    break
                hand(worker, chunk)
            while len(live) < workers and all(w.chunk is not None for w in live if w.started):
                starting = sum(not w.started for w in live)
                if len(waiting) <= starting:
                    chunk = pull()
                    if chunk is None:
                        break
                    waiting.append(chunk)
                if len(waiting) > starting:
                    live.append(start())
            busy = [w for w in live if not w.started or w.chunk is not None]
            if not (busy or waiting or retry or is_open):
                return
            # Soon again where more may come that nobody waits for.
            soon = 0.05 if is_open and len(busy) < workers else LOOK_S
            if not busy:
                time.sleep(soon)
            ready = wait([w.pipe for w in busy], timeout=soon) if busy else []
            for worker in busy:
                # Asked again: the consumer of an earlier yield may have taken longer than a deadline.
                if worker.pipe in ready or worker.pipe.poll():
                    if not worker.started:
                        check_start(worker)
                        continue
                    try:
                        results = worker.pipe.recv()
                    except (EOFError, OSError):  # dead, or dead in the middle of a message
                        stop(worker)
                        if worker.has_worked and not worker.begun[0]:
                            # It died between two chunks: no item is to blame.
                            retry.append(worker.chunk)
                        else:
                            yield split(worker, Failure("crashed"))
                        continue
                    worker.has_worked = True
                    if isinstance(results, Failure):
                        yield split(worker, results)
                        continue
                    chunk, worker.chunk = worker.chunk, None
                    next_chunk = pull()  # it works on while this one's results are consumed
                    if next_chunk is not None:
                        hand(worker, next_chunk)
                    yield chunk, results
                    continue
                since = time.monotonic() - worker.begun[1]
                if not worker.started and since > START_S:
                    raise RftError(f"a worker process did not start in {START_S} s")
                if worker.started and since > timeout_s:
                    stop(worker)
                    yield split(worker, Failure("timeout"))
    finally:
        for worker in list(live):
            stop(worker)
