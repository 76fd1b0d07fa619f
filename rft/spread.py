"""Scorers' worker processes on all nodes of a Ray cluster, in the shape of `rft.workers.run`.

Each actor has killable worker processes of its own, so a hang or a crash costs its candidate only, as on
one machine. What an actor has under way is known here, and goes to others if it dies.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rft import workers
from rft.cluster import Actors, connect
from rft.hosts import MAX_DEATHS, Host, Pool
from rft.types import RftError


class _Piece:
    """A chunk or a part of one, which says which chunk it is of, and where."""

    def __init__(self, number: int, chunk: Any, start: int = 0):
        self.number, self.chunk, self.start = number, chunk, start

    def __len__(self) -> int:
        return len(self.chunk)

    def __getitem__(self, part: slice) -> "_Piece":
        start, _, _ = part.indices(len(self))
        return _Piece(self.number, self.chunk[part], self.start + start)


def _unwrapped(make: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    work = make(*args)
    return lambda piece, begin: work(piece.chunk, begin)


def _work(
    host: Host, make: Any, args: tuple[Any, ...], count: int, timeout_s: float, memory_gb: float
) -> None:
    """The service: takes (number, chunk), gives (number, [(start, length, results), ...])."""
    held: dict[int, int] = {}
    told: dict[int, list[tuple[int, int, Any]]] = {}

    def pieces() -> Iterator[_Piece | None]:
        while True:
            item = host.take(block=not held)
            if item is None:
                yield None
                continue
            number, chunk = item
            held[number], told[number] = len(chunk), []
            yield _Piece(number, chunk)

    host.ready()
    settings = {"workers": count, "timeout_s": timeout_s, "memory_gb": memory_gb}
    for piece, results in workers.run(_unwrapped, (make, args), pieces(), **settings):  # type: ignore[arg-type]
        number = piece.number
        told[number].append((piece.start, len(piece), results))
        held[number] -= len(piece)
        if not held[number]:
            del held[number]
            host.give((number, told.pop(number)))


def run(
    make: Callable[..., Callable[[Any, Callable[[int], None]], Any]],
    args: tuple[Any, ...],
    chunks: Iterable[Any],
    *,
    workers: int,
    timeout_s: float,
    memory_gb: float = 4.0,
    address: str | None,
    actors: int,
) -> Iterator[tuple[Any, Any]]:
    """As `rft.workers.run`, with worker processes on all nodes of a Ray cluster.

    workers: processes in each actor, and CPUs that it reserves. actors: how many. Those that find no room at the beginning join when there is some.
    address: as in `connect`. Results of a chunk come together, once it is done as a whole; chunks
    of an actor that dies go to others. Raises RftError as `rft.workers.run` does, and if there is no
    room.
    """
    leave = connect(address)
    pool = None
    try:
        service = (make, args, workers, timeout_s, memory_gb)
        transport = Actors(_work, service, workers, 0, "ray.cpus_per_actor")
        advice = "Lower ray.cpus_per_actor if the node has too little memory for so many processes"
        pool = Pool(transport, actors, "scoring actor", advice)
        yield from _spread(pool, iter(chunks), 2 * workers)
    finally:
        if pool:
            pool.close()
        leave()


def _spread(pool: Pool, source: Iterator[Any], room: int) -> Iterator[tuple[Any, Any]]:
    """Chunks to the least busy worker that is up, each of which holds `room` at the most."""
    held: dict[int, Any] = {}
    by_slot: dict[int, set[int]] = {}
    again: deque[int] = deque()
    losses: Counter[int] = Counter()
    numbers = itertools.count()
    ended = False

    def pull() -> int | None:
        nonlocal ended
        if again:
            return again.popleft()
        for chunk in source if not ended else ():
            if chunk is None:
                return None
            if len(chunk):
                number = next(numbers)
                held[number] = chunk
                return number
        ended = True
        return None

    while True:
        while by_slot:
            slot = min(by_slot, key=lambda i: len(by_slot[i]))
            if len(by_slot[slot]) >= room or (number := pull()) is None:
                break
            by_slot[slot].add(number)
            pool.send(slot, [(number, held[number])], enough=room // 2)
        if ended and not held:
            return
        for event in pool.receive(1.0 if ended else 0.05):
            if event.kind == "up":
                by_slot[event.slot] = set()
            elif event.kind == "lost":
                for number in by_slot.pop(event.slot):
                    losses[number] += 1
                    if losses[number] >= 2 * MAX_DEATHS:
                        raise RftError(
                            f"{losses[number]} actors died while the same {len(held[number])} "
                            "candidates were being scored: see Ray's logs on the nodes"
                        )
                    again.append(number)
            for number, results in event.items:
                by_slot[event.slot].discard(number)
                losses.pop(number, None)
                if (chunk := held.pop(number, None)) is not None:
                    for start, length, got in results:
                        yield chunk[start : start + length], got
