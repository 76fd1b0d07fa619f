"""A small real experiment on the embedded model, run through the command line as users run it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rft import rows
from tests.pipeline import _serve

ROOT = Path(__file__).parents[2]
SMALL = [
    "prompts.limit_train=100",
    "prompts.limit_eval=40",
    "sample.n=8",
    "train.epochs=2",
    "arms.sft.train.epochs=16",
    "train.checkpoint_every=2",
    "eval.train_problems=20",
]
"""Settings that make the quickstart small without taking a stage out of it."""
ALONE = [
    *(f"arms.{arm}=null" for arm in ("base", "sft", "sft_matched", "random", "rft_repeats")),
    *("compare.baseline=rft", "sample.policy=base", "train.include_reference=false"),
    f"sample.use={ROOT}/tests/pipeline/slow.py:slow",
]
"""Leaves the arm that samples, without an engine, so that nothing is trained before it."""


def command(
    verb: str, runs: Path, *more: str, config: str = "configs/quickstart.yaml"
) -> list[str]:
    return [sys.executable, "-m", "rft.cli", verb, config, f"runs={runs}", *SMALL, *more]


def rft(*args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and returns it, output as text."""
    return subprocess.run(args, cwd=ROOT, text=True, capture_output=True, timeout=timeout)


def stop(
    args: list[str], moment: Callable[[str], bool], how: int, log: Path, delay: float = 0
) -> int | None:
    """Starts a command, waits until `moment` says yes to its output and `delay` seconds more, sends `how`.

    Returns the exit code; None where it had ended before the signal. Kills with SIGKILL go to the
    command alone: that its stage dies with it is part of what is tested.
    """
    with open(log, "wb") as out:
        child = subprocess.Popen(args, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            until(lambda: moment(log.read_text()) or child.poll() is not None, 240)
            time.sleep(delay)
            early = child.poll()
            child.send_signal(how)
            code = child.wait(120)
        finally:
            child.kill()
            child.wait()
    return None if early is not None else code


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def stage_processes(runs: Path) -> list[int]:
    """Processes that still work on a run in `runs`, found by their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(runs) in words and "rft" in words:
                found.append(int(entry.name))
    return found


def written(folder: Path) -> list[str]:
    """Ids in all parts, one that is in two of them twice: it was made after it was kept."""
    return [i for p in rows.parts(folder) for i in pq.read_table(p, columns=["id"])[0].to_pylist()]


def copy(finished: Path, tmp_path: Path) -> Path:
    """The folder of runs with a copy of the undisturbed one, to go on with."""
    shutil.copytree(finished, tmp_path / "quickstart", symlinks=True)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed small run with real vLLM; made once."""
    runs = tmp_path_factory.mktemp("undisturbed")
    done = rft(*command("run", runs), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "quickstart"


@pytest.fixture(scope="package")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a chat template: the bare question, as it was taught."""
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(ROOT / "rft/embedded/model", folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    return folder


@pytest.fixture(scope="package")
def tiny_server(served_model: Path) -> Iterator[str]:
    """Base URL of a real vLLM server of that model, named `tiny`; one for all that ask it."""
    pytest.importorskip("vllm")
    log = served_model.parent / "log"
    with _serve.served(served_model, 256, log, *_serve.LORA, cores=_serve.CORES[:1]) as url:
        yield url


SIGKILL, SIGINT = signal.SIGKILL, signal.SIGINT
