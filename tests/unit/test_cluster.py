"""What `use: ray` decides before anything runs, and what it says when it can't; no Ray is started."""

import dataclasses
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from rft import cluster, hosts, spread, workers
from rft.cluster import Node
from rft.config import Chat, Model
from rft.config_decoding import Engine
from rft.hosts import Host, Lost, Pool, Reply
from rft.samplers import _serve
from rft.samplers.ray import ray, shares
from rft.spread import _Piece, _spread
from rft.types import RftError, Setup
from tests.unit import _work
from tests.unit.test_workers import cut, numbers


def nodes(*has: tuple[int, int]) -> list[Node]:
    return [Node(f"10.0.0.{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(has)]


SHARES = [
    # (CPUs, GPUs) of the nodes, GPUs of a copy, engines, cpus -> engines, cpus, gpus
    ([(2, 0)], 1, None, None, (1, 2, 0)),
    ([(2, 0)], 1, 2, None, (2, 1, 0)),
    ([(2, 0)], 1, 3, None, (3, 1, 0)),
    ([(8, 0), (8, 0), (4, 0)], 1, None, None, (3, 4, 0)),
    ([(8, 0), (8, 0), (4, 0)], 1, None, 4, (5, 4, 0)),
    ([(8, 0), (8, 0)], 1, 4, None, (4, 4, 0)),
    ([(0, 0), (1, 0), (1, 0)], 1, None, None, (2, 1, 0)),
    ([(96, 8), (96, 8), (16, 0)], 1, None, None, (16, 1, 1)),
    ([(96, 8), (96, 8)], 4, None, 6, (4, 6, 4)),
    ([(96, 8), (96, 8)], 8, None, None, (2, 1, 8)),
    ([(96, 8), (32, 2)], 4, None, None, (2, 1, 4)),
    ([(96, 8)], 1, 64, None, (64, 1, 1)),
]


@pytest.mark.parametrize("has, width, engines, cpus, expected", SHARES)
def test_shares(
    has: list[tuple[int, int]],
    width: int,
    engines: int | None,
    cpus: int | None,
    expected: tuple[int, int, int],
) -> None:
    assert shares(nodes(*has), width, engines, cpus) == expected


@pytest.mark.parametrize(
    "has, width, cpus, message",
    [
        ([(96, 4), (96, 8)], 16, None, r"tensor_parallel: 16 .* has 8: lower it.*use: openai"),
        ([(2, 0), (4, 0)], 1, 5, r"args\.cpus: 5 .* has 4"),
        ([(0, 0)], 1, None, "no node of the Ray cluster offers"),
        ([], 1, None, "no node of the Ray cluster offers"),
    ],
)
def test_impossible_shares(
    has: list[tuple[int, int]], width: int, cpus: int | None, message: str
) -> None:
    with pytest.raises(RftError, match=message):
        shares(nodes(*has), width, None, cpus)


def test_there_is_one_setting_for_the_number_of_copies() -> None:
    setup = Setup(Model(base="none"), Engine(data_parallel=2), None, {})  # type: ignore[arg-type]
    with pytest.raises(RftError, match=r"data_parallel.*args\.engines"):
        ray(setup)


FAULTS = [
    (None, RuntimeError("no space"), "TMPDIR"),
    (None, Exception("The current node timed out during startup."), "too busy"),
    ("auto", ConnectionError("Could not find any running Ray instance"), "ray start --head"),
    ("10.0.0.1:6379", ConnectionError("timed out"), "ray://host:10001"),
    ("ray://10.0.0.1:10001", ConnectionError("ray client connection timeout"), "port"),
    ("auto", RuntimeError("Version mismatch: Ray: 2.1, Python: 3.9"), "same versions"),
]


@pytest.mark.parametrize("address, fault, message", FAULTS)
def test_no_cluster_is_one_message(address: str | None, fault: Exception, message: str) -> None:
    text = cluster._no_cluster(address, fault)
    assert message in text.split("Fix: ")[1] and str(fault) in text and "\n" not in text


def test_a_ray_of_our_own_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(tmp_path / ("x" * 60)))
    assert Path(cluster._folder()).parent == Path("/tmp")
    short = Path("/tmp") / f"rft-test-{tmp_path.parent.name}"
    short.mkdir(exist_ok=True)
    try:
        monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(short))
        folder = Path(cluster._folder())
        assert folder.parent == short and folder.stat().st_mode & 0o777 == 0o700
        monkeypatch.setattr(cluster.os, "getuid", lambda: 4321)
        (short / "rft-ray-4321").mkdir()
        with pytest.raises(RftError, match="belongs to someone else"):
            cluster._folder()
    finally:
        shutil.rmtree(short)


