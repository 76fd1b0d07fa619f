"""Work for the worker processes of test_workers.py: spawned processes import it by name."""

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make(kind: str = "", log: str = "") -> Callable[[Any, Callable[[int], None]], list[Any]]:
    """The function below, or a fault of the given kind while it is made."""
    if kind == "raises":
        raise ValueError("no such model")
    if kind == "exits":
        os._exit(7)
    if log:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")

    def each(chunk: Any, begin: Callable[[int], None]) -> list[Any]:
        results = []
        for i, item in enumerate(chunk):
            begin(i)
            results.append(work(item))
        return results

    return each


def work(item: Any) -> Any:
    what, value = item
    if what == "power":
        # One call into C that neither a signal handler nor a thread can interrupt.
        return 9**9**9 % 7
    if what == "regex":
        return re.match(r"(a+)+$", "a" * 60 + "b")
    if what == "exit":
        os._exit(3)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "sys.exit":
        sys.exit("gone")
    if what == "raise":
        raise ValueError(f"no {value}")
    if what == "memory":
        return len(bytearray(value << 20))
    if what == "sleep":
        time.sleep(value)
    if what == "pid":
        return os.getpid()
    if what == "large":
        return bytes(value << 20)
    if what == "die later":
        threading.Thread(target=lambda: (time.sleep(value), os._exit(1)), daemon=True).start()
    return value


def pids(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]
