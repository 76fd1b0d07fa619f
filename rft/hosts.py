"""Work done outside this process, by workers that can die: what both ends of the line need.

A `Host` stands at the far end: in a process of this machine, or in a Ray actor on another. A thread
of it does the work (the *service*), which takes items and gives results, one for each item. A `Pool`
stands at this end: it sends items and fetches results in batches, a few messages a second for each
worker, and starts a worker again when it dies. It says so, and whoever gave it items gives those
of the dead one to others: what an item is, and which worker gets it, is not its business.

How a worker is started and spoken to is a `Transport`. There are two: processes of this machine
(below) and Ray actors (rft/cluster.py).
"""

import contextlib
import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from rft.process import die_with_parent
from rft.types import RftError

POLL_S = 0.2
"""Seconds that a worker collects results for before it sends them."""

MESSAGES_PER_S = 250
"""Most messages a second that this end should have to read: with many workers, each collects longer."""

ROOM_S = 600.0
"""Seconds to wait for room for the first worker, for instance on a cluster that grows on demand."""

MAX_DEATHS = 3
"""A worker that dies so often in a row without a single result stops the run."""


class Cut(Exception):
    """Raised in a service by `take` and `give`: nobody wants the rest. Drop it, then `clear`."""


class Lost(Exception):
    """A worker is dead or cannot be reached; the text is what is known of why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker answers."""

    items: list[Any] = field(default_factory=list)
    report: Any = None
    """The service's newest word on itself."""
    fault: Exception | None = None


