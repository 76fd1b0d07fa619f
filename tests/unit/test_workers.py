"""Workers really hang, crash and run out of memory here, and every item has its one outcome."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rft import workers
from rft.types import RftError
from rft.workers import Failure
from tests.unit import _work


def run(items: list[Any], *args: Any, **settings: Any) -> list[tuple[Any, Any]]:
    chunk = settings.pop("chunk", 4)
    settings = {"workers": 1, "timeout_s": 2.0, **settings}
    return list(each(workers.run(_work.make, args, cut(items, chunk), **settings)))


def each(got: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """(item, its result) of (chunk, results)."""
    for chunk, results in got:
        yield from zip(chunk, [results] if isinstance(results, Failure) else results, strict=True)


def cut(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def numbers(count: int) -> list[Any]:
    return [("number", i) for i in range(count)]


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 50])
def test_every_item_once(count: int) -> None:
    got = run(numbers(count), workers=2)
    assert sorted(got) == [(item, item[1]) for item in numbers(count)]


@pytest.mark.parametrize("hang", ["power", "regex"])
def test_a_hang_inside_c_is_killed_and_the_rest_is_fine(hang: str, tmp_path: Path) -> None:
    log = tmp_path / "pids"
    items = [*numbers(6), (hang, 0), ("number", 6), ("number", 7)]
    begun = time.monotonic()
    got = dict(run(items, "", str(log), timeout_s=1.0, chunk=5))
    assert time.monotonic() - begun < 20
    assert got[hang, 0] == Failure("timeout")
    assert {value for item, value in got.items() if item[0] == "number"} == set(range(8))
    assert len(got) == len(items)
    first, second = _work.pids(log)
    assert first != second and gone(first) and gone(second)


def test_crashes_and_faults_are_each_their_own_items() -> None:
    items = [
        ("number", 0),
        ("exit", 0),
        ("raise", "luck"),
        ("number", 1),
        ("segfault", 0),
        ("sys.exit", 0),
        ("number", 2),
    ]
    got = run(items, chunk=3)
    assert sorted(item for item, _ in got) == sorted(items)
    told = dict(got)
    assert told["raise", "luck"] == Failure("error", "ValueError: no luck")
    for crash in ("exit", "segfault", "sys.exit"):
        assert told[crash, 0] == Failure("crashed")
    assert [told["number", i] for i in range(3)] == [0, 1, 2]


def test_a_worker_that_dies_between_two_chunks_blames_no_item() -> None:
    """As by a thread that a library left running, or where memory ran out."""

    def chunks() -> Iterator[Any]:
        yield [("die later", 0.3)]
        until = time.monotonic() + 3
        while time.monotonic() < until:
            yield None
        yield from cut(numbers(6), 3)

    got = dict(each(workers.run(_work.make, (), chunks(), workers=1, timeout_s=5)))
    assert got == {("die later", 0.3): 0.3} | {item: item[1] for item in numbers(6)}


def test_a_worker_killed_while_it_sends_its_results() -> None:
    """Results larger than the pipe, of which half have come while the consumer was busy."""
    chunks = [[("number", 0)], [("die later", 0.5), ("large", 10)]]
    got = []
    for pair in each(workers.run(_work.make, (), chunks, workers=1, timeout_s=5)):
        got.append(pair)
        time.sleep(1)
    assert got == [
        (("number", 0), 0),
        (("large", 10), Failure("crashed")),
        (("die later", 0.5), 0.5),
    ]


def test_slow_items_together_may_take_longer_than_one_may() -> None:
    items = [("sleep", 0.3 + i / 1000) for i in range(5)]
    got = run(items, timeout_s=1.0, chunk=6)
    assert sorted(got) == [(item, item[1]) for item in items]


def test_a_slow_consumer_does_not_cost_an_item_its_result() -> None:
    """While rows are written, finished chunks wait; their workers are not stuck."""
    items = [("sleep", 0.1 + i / 1000) for i in range(6)]
    results = []
    for pair in each(workers.run(_work.make, (), cut(items, 2), workers=2, timeout_s=0.5)):
        time.sleep(0.7)
        results.append(pair)
    assert sorted(results) == [(item, item[1]) for item in items]


def test_memory_is_bounded() -> None:
    items = [("memory", 100), ("memory", 3000), ("number", 1)]
    got = dict(run(items, memory_gb=1.0))
    assert got["memory", 100] == 100 << 20
    assert got["memory", 3000] == Failure("error", "MemoryError: ")
    assert got["number", 1] == 1


def test_made_once_for_each_worker(tmp_path: Path) -> None:
    log = tmp_path / "pids"
    got = run([("pid", i) for i in range(40)], "", str(log), workers=2, chunk=2)
    made = _work.pids(log)
    assert len(made) == len(set(made)) == 2
    assert {pid for _, pid in got} <= set(made)
    assert os.getpid() not in made


@pytest.mark.parametrize(
    "kind, words", [("raises", "ValueError: no such model"), ("exits", "exit code 7")]
)
def test_workers_that_cannot_start_say_why(kind: str, words: str) -> None:
    with pytest.raises(RftError, match=words):
        run(numbers(3), kind)


def test_chunks_are_pulled_as_there_is_room() -> None:
    pulled = 0

    def chunks() -> Iterator[Any]:
        nonlocal pulled
        for chunk in cut(numbers(1000), 10):
            pulled += 1
            yield chunk

    got = workers.run(_work.make, (), chunks(), workers=1, timeout_s=5)
    next(got)
    assert pulled <= 2
    got.close()  # type: ignore[attr-defined]


def test_a_source_that_has_nothing_for_the_moment_is_asked_again() -> None:
    """Chunks come while sampling runs; results must not wait for the next one."""
    begun = time.monotonic()

    def chunks() -> Iterator[Any]:
        yield numbers(2)
        while time.monotonic() - begun < 8:
            yield None
        yield [("number", 2)]

    got = workers.run(_work.make, (), chunks(), workers=2, timeout_s=5)
    assert next(got) == (numbers(2), [0, 1])
    assert time.monotonic() - begun < 7
    assert list(got) == [([("number", 2)], [2])]


def test_one_chunk_starts_one_worker(tmp_path: Path) -> None:
    log = tmp_path / "pids"
    run(numbers(3), "", str(log), workers=4)
    assert len(_work.pids(log)) == 1


def test_a_chunk_that_comes_while_the_first_worker_starts_waits_for_it(tmp_path: Path) -> None:
    log = tmp_path / "pids"
    begun = time.monotonic()

    def chunks() -> Iterator[Any]:
        yield None
        yield numbers(3)
        while time.monotonic() - begun < 3:
            yield None

    args = ("", str(log))
    assert len(list(workers.run(_work.make, args, chunks(), workers=4, timeout_s=5))) == 1
    assert len(_work.pids(log)) == 1


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Even one that hangs inside C, and so never looks at its pipe."""
    log = tmp_path / "pids"
    code = (
        "from rft import workers\nfrom tests.unit import _work\n"
        f"list(workers.run(_work.make, ('', {str(log)!r}), [[('power', 0)]], workers=1,"
        " timeout_s=100))"
    )
    # As a file, since a spawned process imports the main module again.
    (tmp_path / "main.py").write_text(f"if __name__ == '__main__':\n    exec({code!r})\n")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], env=env)
    try:
        until = time.monotonic() + 30
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < until and parent.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        parent.kill()
        parent.wait()
    (pid,) = _work.pids(log)
    try:
        assert gone(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_workers_end_with_the_consumer(tmp_path: Path) -> None:
    log = tmp_path / "pids"
    got = workers.run(_work.make, ("", str(log)), [numbers(100)], workers=1, timeout_s=5)
    next(got)
    got.close()  # type: ignore[attr-defined]
    (pid,) = _work.pids(log)
    assert gone(pid)
