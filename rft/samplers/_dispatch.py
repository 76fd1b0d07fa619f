"""Requests spread over engines in other processes or on other machines, and every candidate once.

An engine holds a few more requests than it pulls, so that it never runs dry between two messages,
and the caller's iterator runs no further ahead than that. A request goes to the engine that has its
prompt's other samples under way, for the prefix cache, unless that one is clearly fuller than the
idlest; then to the idlest. When an engine dies, what it held goes to others first, with the same ids and
seeds. A candidate counts if its request is still owed, whoever sends it, so an answer that comes
after its sender was given up for lost does no harm.
"""

import heapq
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator

from rft.hosts import MAX_DEATHS, Event, Pool
from rft.samplers._beam import same_search
from rft.samplers._common import budget, check_adapter
from rft.types import Candidate, Finish, Request, RftError, Setup

SLACK = 1 / 8
"""By how much of its room an engine may be fuller than the idlest and still be given a prompt's next
sample."""

MOST_LOSSES = 2 * MAX_DEATHS
"""A request that was under way in so many engines that died is taken to be what kills them."""


Packed = tuple[str, str, bytes, str, float | None, bytes | None]
"""A candidate on its way: what its request doesn't tell. With numbers as bytes it is read four times as
fast, and the one process that reads them all is what bounds the number of engines."""


def pack(c: Candidate) -> Packed:
    logprobs = None if c.token_logprobs is None else array("d", c.token_logprobs).tobytes()
    return c.id, c.text, array("i", c.token_ids).tobytes(), c.finish.value, c.logprob, logprobs


def unpack(packed: Packed, request: Request) -> Candidate:
    id, text, ids, finish, logprob, logprobs = packed
    return Candidate(
        id,
        request.prompt_id,
        request.index,
        text,
        request.prompt_token_ids,
        tuple(array("i", ids)),
        FINISH[finish],
        logprob,
        None if logprobs is None else tuple(array("d", logprobs)),
    )


FINISH = {finish.value: finish for finish in Finish}