class Host:
    """The far end. `service(host, *args)` runs until it raises; it calls the first five methods."""

    def __init__(self, service: Callable[..., None], args: tuple[Any, ...]):
        self._service, self._args = service, args
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._news = threading.Condition()
        self._done: list[Any] = []
        self._owed = 0
        self._first: Any = None
        self._report: Any = None
        self._fault: Exception | None = None
        self._is_ready = self._is_dead = self._is_cut = False

    def ready(self, report: Any = None) -> None:
        """Says that it can work; `start` answers with the report."""
        with self._news:
            self._is_ready, self._first = True, report
            self._news.notify_all()

    def take(self, block: bool) -> Any:
        """The next item. Without `block`, None if none is there."""
        if self._is_cut:
            raise Cut
        try:
            if block:
                item = self._waiting.get()
            else:
                # Not while items are being put in: those of one message are all there, or none.
                with self._news:
                    item = self._waiting.get_nowait()
        except queue.Empty:
            return None
        if item is Cut:
            raise Cut
        return item

    def give(self, result: Any, report: Any = None) -> None:
        with self._news:
            if self._is_cut:
                raise Cut
            self._done.append(result)
            self._owed -= 1
            self._report = report
            self._news.notify_all()

    def clear(self) -> None:
        """Forgets every item it was sent. To be called after `Cut`."""
        with self._news:
            self._empty()
            self._done.clear()
            self._owed, self._is_cut, self._fault = 0, False, None
            self._news.notify_all()

    def fail(self, fault: RftError) -> None:
        """Passes on a fault of the items under way, and stays alive."""
        with self._news:
            self._fault = fault
            self._news.notify_all()

    def _empty(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()

    # What follows is called from outside -------------------------------------------------------

    def run(self) -> None:
        try:
            self._service(self, *self._args)
        except BaseException as fault:
            known = isinstance(fault, RftError)
            with self._news:
                self._is_dead = True
                self._fault = fault if known else RuntimeError(traceback.format_exc())  # type: ignore[assignment]
                self._news.notify_all()

    def start(self) -> Reply:
        """Waits until the service is ready, or has failed to start."""
        with self._news:
            self._news.wait_for(lambda: self._is_ready or self._is_dead)
            return Reply(report=self._first, fault=self._fault)

    def exchange(self, items: Iterable[Any], wait_s: float, enough: int) -> Reply:
        """Takes items in, and answers with results: after `wait_s` seconds with those that there
        are, or sooner with `enough`, or with the last."""
        with self._news:
            for item in items:
                self._owed += 1
                self._waiting.put(item)
            self._news.wait_for(
                lambda: self._fault or len(self._done) >= enough or self._owed == 0, wait_s
            )
            done, self._done = self._done, []
            fault = self._fault
            if not self._is_dead:
                self._fault = None
            return Reply(done, self._report, fault)

    def reset(self) -> Reply:
        """Drops all that is waiting or under way; afterwards no result of it can come."""
        with self._news:
            self._empty()
            self._is_cut = True
            self._waiting.put(Cut)
            self._news.wait_for(lambda: not self._is_cut or self._is_dead)
            return Reply(report=self._report, fault=self._fault if self._is_dead else None)


class Transport(Protocol):
    """How workers are started, spoken to and ended."""

    def start(self, slot: int) -> Any:
        """Starts a worker, without waiting for it, and returns its handle. Its first call, `where`,
        is answered as soon as it runs."""
        ...

    def call(self, handle: Any, method: str, *args: Any) -> Any:
        """Begins a call of one of its Host's methods; returns a token that can be hashed."""
        ...

    def wait(self, tokens: Collection[Any], timeout_s: float) -> Sequence[Any]:
        """Those of the calls that are answered, after `timeout_s` seconds at the latest."""
        ...

    def result(self, token: Any) -> Any:
        """The answer to a call. Raises Lost if there will be none."""
        ...

    def stop(self, handle: Any) -> None:
        """Ends a worker, dead or alive."""
        ...

    def no_room(self) -> str:
        """Why no worker could be started for a long time, and what to do."""
        ...

    def close(self) -> None: ...


@dataclass
class _Slot:
    """One worker's place: the worker in it may be another after a death."""

    handle: Any
    token: Any = None
    """The call under way, if there is one."""
    state: str = "where"
    """`where` (it has no room yet, or is being started), `start` (its service is), or `up`."""
    where: str = ""
    to_send: list[Any] = field(default_factory=list)
    owed: int = 0
    enough: int = 64
    deaths: int = 0
    """In a row, without a result."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a worker did. `up`: it can be sent items, and reports on itself; `done`: results
    and a report; `lost`: it is dead, with all that it was sent and hasn't answered."""

    kind: str
    slot: int
    items: list[Any] = field(default_factory=list)
    report: Any = None


class Pool:
    """This end: `count` workers, numbered from 0. what: what they are, for messages; advice: what to
    change when they keep dying."""

    def __init__(self, transport: Transport, count: int, what: str, advice: str):
        self._transport, self._what, self._advice = transport, what, advice
        self._wait_s = max(POLL_S, count / MESSAGES_PER_S)
        self._since = time.monotonic()
        self._slots: list[_Slot] = []
        self._calls: dict[Any, int] = {}
        self._due: set[int] = set()
        self.deaths = 0
        try:
            for i in range(count):
                self._slots.append(_Slot(transport.start(i)))
                self._call(i, "where")
        except BaseException:
            self.close()
            raise

    def send(self, slot: int, items: Iterable[Any], enough: int | None = None) -> None:
        """Gives items to a worker that is up; they leave with the next `receive`. enough: with how
        many results it shall answer at once."""
        self._slots[slot].to_send.extend(items)
        self._slots[slot].enough = enough or self._slots[slot].enough
        self._due.add(slot)

    def receive(self, timeout_s: float = 1.0) -> list[Event]:
        """What happened, waiting for the first of it `timeout_s` seconds at the most.

        Raises RftError if a service failed with one, if a worker keeps dying, or if there is no room
        for any.
        """
        for i in self._due:
            slot = self._slots[i]
            if slot.token is None and slot.state == "up" and (slot.to_send or slot.owed):
                items, slot.to_send = slot.to_send, []
                slot.owed += len(items)
                self._call(i, "exchange", items, self._wait_s, slot.enough)
        self._due.clear()
        events = []
        if not self._calls:
            time.sleep(timeout_s)
        for token in self._transport.wait(self._calls, timeout_s) if self._calls else ():
            if event := self._answered(self._calls.pop(token), token):
                events.append(event)
        if not events and all(slot.state == "where" for slot in self._slots):
            if time.monotonic() - self._since > ROOM_S:
                raise RftError(self._transport.no_room())
        return events

    def reset(self) -> list[Event]:
        """Makes all workers drop what they were given; nothing of it comes afterwards. Returns those
        that were found dead."""
        events = []
        for method in ("exchange", "reset"):
            for i, slot in enumerate(self._slots):
                dirty = slot.state == "up" and (slot.owed or slot.to_send)
                if method == "reset" and dirty and slot.token is None:
                    slot.to_send.clear()
                    self._call(i, "reset")
            # First the answers to calls under way, then those to the resets.
            while busy := {t: i for t, i in self._calls.items() if self._slots[i].state == "up"}:
                for token in self._transport.wait(busy, 1.0):
                    i = self._calls.pop(token)
                    slot = self._slots[i]
                    slot.token = None
                    try:
                        self._transport.result(token)
                    except Lost as fault:
                        self._again(i, str(fault))
                        events.append(Event("lost", i))
                        continue
                    if method == "reset":
                        slot.owed = 0
        self._due.clear()
        return events

    def close(self) -> None:
        for slot in self._slots:
            self._transport.stop(slot.handle)
        self._slots.clear()
        self._calls.clear()
        self._transport.close()

    def _call(self, i: int, method: str, *args: Any) -> None:
        slot = self._slots[i]
        slot.token = self._transport.call(slot.handle, method, *args)
        self._calls[slot.token] = i

    def _answered(self, i: int, token: Any) -> Event | None:
        slot = self._slots[i]
        slot.token = None
        try:
            got = self._transport.result(token)
        except Lost as fault:
            was_up = slot.state == "up"
            self._again(i, str(fault))
            return Event("lost", i) if was_up else None
        if slot.state == "where":
            slot.where, slot.state = got, "start"
            self._call(i, "start")
            return None
        if isinstance(got.fault, RftError):
            raise RftError(f"{slot.where}: {got.fault}" if slot.where else str(got.fault))
        if got.fault:
            raise got.fault
        self._due.add(i)
        if slot.state == "start":
            slot.state = "up"
            return Event("up", i, report=got.report)
        slot.owed -= len(got.items)
        if got.items:
            slot.deaths = 0
        return Event("done", i, got.items, got.report)

    def _again(self, i: int, words: str) -> None:
        """Puts a fresh worker into a dead one's place."""
        slot = self._slots[i]
        self.deaths += 1
        if slot.deaths + 1 >= MAX_DEATHS:
            at = f" ({slot.where})" if slot.where else ""
            raise RftError(
                f"{self._what} {i}{at} died {MAX_DEATHS} times in a row and finished nothing in "
                f"between. Its last words: {words}. {self._advice}"
            )
        self._transport.stop(slot.handle)
        self._slots[i] = _Slot(self._transport.start(i), deaths=slot.deaths + 1)
        self._since = time.monotonic()
        self._call(i, "where")


# Workers that are processes of this machine ------------------------------------------------------


@dataclass(eq=False)
class _Process:
    process: Any
    pipe: Connection


class Processes:
    """Transport to processes of this machine.

    service, args: as a Host takes them, to be imported and pickled; `prepare(slot)` runs first in
    the new process. daemon: False for services that start processes of their own.
    """

    def __init__(
        self,
        service: Callable[..., None],
        args: tuple[Any, ...],
        prepare: Callable[[int], None],
        daemon: bool,
    ):
        self._all = (service, args, prepare)
        self._daemon = daemon
        self._spawn = multiprocessing.get_context("spawn")
        self._at: dict[Connection, _Process] = {}

    def start(self, slot: int) -> _Process:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(
            target=_serve, args=(theirs, slot, *self._all), daemon=self._daemon
        )
        process.start()
        theirs.close()
        self._at[ours] = _Process(process, ours)
        return self._at[ours]

    def call(self, handle: _Process, method: str, *args: Any) -> Connection:
        # Of a process that has died the answer tells.
        with contextlib.suppress(OSError):
            handle.pipe.send((method, args))
        return handle.pipe

    def wait(self, tokens: Collection[Connection], timeout_s: float) -> Sequence[Connection]:
        return wait(list(tokens), timeout_s)  # type: ignore[return-value]

    def result(self, token: Connection) -> Any:
        try:
            return token.recv()
        except (EOFError, OSError):  # dead, or dead in the middle of a message
            process = self._at[token].process
            process.join()
            raise Lost(f"exit code {process.exitcode} (-9: killed); the log has more") from None

    def stop(self, handle: _Process) -> None:
        del self._at[handle.pipe]
        handle.process.kill()
        handle.process.join()
        handle.pipe.close()

    def no_room(self) -> str:
        return f"no worker process could be started in {ROOM_S:.0f} s: see the log"

    def close(self) -> None:
        pass


def _serve(
    pipe: Connection,
    slot: int,
    service: Callable[..., None],
    args: tuple[Any, ...],
    prepare: Callable[[int], None],
) -> None:
    die_with_parent()
    prepare(slot)
    host = Host(service, args)

    def answer() -> None:
        while True:
            try:
                method, given = pipe.recv()
            except (EOFError, OSError):
                return
            pipe.send("" if method == "where" else getattr(host, method)(*given))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    host.run()
    # The service has failed; the caller is still to be told, and ends this process then.
    thread.join()
