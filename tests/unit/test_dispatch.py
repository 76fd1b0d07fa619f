"""Requests spread over engines that join late, die and answer twice: every candidate once.

The engines here are made up, so that thousands of orders of events can be tried; the tests in
test_samplers.py and tests/pipeline/test_ray.py have real ones.
"""

import dataclasses
import itertools
import random
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft import hosts
from rft.config import Model
from rft.config_decoding import Decoding, Engine
from rft.hosts import Cut, Host, Lost, Pool, Reply
from rft.samplers import _dispatch
from rft.samplers._dispatch import MOST_LOSSES, SLACK, Engines, pack, unpack
from rft.types import Candidate, Finish, Request, RftError, Setup

SETUP = Setup(
    Model(base="none", max_len=64),
    Engine(),
    renderer=None,
    prompts={},
    adapters=("./adapter",),  # type: ignore[arg-type]
)


def request(i: int, n: int = 4, **decoding: Any) -> Request:
    prompt = f"p{i // n}"
    asked = Decoding(n=n, max_tokens=8, **decoding)
    return Request(f"r{i}", prompt, i % n, (1, i // n), asked, seed=i)


def candidate(of: Request) -> Candidate:
    return Candidate(
        of.id, of.prompt_id, of.index, str(of.seed), of.prompt_token_ids, (2,), Finish.STOP, -1.0
    )


class Made:
    """Transport to engines that are lists. chance decides who is slow, who answers, and who dies."""

    def __init__(
        self, chance: random.Random, room: int, death: float = 0.0, poison: str | None = None
    ):
        self.chance, self.room, self.death, self.poison = chance, room, death, poison
        self.engines: dict[int, list[Request]] = {}
        self.slots: dict[int, int] = {}
        self.calls: dict[int, tuple[int, str, tuple[Any, ...]]] = {}
        self.count = itertools.count()
        self.most: Counter[int] = Counter()
        self.drawn: Counter[str] = Counter()
        self.by_prompt: dict[str, list[int]] = {}
        self.deaths = 0

    def start(self, slot: int) -> int:
        handle = next(self.count)
        self.engines[handle], self.slots[handle] = [], slot
        return handle

    def call(self, handle: int, method: str, *args: Any) -> int:
        token = next(self.count)
        self.calls[token] = handle, method, args
        if method == "exchange":
            # What is sent has arrived, whether or not its answer will.
            self.engines[handle] += args[0]
            for asked in args[0]:
                self.by_prompt.setdefault(asked.prompt_id, []).append(self.slots[handle])
            searches = {r.prompt_id for r in self.engines[handle] if r.decoding.beam_width}
            single = sum(not r.decoding.beam_width for r in self.engines[handle])
            self.most[handle] = max(self.most[handle], single + len(searches))
        return token

    def wait(self, tokens: Collection[int], timeout_s: float) -> list[int]:
        return self.chance.sample(list(tokens), self.chance.randint(1, len(tokens)))

    def result(self, token: int) -> Any:
        handle, method, _ = self.calls.pop(token)
        if method == "where":
            return ""
        if method == "start":
            return Reply(report={"room": self.room, "stats": {"tokens": 0, "engine_start_s": 1}})
        held = self.engines[handle]
        if method == "reset":
            held.clear()
            return Reply()
        # A search ends with all its beams at once.
        units = sorted({r.prompt_id if r.decoding.beam_width else r.id for r in held})
        some = set(self.chance.sample(units, self.chance.randint(0, len(units))))
        done = [r for r in held if some & {r.prompt_id, r.id}]
        held[:] = [r for r in held if not some & {r.prompt_id, r.id}]
        # A dying engine takes finished work along.
        self.drawn.update(asked.id for asked in done)
        doomed = self.poison in {asked.id for asked in (*done, *held)}
        if doomed or self.chance.random() < self.death:
            self.deaths += 1
            raise Lost("lightning")
        return Reply([pack(candidate(asked)) for asked in done], {"tokens": len(done)})

    def stop(self, handle: int) -> None:
        del self.engines[handle]

    def no_room(self) -> str:
        return "full"

    def close(self) -> None:
        assert not self.engines


def engines(made: Made, count: int) -> Engines:
    return Engines(Pool(made, count, "engine", "Rest."), SETUP)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(1, 5),
    room=st.integers(1, 12),
    total=st.integers(0, 120),
    death=st.sampled_from([0.0, 0.02, 0.1]),
    beams=st.sampled_from([0, 4]),
)
def test_every_candidate_once(
    seed: int, count: int, room: int, total: int, death: float, beams: int
) -> None:
    chance = random.Random(seed)
    made = Made(chance, room, death)
    asked = [request(i, temperature=0 if beams else 1, beam_width=beams) for i in range(total)]
    pulled: list[str] = []
    got: list[str] = []

    def source() -> Iterator[Request | None]:
        for each in asked:
            while len(pulled) > len(got) and chance.random() < 0.3:
                yield None
            pulled.append(each.id)
            yield each

    with pytest.MonkeyPatch.context() as patch:
        # Bad luck without end is another test's matter.
        patch.setattr(hosts, "MAX_DEATHS", 10**6)
        patch.setattr(_dispatch, "MOST_LOSSES", 10**6)
        sampler = engines(made, count)
        for each in sampler.sample(source()):
            got.append(each.id)
            assert each.text == each.id.removeprefix("r")
            # A search may be pulled with all its beams, and one request to see where it ends.
            assert len(pulled) - len(got) < count * room * max(1, beams) + max(1, beams) + 1
    assert sorted(got) == sorted(r.id for r in asked)
    assert max(made.most.values(), default=0) <= room
    assert sampler.stats()["engines_lost"] == made.deaths
    if not death:
        assert all(times == 1 for times in made.drawn.values())
    # Nothing is left behind that would grow.
    assert not sampler._where and not sampler._homes and not sampler._losses
    assert len(sampler._idle) <= 8 * count + 65
    sampler.close()


@given(
    token_ids=st.lists(st.integers(0, (1 << 31) - 1)),
    logprobs=st.none() | st.lists(st.floats(max_value=0, allow_nan=False)),
    finish=st.sampled_from(Finish),
    text=st.text(),
)
def test_candidates_arrive_as_they_were(
    token_ids: list[int], logprobs: list[float] | None, finish: Finish, text: str
) -> None:
    asked = request(5)
    made = dataclasses.replace(
        candidate(asked),
        text=text,
        token_ids=tuple(token_ids),
        finish=finish,
        logprob=None if logprobs is None else sum(logprobs),
        token_logprobs=None if logprobs is None else tuple(logprobs),
    )
    assert unpack(pack(made), asked) == made


def test_samples_of_a_prompt_stay_together_and_engines_evenly_full() -> None:
    made = Made(random.Random(0), room=64)
    sampler = engines(made, 4)
    stream = sampler.sample(request(i, n=8) for i in range(4000))
    for _ in itertools.islice(stream, 2000):
        loads = list(sampler._load.values())
        assert max(loads) - min(loads) <= 64
    sizes = [len(set(slots)) for slots in made.by_prompt.values() if len(slots) == 8]
    assert sum(size == 1 for size in sizes) > 0.8 * len(sizes)


def test_one_prompt_uses_all_engines() -> None:
    made = Made(random.Random(0), room=64)
    sampler = engines(made, 4)
    while len(sampler._rooms) < 4:
        sampler._note(sampler._pool.receive())
    next(sampler.sample(request(i, n=1000) for i in range(100)))
    counts = Counter(made.by_prompt["p0"])
    assert max(counts.values()) - min(counts.values()) <= 64 * SLACK + 1


def test_what_an_abandoned_run_left_does_not_come_later() -> None:
    made = Made(random.Random(1), room=16)
    sampler = engines(made, 3)
    assert len(list(itertools.islice(sampler.sample(map(request, range(500))), 40))) == 40
    assert sum(map(len, made.engines.values()))
    rest = [each.id for each in sampler.sample(map(request, range(900, 950)))]
    assert sorted(rest) == sorted(f"r{i}" for i in range(900, 950))


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"prompt_token_ids": (1,) * 64}, "max_len"),
        ({"adapter": "./nowhere"}, "./nowhere"),
    ],
)
def test_bad_requests_are_refused_and_the_engines_go_on(bad: dict[str, Any], message: str) -> None:
    sampler = engines(Made(random.Random(2), room=16), 2)
    wrong = dataclasses.replace(request(3), **bad)
    with pytest.raises(RftError, match=message):
        list(sampler.sample(iter([request(0), wrong, request(1)])))
    assert len(list(sampler.sample(map(request, range(20))))) == 20