class Engines:
    """A sampler over the engines of a pool. disconnect: called last when it is closed."""

    def __init__(self, pool: Pool, setup: Setup, disconnect: Callable[[], None] | None = None):
        self._pool, self._setup, self._disconnect = pool, setup, disconnect
        self._rooms: dict[int, int] = {}
        self._load: dict[int, int] = {}
        self._idle: list[tuple[float, int]] = []
        """A heap of (share of its room that is taken, engine), old entries among them."""
        self._moved: set[int] = set()
        """Engines whose load has changed since they were put on the heap."""
        self._held: dict[int, dict[str, tuple[Request, bool]]] = {}
        """What each engine owes, by request id, and whether it counts as load: a search for several
        beams answers several requests and counts once."""
        self._where: dict[str, int] = {}
        self._homes: dict[str, tuple[int, int]] = {}
        """By prompt id: the engine that got its last sample, and how many it has under way."""
        self._again: deque[Request] = deque()
        self._losses: Counter[str] = Counter()
        self._stats: dict[int, dict[str, float]] = {}
        self._past: list[dict[str, float]] = []
        try:
            while not self._rooms:
                self._note(self._pool.receive())
        except BaseException:
            self.close()
            raise

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]:
        """As `VllmSampler.sample`; up to three times max_num_seqs requests an engine are pulled."""
        if self._where or self._again:
            self._forget()
        ended = False
        ahead: Request | None = None

        def pull() -> Request | None:
            nonlocal ended, ahead
            if ahead is not None:
                request, ahead = ahead, None
                return request
            if self._again:
                return self._again.popleft()
            for pulled in requests if not ended else ():
                if pulled is not None:
                    budget(pulled, self._setup.model.max_len)
                    check_adapter(pulled.adapter, self._setup)
                return pulled
            ended = True
            return None

        while True:
            to_send: dict[int, list[Request]] = defaultdict(list)
            while self._idlest() is not None and (request := pull()) is not None:
                together = [request]
                if request.decoding.beam_width:
                    while (more := pull()) is not None:
                        if not same_search(more, request):
                            ahead = more
                            break
                        together.append(more)
                engine = self._choose(request)
                self._assign(engine, together)
                to_send[engine] += together
            for engine, some in to_send.items():
                # A quarter of its room: it is filled again well before it runs dry.
                self._pool.send(engine, some, enough=max(1, self._rooms[engine] // 4))
            if not self._where:
                if ended and ahead is None and not self._again:
                    return
                if self._rooms:
                    continue
            for packed in self._note(self._pool.receive()):
                if (request := self._accept(packed[0])) is not None:
                    yield unpack(packed, request)

    def _note(self, events: list[Event]) -> list[Packed]:
        """Keeps up with what engines do; returns their candidates."""
        for event in events:
            i = event.slot
            if event.kind == "lost":
                self._lose(i)
            elif event.kind == "up":
                self._rooms[i], self._load[i], self._held[i] = event.report["room"], 0, {}
                self._stats[i] = event.report["stats"]
                self._moved.add(i)
            elif event.report:
                self._stats[i] = event.report
        return [packed for event in events for packed in event.items]

    def _idlest(self) -> int | None:
        """The engine of which the least is taken; None where all are full."""
        while self._moved:
            self._push(self._moved.pop())
        while self._idle:
            taken, i = self._idle[0]
            if i in self._rooms and taken == self._load[i] / self._rooms[i]:
                return i if taken < 1 else None
            heapq.heappop(self._idle)
        return None

    def _push(self, i: int) -> None:
        if i not in self._rooms:
            return
        if len(self._idle) > 8 * len(self._rooms) + 64:
            self._idle = [(self._load[j] / room, j) for j, room in self._rooms.items() if j != i]
            heapq.heapify(self._idle)
        heapq.heappush(self._idle, (self._load[i] / self._rooms[i], i))

    def _choose(self, request: Request) -> int:
        idlest = self._idlest()
        assert idlest is not None
        home, _ = self._homes.get(request.prompt_id, (idlest, 0))
        taken = self._load[home] / self._rooms[home]
        least = self._load[idlest] / self._rooms[idlest]
        return home if taken < 1 and taken <= least + SLACK else idlest

    def _assign(self, i: int, together: list[Request]) -> None:
        """together: requests that one engine answers at once."""
        for k, request in enumerate(together):
            self._held[i][request.id] = request, k == 0
            self._where[request.id] = i
            home, count = self._homes.get(request.prompt_id, (i, 0))
            self._homes[request.prompt_id] = i, count + 1 if home == i else 1
        self._load[i] += 1
        self._moved.add(i)

    def _release(self, i: int, id: str) -> Request:
        request, counts = self._held[i].pop(id)
        del self._where[id]
        home, count = self._homes.get(request.prompt_id, (-1, 0))
        if home == i:
            if count > 1:
                self._homes[request.prompt_id] = i, count - 1
            else:
                del self._homes[request.prompt_id]
        if counts:
            self._load[i] -= 1
            self._moved.add(i)
        return request

    def _accept(self, id: str) -> Request | None:
        """The request that a candidate answers; None if another engine has answered it."""
        if id not in self._where:
            return None
        del self._losses[id]
        return self._release(self._where[id], id)

    def _lose(self, i: int) -> None:
        del self._rooms[i]
        self._past.append(self._stats.pop(i))
        for id in list(self._held[i]):
            request = self._release(i, id)
            self._losses[id] += 1
            if self._losses[id] >= MOST_LOSSES:
                raise RftError(
                    f"{MOST_LOSSES} engines died while a sample of prompt {request.prompt_id} was "
                    "under way in them: take the prompt out of the data, or lower model.max_len"
                )
            self._again.append(request)

    def _forget(self) -> None:
        """Drops what an earlier `sample` that wasn't read to its end left behind."""
        self._note(self._pool.reset())
        for id, i in list(self._where.items()):
            self._release(i, id)
        self._again.clear()

    def stats(self) -> dict[str, float]:
        """Sums over the engines, lost ones included; seconds are the longest engine's, and memory the
        largest's."""
        longest = ("seconds", "engine_start_s", "weights_gb", "peak_gpu_gb", "peak_rss_gb")
        each = [*self._stats.values(), *self._past]
        total = {
            key: (max if key in longest else sum)(s.get(key, 0.0) for s in each)
            for key in (each[0] if each else ())
        }
        if total.get("seconds"):
            total["tokens_per_s"] = total["tokens"] / total["seconds"]
            total["prefix_cache_hit_rate"] = total["cached_tokens"] / total["prompt_tokens"]
        return {**total, "engines": len(self._rooms), "engines_lost": self._pool.deaths}

    def close(self) -> None:
        self._pool.close()
        if self._disconnect:
            self._disconnect()