# ---- files that a node may lack --------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_the_same_model_passes(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    _serve.check_model(str(copy), _serve.model_print(model))


def test_a_node_without_the_model_says_so(model: Path, tmp_path: Path) -> None:
    wanted = _serve.model_print(model)
    with pytest.raises(RftError, match="nowhere is not on this node: put it"):
        _serve.check_model(str(tmp_path / "nowhere"), wanted)
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(RftError, match=r"copy/model\.safetensors on this node differs"):
        _serve.check_model(str(copy), wanted)
    (copy / "model.safetensors").unlink()
    with pytest.raises(RftError, match=r"model\.safetensors on this node is missing"):
        _serve.check_model(str(copy), wanted)


def test_large_files_are_told_apart_by_size(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_serve, "READ_WHOLE", 3)
    before = _serve.model_print(model)
    (model / "model.safetensors").write_bytes(b"Weights")
    assert _serve.model_print(model) == before
    (model / "model.safetensors").write_bytes(b"more weights")
    assert _serve.model_print(model) != before


def test_an_adapter_is_taken_from_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "metrics.jsonl").write_text("long")
    files = _serve.adapter_files(folder)
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    digest = _serve.files_digest(files)
    adapter = _serve.Adapter("./adapter", str(folder), digest)
    assert _serve.adapter_here(adapter, tmp_path / "root") == str(folder)
    (folder / "metrics.jsonl").write_text("longer")
    assert _serve.adapter_here(adapter, tmp_path / "root") == str(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"Weights")
    with pytest.raises(RftError, match="have changed"):
        _serve.adapter_here(adapter, tmp_path / "root")


# ---- chunks over actors that die -----------------------------------------------------------------


def test_pieces_know_where_they_are_from() -> None:
    piece = _Piece(7, list(range(20)))[3:15][2:5]
    assert (piece.number, piece.start, piece.chunk) == (7, 5, [5, 6, 7])


class Chunks:
    """Transport to scoring actors without processes: chance decides how much is done and who dies."""

    def __init__(self, chance: random.Random, death: float):
        self.chance, self.death = chance, death
        self.count = itertools.count()
        self.held: dict[int, list[Any]] = {}
        self.calls: dict[int, tuple[int, str]] = {}
        self.most = 0

    def start(self, slot: int) -> int:
        handle = next(self.count)
        self.held[handle] = []
        return handle

    def call(self, handle: int, method: str, *args: Any) -> int:
        if method == "exchange":
            self.held[handle] += args[0]
            self.most = max(self.most, len(self.held[handle]))
        token = next(self.count)
        self.calls[token] = handle, method
        return token

    def wait(self, tokens: Collection[int], timeout_s: float) -> list[int]:
        return self.chance.sample(list(tokens), self.chance.randint(1, len(tokens)))

    def result(self, token: int) -> Any:
        handle, method = self.calls.pop(token)
        if method != "exchange":
            return "node" if method == "where" else Reply()
        if self.chance.random() < self.death:
            raise Lost("lightning")
        held = self.held[handle]
        self.chance.shuffle(held)
        done = [held.pop() for _ in range(self.chance.randint(0, len(held)))]
        return Reply([(number, self.pieces(chunk)) for number, chunk in done])

    def pieces(self, chunk: list[int]) -> list[tuple[int, int, Any]]:
        middle = self.chance.randint(0, len(chunk))
        parts = [(0, middle), (middle, len(chunk) - middle)]
        return [(at, n, [-i for i in chunk[at : at + n]]) for at, n in parts if n]

    def stop(self, handle: int) -> None:
        del self.held[handle]

    def no_room(self) -> str:
        return "full"

    def close(self) -> None:
        assert not self.held


