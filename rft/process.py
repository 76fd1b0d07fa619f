"""What every stage process shares: how it dies, how it fails, how it shows progress.

A stage runs as its own process so that its memory is free for the next. Its output goes to a log
file; what people should see goes to the terminal through a descriptor that the runner names in
RFT_TERMINAL. A stage dies with the runner, so a killed run never leaves one behind that writes.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rft.types import RftError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent ends (prctl PR_SET_PDEATHSIG = 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    parent = os.environ.get("RFT_PARENT")
    # In a container the runner itself may be process 1, where orphans go.
    if os.getppid() == 1 and parent not in (None, "1"):
        os._exit(1)  # the parent was gone before we asked


def say(text: str, end: str = "\n") -> None:
    """Prints to the terminal of whoever started the run, past the log file."""
    data = (text + end).encode()
    try:
        os.write(int(os.environ.get("RFT_TERMINAL", "2")), data)
    except OSError:
        sys.stderr.write(text + end)


def stop_once() -> None:
    """Makes the first SIGINT or SIGTERM a KeyboardInterrupt and later ones nothing.

    Ctrl-C in a terminal reaches a stage twice, from the terminal and from the runner; the second
    must not interrupt the writing of what is finished. Clusters send SIGTERM before they take a
    machine away.
    """

    def stop(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def stage_main(run: Callable[[list[dict[str, Any]]], None]) -> None:
    """Runs a stage on the jobs of the JSON file named on the command line.

    Exit codes: 0 done, 2 an RftError (printed with its fix), 130 interrupted with rows kept.
    """
    die_with_parent()
    stop_once()
    try:
        run(json.loads(Path(sys.argv[1]).read_text()))
    except RftError as fault:
        say(f"error: {fault}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


class Progress:
    """A line of progress: rewritten on a terminal, printed every 15 seconds elsewhere.

    done counts rows; `note` is a short figure such as a rate or a loss. at_most: `total` may well not
    be reached, so the time that is left is not known.
    """

    def __init__(self, label: str, total: int, done: int = 0, at_most: bool = False):
        self.at_most = at_most
        self.label, self.total, self.done, self._from = label, total, done, done
        self._start = self._last = time.monotonic()
        fd = int(os.environ.get("RFT_TERMINAL", "2"))
        self._live = os.isatty(fd)
        self._shown = False

    def step(self, rows: int = 1, note: str = "") -> None:
        self.done += rows
        now = time.monotonic()
        if now - self._last < (0.2 if self._live else 15):
            return
        self._last = now
        rate = (self.done - self._from) / max(now - self._start, 1e-9)
        left = (self.total - self.done) / rate if rate else 0
        of = f" of at most {self.total:,}" if self.at_most else f"/{self.total:,}"
        line = f"  {self.label}: {self.done:,}{of}, {note + ', ' if note else ''}"
        line += f"{'at most ' if self.at_most else ''}{int(left // 60)}:{int(left % 60):02d} left"
        say(f"\r{line:<90}" if self._live else line, end="" if self._live else "\n")
        self._shown = True

    def close(self) -> None:
        if self._live and self._shown:
            say("\r" + " " * 91 + "\r", end="")
