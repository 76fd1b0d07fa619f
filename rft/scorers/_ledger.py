"""Every answer of a judge, in a file beside the verdicts, so that none is paid for twice.

One JSON object a line, flushed at once and synced every few seconds. A line that a killed process
left torn is passed over when the file is read again; what follows it is not lost. Texts stay on disk:
memory holds a place in the file for each answer.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rft.scorers._backends import Reply

SYNC_S = 5.0


class Ledger:
    """Answers by the hash of their request. Faults are written down too, but never answer again."""

    def __init__(self, path: Path):
        self._places: dict[str, tuple[int, int]] = {}
        self.totals: Counter[str] = Counter()
        """requests, prompt_tokens and completion_tokens of all answers, earlier runs' too."""
        self._file = path.open("a+b")
        self._file.seek(0)
        at = 0
        line = b"\n"
        for line in self._file:
            self._note(line, at)
            at += len(line)
        if not line.endswith(b"\n"):
            self._file.write(b"\n")
            at += 1
        self._end, self._synced = at, time.monotonic()

    def _note(self, line: bytes, at: int) -> None:
        try:
            row: dict[str, Any] = json.loads(line)
            answers = row["fault"] in (None, "truncated")
            key = row["request"]
            counts = {k: int(row[k]) for k in ("prompt_tokens", "completion_tokens")}
        except (ValueError, LookupError, TypeError):
            return
        if answers:
            self.totals.update(requests=1, **counts)
            self._places[key] = (at, len(line))

    def get(self, key: str) -> Reply | None:
        if key not in self._places:
            return None
        at, size = self._places[key]
        row = json.loads(os.pread(self._file.fileno(), size, at))
        return Reply(row["text"], row["fault"], row["message"])

    def add(self, key: str, about: dict[str, Any], reply: Reply) -> None:
        """about: what the question was about, for readers of the file."""
        row = {
            "request": key,
            **about,
            "text": reply.text,
            "fault": reply.fault,
            "message": reply.message,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        }
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._note(line, self._end)
        self._end += len(line)
        if time.monotonic() - self._synced > SYNC_S:
            self.sync()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        self.sync()
        self._file.close()