def test_a_request_that_kills_engines_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "MAX_DEATHS", 1000)
    made = Made(random.Random(3), room=4, poison="r17")
    sampler = engines(made, 4)
    with pytest.raises(RftError, match=f"{MOST_LOSSES} engines died .* p4 "):
        list(sampler.sample(map(request, range(60))))


def test_engines_that_only_die_end_the_run() -> None:
    made = Made(random.Random(4), room=4, death=1.0)
    sampler = engines(made, 2)
    with pytest.raises(RftError, match=r"died 3 times in a row .* lightning\. Rest\."):
        list(sampler.sample(map(request, range(60))))


def test_no_room_for_any_is_said_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "ROOM_S", 0.2)
    made = Made(random.Random(0), room=4)
    monkeypatch.setattr(made, "wait", lambda tokens, timeout_s: [])
    with pytest.raises(RftError, match="full"):
        engines(made, 2)


# ---- the far end ---------------------------------------------------------------------------------


def echo(host: Host) -> None:
    """Gives back what it takes, twice as large; "bad" is a fault, "worse" the end."""
    host.ready("here")
    while True:
        try:
            item = host.take(block=True)
            if item == "worse":
                raise ValueError("no more")
            if item == "bad":
                host.fail(RftError("bad item"))
            elif item != "never":
                host.give(2 * item, report=item)
        except Cut:
            host.clear()


@pytest.fixture
def host() -> Host:
    made = Host(echo, ())
    threading.Thread(target=made.run, daemon=True).start()
    assert made.start() == Reply(report="here")
    return made


def test_the_last_result_is_answered_at_once(host: Host) -> None:
    assert host.exchange([1, 2, 3], wait_s=60, enough=100).items == [2, 4, 6]
    assert host.exchange([], wait_s=60, enough=1).items == []


def test_results_are_answered_in_time_or_when_there_are_enough(host: Host) -> None:
    assert host.exchange([1, "never", 2], wait_s=0.3, enough=100).items == [2, 4]
    assert host.exchange([3, 4], wait_s=60, enough=1).items[0] == 6


def test_a_reset_leaves_nothing(host: Host) -> None:
    host.exchange(["never", 5, 6], wait_s=0.0, enough=1)
    host.reset()
    assert host.exchange([7], wait_s=60, enough=1) == Reply([14], report=7)


def test_faults_come_through(host: Host) -> None:
    got = host.exchange(["bad", 1], wait_s=60, enough=100)
    assert isinstance(got.fault, RftError) and str(got.fault) == "bad item"
    host.reset()
    assert host.exchange([2], wait_s=60, enough=1).items == [4]
    got = host.exchange(["worse"], wait_s=60, enough=1)
    assert isinstance(got.fault, RuntimeError) and "no more" in str(got.fault)
    assert host.exchange([1], wait_s=60, enough=1).fault
    assert host.reset().fault
