"""A Ray cluster of three nodes on this machine, whose actors, nodes and drivers get killed.

Every node is a raylet with one CPU of its own and runs one real engine on the embedded model.
"""

import contextlib
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rft import cluster, spread, workers
from rft.config import Combine, Ray
from rft.samplers import _serve
from rft.types import Finish, Request, RftError, Setup
from rft.verdicts import Beside
from tests.pipeline.conftest import ROOT
from tests.unit import _work
from tests.unit.test_sampler_contract import Case, Contract, solved_problems
from tests.unit.test_samplers import (  # noqa: F401 (adapters is a fixture)
    QUESTIONS,
    adapters,
    by_id,
    requests,
    set_up,
    tokens,
)
from tests.unit.test_verdicts import give, take
from tests.unit.test_workers import cut, each, numbers

pytest.importorskip("ray", reason="needs Ray: pip install 'rft[ray]'")
pytest.importorskip("vllm", reason="needs vLLM")

NODES = 3
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}


def until(true: Callable[[], Any], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not after {seconds} s"
        time.sleep(0.1)


def marked(mark: str) -> list[psutil.Process]:
    """Processes of this machine that descend from one with this mark in its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RFT_TEST_MARK") == mark:
                found.append(process)
    return found


def actors() -> list[psutil.Process]:
    """Processes of rft's Ray actors in the cluster of these tests."""
    found = []
    for process in marked(os.environ["RFT_TEST_MARK"]):
        with contextlib.suppress(psutil.Error):
            # One that is just ending has no words.
            if "ray::RftWorker" in next(iter(process.cmdline()), ""):
                found.append(process)
    return found


# ---- a Ray that is started here, and its driver killed ---------------------------------------------

DRIVER = """
import itertools, sys
from tests.unit.test_samplers import requests, set_up
from rft.samplers.ray import ray

def main():
    setup = set_up(max_num_seqs=4)
    sampler = ray(setup, engines=1, cpus=1)
    endless = (r for i in itertools.count() for r in requests(setup, [f"{i} + 2 ="], n=8))
    for i, candidate in enumerate(sampler.sample(endless)):
        print(candidate.id, candidate.token_ids, flush=True)

main()
"""


class Driver:
    """A driver in a process of its own; its descendants are known by a mark in their environment."""

    def __init__(self, code: str, folder: Path):
        self.mark, self.log = uuid.uuid4().hex, folder / "driver.log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"RFT_TEST_MARK": self.mark},
            stdout=open(folder / "driver.out", "w"),  # noqa: SIM115
            stderr=open(self.log, "w"),  # noqa: SIM115
        )
        self.out = folder / "driver.out"

    def lines(self) -> list[str]:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return self.out.read_text().splitlines()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


# ---- the cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFT_TEST_MARK", uuid.uuid4().hex)
        made = Cluster()
        for _ in range(NODES):
            made.add_node(**NODE)
        leave = cluster.connect(made.address)
        yield made
        leave()
        made.shutdown()


@pytest.fixture(scope="module")
def setup(adapters: tuple[str, str]) -> Setup:  # noqa: F811
    return set_up(adapters=adapters[:1], max_num_seqs=8)


def asked(setup: Setup, prompts: int = 60, n: int = 8) -> list[Request]:
    """Samples of many prompts, a fifth of them by the adapter."""
    questions = [f"{q} And {i} more?" for i, q in zip(range(prompts), itertools.cycle(QUESTIONS))]
    return [
        *requests(setup, questions, n=n, max_tokens=32),
        *requests(setup, questions[::5], n=n, max_tokens=32, adapter=setup.adapters[0]),
    ]