@pytest.mark.parametrize("seed", range(40))
def test_every_chunk_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "MAX_DEATHS", 1000)
    chance = random.Random(seed)
    made = Chunks(chance, death=chance.choice([0.0, 0.03]))
    items = list(range(chance.choice([0, 1, 400])))

    def chunks() -> Iterator[list[int] | None]:
        for chunk in cut(items, 7):
            yield from [None] * chance.randint(0, 1)
            yield chunk
        yield []

    pool = Pool(made, chance.randint(1, 4), "actor", "Rest.")
    got = [pair for piece, told in _spread(pool, chunks(), 6) for pair in zip(piece, told)]
    assert sorted(got) == [(i, -i) for i in items]
    assert made.most <= 6
    pool.close()


def test_the_service_of_a_scoring_actor_is_workers_run() -> None:
    """In a thread and with real worker processes: hangs and crashes cost their item only."""
    host = Host(spread._work, (_work.make, (), 2, 1.0, 4.0))
    threading.Thread(target=host.run, daemon=True).start()
    assert host.start() == Reply()
    items = [*numbers(20), ("exit", 0), ("raise", "luck"), *numbers(3), ("power", 0)]
    sent = list(enumerate(cut(items, 6)))
    told: dict[Any, Any] = {}
    reply = host.exchange(sent, wait_s=0.2, enough=100)
    for _ in range(300):
        assert reply.fault is None
        for number, pieces in reply.items:
            chunk = dict(sent)[number]
            assert sum(length for _, length, _ in pieces) == len(chunk)
            for at, length, got in pieces:
                each = [got] if isinstance(got, workers.Failure) else got
                told.update(zip(chunk[at : at + length], each, strict=True))
        if len(told) == len(set(items)):
            break
        reply = host.exchange([], wait_s=0.2, enough=100)
    assert {told[item] for item in numbers(20)} == set(range(20))
    assert told["exit", 0] == workers.Failure("crashed")
    assert told["power", 0] == workers.Failure("timeout")
    assert told["raise", "luck"].reason == "error"


def test_a_scorer_that_cannot_be_made_ends_the_run() -> None:
    host = Host(spread._work, (_work.make, ("raises",), 1, 1.0, 4.0))
    threading.Thread(target=host.run, daemon=True).start()
    host.start()
    reply = host.exchange([(0, numbers(1))], wait_s=60, enough=1)
    assert isinstance(reply.fault, RftError) and "no such model" in str(reply.fault)


def test_setup_travels_without_what_stays_here() -> None:
    renderer: Any = dataclasses.make_dataclass("Renderer", ["chat"])(Chat())
    prompts: Any = {"a": 1}
    setup = Setup(Model(base="m"), Engine(data_parallel=3), renderer, prompts)
    there = _serve.portable(setup, data_parallel=1)
    assert (there.renderer, there.prompts, there.engine.data_parallel) == (None, {}, 1)


def test_engines_of_one_machine_keep_to_different_cores(tmp_path: Path) -> None:
    code = (
        "import os, sys; from rft.samplers._serve import keep_to_cores; keep_to_cores(1); "
        "print(*sorted(os.sched_getaffinity(0)), flush=True); sys.stdin.read()"
    )
    every = sorted(os.sched_getaffinity(0))
    started: list[subprocess.Popen[str]] = []

    def claim() -> list[int]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | {"TMPDIR": str(tmp_path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert started[-1].stdout
        return list(map(int, started[-1].stdout.readline().split()))

    try:
        taken = [claim() for _ in every]
        assert sorted(taken) == [[core] for core in every]
        # With none left it runs where it can; a dead engine's core is free again.
        assert claim() == every
        started[0].kill()
        started[0].wait()
        assert claim() == taken[0]
    finally:
        for process in started:
            process.kill()
            process.communicate()
