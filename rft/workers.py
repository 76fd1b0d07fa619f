"""Worker processes that can be killed, so that every check of model text has a deadline.

A signal or a thread cannot stop a loop inside a C library, and only a process's death frees its
memory. So items go to worker processes in chunks; each worker counts the items it has begun in
shared memory, and when that count stands still for longer than the deadline, the worker is killed,
the item is reported as failed, and the rest of its chunk goes to a fresh worker.
"""

import multiprocessing as mp
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from rft.types import RftError

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Failure:
    """Why an item has no result: `timeout`, `crashed`, or `error` with what was raised."""

    reason: str
    detail: str = ""


@dataclass
class _Worker(Generic[In]):
    process: Any
    pipe: Connection
    begun: Any
    """Shared count of items begun in this chunk."""
    chunk: list[In] = field(default_factory=list)
    seen: int = 0
    since: float = 0.0


def _serve(
    make: Callable[..., Any], args: Any, pipe: Connection, begun: Any, memory_gb: float
) -> None:
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
    while True:
        try:
            chunk = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        results = []
        for i, item in enumerate(chunk, 1):
            begun.value = i
            try:
                results.append(work(item))
            except Exception as fault:
                results.append(Failure("error", f"{type(fault).__name__}: {fault}"))
        pipe.send(results)


def run(
    make: Callable[..., Callable[[In], Out]],
    args: tuple[Any, ...],
    items: Iterable[In],
    *,
    workers: int,
    timeout_s: float,
    memory_gb: float = 4.0,
    chunk: int = 256,
) -> Iterator[tuple[In, Out | Failure]]:
    """Yields (item, result or Failure) for each item, in any order.

    make(*args) is called once in each worker process and gives the function that is applied to the
    items; it must be importable, as must be all that args and items hold. timeout_s: seconds that
    one item may take. memory_gb: how much a worker may allocate on top of what it holds after
    `make` (GiB); beyond, an item fails with MemoryError or `crashed`. Raises
    RftError if `make` itself fails.
    """
    context = mp.get_context("spawn")
    source = iter(items)
    retry: deque[list[In]] = deque()
    live: list[_Worker[In]] = []

    def start() -> _Worker[In]:
        ours, theirs = context.Pipe()
        begun = context.Value("l", 0, lock=False)
        process = context.Process(
            target=_serve, args=(make, args, theirs, begun, memory_gb), daemon=True
        )
        process.start()
        theirs.close()
        worker: _Worker[In] = _Worker(process, ours, begun)
        try:
            ready = ours.recv() if ours.poll(120) else Failure("error", "it did not start in 120 s")
        except (EOFError, ConnectionResetError):
            process.join()
            ready = Failure("crashed", f"it ended with exit code {process.exitcode}")
        if isinstance(ready, Failure):
            process.kill()
            raise RftError(f"a worker process could not start: {ready.detail}")
        return worker

    def stop(worker: _Worker[In]) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def feed(worker: _Worker[In]) -> bool:
        worker.chunk = retry.popleft() if retry else list(islice(source, chunk))
        if worker.chunk:
            worker.begun.value, worker.seen, worker.since = 0, 0, time.monotonic()
            worker.pipe.send(worker.chunk)
        return bool(worker.chunk)

    try:
        for _ in range(workers):
            worker = start()
            if not feed(worker):
                stop(worker)
                break
            live.append(worker)
        while live:
            ready = wait([w.pipe for w in live], timeout=min(timeout_s / 4, 1.0))
            for worker in list(live):
                failed = None
                # Asked again: the consumer of an earlier yield may have taken longer than a deadline.
                if worker.pipe in ready or worker.pipe.poll():
                    try:
                        results = worker.pipe.recv()
                    except (EOFError, ConnectionResetError):
                        failed = "crashed"
                    else:
                        yield from zip(worker.chunk, results, strict=True)
                        if not feed(worker):
                            live.remove(worker)
                            stop(worker)
                        continue
                elif worker.begun.value != worker.seen:
                    worker.seen, worker.since = worker.begun.value, time.monotonic()
                elif time.monotonic() - worker.since > timeout_s:
                    failed = "timeout"
                if failed:
                    live.remove(worker)
                    stop(worker)
                    # The count is of items begun: the last of them is the one that failed.
                    at = max(worker.begun.value, 1) - 1
                    yield worker.chunk[at], Failure(failed)
                    retry.extend(
                        part for part in (worker.chunk[:at], worker.chunk[at + 1 :]) if part
                    )
                    fresh = start()
                    if feed(fresh):
                        live.append(fresh)
                    else:
                        stop(fresh)
    finally:
        for worker in live:
            stop(worker)