@pytest.fixture(scope="module")
def one_engine(setup: Setup) -> dict[str, tuple[int, ...]]:
    """What one engine in one process draws."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_one_engine, setup.adapters).result()


def _one_engine(adapters: tuple[str, ...]) -> dict[str, tuple[int, ...]]:  # noqa: F811
    from rft.samplers.vllm import vllm

    setup = set_up(adapters=adapters, max_num_seqs=8)
    return tokens(vllm(setup).sample(iter(asked(setup))))


@pytest.fixture(scope="module")
def engines(nodes: Any, setup: Setup) -> Iterator[Any]:
    from rft.samplers.ray import ray

    # As if no node had the adapter's folder, so that it travels through the object store.
    with pytest.MonkeyPatch.context() as patch:
        lacks = lambda name, folder, digest, content: _serve.Adapter(  # noqa: E731
            name, "/nowhere", digest, content
        )
        patch.setattr("rft.samplers.ray.Adapter", lacks)
        sampler = ray(setup, address=nodes.address, engines=NODES)
    yield sampler
    sampler.close()


def test_nodes_and_actors_are_killed_in_mid_run(
    engines: Any, nodes: Any, setup: Setup, one_engine: dict[str, tuple[int, ...]]
) -> None:
    wanted = asked(setup)
    # All three engines are to take part.
    warm = requests(setup, [f"{i} - 1 =" for i in range(10**6)])
    for _ in engines.sample(r if engines.stats()["engines"] < NODES else None for r in warm):
        if engines.stats()["engines"] == NODES:
            break
    got: list[Any] = []
    stream = engines.sample(iter(wanted))
    got += itertools.islice(stream, 60)
    actors()[0].kill()
    got += itertools.islice(stream, 60)
    # The head holds the cluster together, so another node goes, with its raylet and its engine.
    killed = next(node for node in nodes.worker_nodes)
    nodes.remove_node(killed, allow_graceful=False)
    got += stream
    assert by_id(got).keys() == {r.id for r in wanted}
    assert tokens(got) == one_engine
    # Three where the fresh engine was on the node that went.
    assert engines.stats()["engines_lost"] in (2, 3)
    assert engines.stats()["requests"] >= len(wanted)


def test_an_engine_returns_when_there_is_a_node_again(
    engines: Any, nodes: Any, setup: Setup
) -> None:
    nodes.add_node(**NODE)
    begun = time.monotonic()
    more = requests(setup, [f"{i} + 3 =" for i in range(10**6)])

    def until_all() -> Iterator[Request]:
        while engines.stats()["engines"] < NODES:
            assert time.monotonic() - begun < 600
            yield next(more)

    assert len(by_id(engines.sample(until_all())))
    assert engines.stats()["engines"] == NODES


def test_faults_of_an_engine_come_through_and_it_goes_on(engines: Any, setup: Setup) -> None:
    good = list(requests(setup, n=2))
    bad = dataclasses.replace(
        good[0], decoding=good[0].decoding.model_copy(update={"temperature": 0.001})
    )
    with pytest.raises(RftError, match=r"^node .*: temperature: 0\.001 is too low"):
        list(engines.sample(iter([*good, bad])))
    assert by_id(engines.sample(iter(good))).keys() == {r.id for r in good}


def test_beams_and_an_abandoned_run(engines: Any, setup: Setup) -> None:
    stream = engines.sample(requests(setup, n=40))
    next(stream)
    stream.close()
    beams = list(requests(setup, n=4, temperature=0, beam_width=4))
    assert by_id(engines.sample(iter(beams))).keys() == {r.id for r in beams}


@pytest.fixture(scope="module")
def case(engines: Any, setup: Setup) -> Case:
    # What a message holds and what an engine pulls, of each.
    ahead = NODES * int(_serve.MORE * 2 * 8) + 1
    return Case(engines, dataclasses.replace(setup, prompts=solved_problems(100)), ahead)


class TestContract(Contract):
    """Of engines in actors; the last of these tests closes them."""


# ---- scorers --------------------------------------------------------------------------------------


def test_scoring_actors_are_killed_in_mid_run(engines: Any, nodes: Any) -> None:
    engines.close()
    items = [*numbers(300), ("raise", "luck"), ("exit", 0), ("power", 0), ("sleep", 0.5)]
    items += [("sleep", 0.02 + i / 1e6) for i in range(200)]
    settings: dict[str, Any] = {"workers": 1, "timeout_s": 2.0}
    before = dict(each(workers.run(_work.make, (), cut(items, 6), **settings)))
    stream = spread.run(
        _work.make, (), cut(items, 6), address=nodes.address, actors=NODES, **settings
    )
    got = list(itertools.islice(stream, 3))
    actors()[0].kill()
    got += itertools.islice(stream, 20)
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    got += stream
    told = list(each(iter(got)))
    assert len(told) == len(items)
    assert dict(told) == before


def test_verdicts_beside_sampling_are_those_of_this_machine(nodes: Any) -> None:
    texts = [f"#### {i % 9}" for i in range(200)]
    told = []
    for ray in (Ray(), Ray(scorer_actors=2, address=nodes.address)):
        beside = Beside([{"use": "answer", "args": {}}], Combine(), ray)
        give(beside, *texts)
        give(beside, "#### 7", finish=Finish.LENGTH, stage=1)
        told.append(take(beside, len(texts) + 1, seconds=200))
        assert beside.pending == 0
        beside.close()
    assert len(told[0]) == len(texts) + 1 and told[0] == told[1]


def test_a_scorer_that_cannot_be_made_is_one_message(nodes: Any) -> None:
    settings: dict[str, Any] = {
        "workers": 1,
        "timeout_s": 2.0,
        "address": nodes.address,
        "actors": 2,
    }
    with pytest.raises(RftError, match=r"^node .*could not start: ValueError: no such model"):
        list(spread.run(_work.make, ("raises",), [numbers(2)], **settings))
    with pytest.raises(RftError, match="a Ray of its own is asked for, and this process is in"):
        list(spread.run(_work.make, (), [numbers(2)], **{**settings, "address": None}))


SCORING = """
import sys
from rft import process, spread
from tests.unit import _work

process.stop_once()
chunks = ([("sleep", 0.05)] for _ in range(10**6))
try:
    for got in spread.run(_work.make, (), chunks, workers=1, timeout_s=9, address=ADDRESS, actors=2):
        print(len(got), flush=True)
except KeyboardInterrupt:
    sys.exit(process.INTERRUPTED)
"""


@pytest.mark.parametrize("how, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 130)])
def test_actors_end_with_a_driver_that_is_killed(
    nodes: Any, tmp_path: Path, how: int, code: int
) -> None:
    driver = Driver(SCORING.replace("ADDRESS", repr(nodes.address)), tmp_path)
    until(lambda: len(driver.lines()) >= 5, 200, "scores come")
    spawned = [child for actor in actors() for child in actor.children(recursive=True)]
    assert actors() and spawned
    driver.process.send_signal(how)
    assert driver.process.wait(30) == code
    until(lambda: not actors(), 90, "the actors are gone")
    until(
        lambda: not any(p.is_running() and p.status() != "zombie" for p in spawned), 30, "workers"
    )


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_of_a_ray_started_here(tmp_path: Path) -> None:
    """Slow, since the last of Ray's own processes wait a minute for the others before they end."""
    driver = Driver(DRIVER, tmp_path)
    try:
        until(lambda: len(driver.lines()) >= 20, 600, "a Ray started here draws samples")
    finally:
        driver.kill()
    until(lambda: not marked(driver.mark), 200, "all of its processes are gone")
