"""The process of a stage: how it is started, asked to stop, and what its end says."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import rft
from rft import process, rows, rundir
from rft.types import RftError

STOP_S = 60
"""Seconds that an interrupted stage has to write what it holds."""


def stage(logs: Path, kind: str, jobs: list[dict[str, Any]], lock: int, launch: str | None) -> None:
    """Runs a stage's process to its end. Raises RftError, or KeyboardInterrupt after Ctrl-C."""
    stamp = time.strftime("%m%d-%H%M%S")
    log = logs / f"{stamp}-{kind}.log"
    job_file = logs / f"{stamp}-{kind}.json"
    rows.write_bytes(job_file, rundir.to_json(jobs))
    command = [sys.executable, "-m", f"rft.stages.{kind}", str(job_file)]
    if kind == "train":
        command = _accelerate(launch) + command[1:]
    terminal = os.dup(2)
    try:
        with open(log, "wb") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=(terminal, lock),
                env={
                    **os.environ,
                    **_environment(),
                    "RFT_TERMINAL": str(terminal),
                    "RFT_PARENT": str(os.getpid()),
                },
            )
            try:
                code = child.wait()
            except KeyboardInterrupt:
                process.say("\nstopping: writing what is finished ...")
                _stop(child)
                raise
    finally:
        os.close(terminal)
    _check_end(kind, log, code)


def _check_end(kind: str, log: Path, code: int) -> None:
    if code == process.INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        told = log.read_text(errors="replace").splitlines()[-12:]
        by = "" if code > 0 else f" by {signal.Signals(-code).name}"
        # An RftError was printed by the stage itself; anything else is shown from its log.
        if code == 2:
            raise RftError(f"the {kind} stage stopped (above); its log is {log}")
        raise RftError(
            f"the {kind} stage was ended{by} (exit code {code}). Finished rows are "
            f"kept; the same command goes on from there. Last lines of {log}:\n"
            + "\n".join(f"  | {line}" for line in told)
        )


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """Lets a process write what it holds, and waits for it."""
    # It may have had the terminal's Ctrl-C already; a second signal changes nothing.
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _accelerate(launch: str | None) -> list[str]:
    # Always a file: without one accelerate takes what `accelerate config` once left in the user's
    # home, and with it plugins (DeepSpeed, FSDP) that the experiment doesn't know of.
    file = launch or str(Path(rft.__file__).parent / "training" / "one_process.yaml")
    return [sys.executable, "-m", "rft.training.launch", "--config_file", file, "-m"]


def _environment() -> dict[str, str]:
    """Libraries that phone home or print banners are asked not to; the user's settings win."""
    quiet = {
        # Threads that wait sleep soon instead of spinning: free on a quiet machine, and half as fast
        # again beside busy processes (docs/benchmarks.md).
        "GOMP_SPINCOUNT": "30000",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {k: v for k, v in quiet.items() if k not in os.environ}
