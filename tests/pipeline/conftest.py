"""A small real experiment on the embedded model, run through the command line as users run it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "prompts.limit_train=100",
    "prompts.limit_eval=40",
    "sample.n=8",
    "train.epochs=2",
    "arms.sft.train.epochs=16",
    "train.checkpoint_every=2",
]
"""Settings that make the quickstart small without taking a stage out of it."""


def command(
    verb: str, runs: Path, *more: str, config: str = "configs/quickstart.yaml"
) -> list[str]:
    return [sys.executable, "-m", "rft.cli", verb, config, f"runs={runs}", *SMALL, *more]


def rft(*args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and returns it, output as text."""
    return subprocess.run(args, cwd=ROOT, text=True, capture_output=True, timeout=timeout)


def kill_after(args: list[str], seen: str, delay: float, log: Path, how: int) -> int | None:
    """Starts a command, waits for `seen` in its output and `delay` seconds more, sends `how`.

    Returns the exit code; None where it had ended before the signal. Kills with SIGKILL go to the
    command alone: that its stage dies with it is part of what is tested.
    """
    with open(log, "wb") as out:
        child = subprocess.Popen(args, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            until(lambda: seen in log.read_text() or child.poll() is not None, 240)
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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed small run with real vLLM; made once."""
    runs = tmp_path_factory.mktemp("undisturbed")
    done = rft(*command("run", runs), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "quickstart"


SIGKILL, SIGINT = signal.SIGKILL, signal.SIGINT
