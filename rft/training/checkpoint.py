"""Checkpoints to resume from: one file each, whole or ignored.

A file is the SHA-256 of its payload and the payload (torch.save of tensors and plain values, read
with weights_only). It is written under a temporary name and renamed; the last two are kept, so
one that a torn disk spoiled costs a few steps and not the run. Names begin with a dot: these files
are no part of the finished stage.

There are no random states in it: the loop seeds every step from (seed, step, process), so the
step's number is all that resuming needs.
"""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from rft import rows
from rft.process import say

KEPT = 2


def _folder(stage: Path) -> Path:
    return stage / ".checkpoints"


def _files(stage: Path) -> list[Path]:
    return sorted(_folder(stage).glob(".step-*.pt"))


def save(stage: Path, step: int, state: dict[str, Any], every: int = 1) -> None:
    """Writes a checkpoint after `step` steps, and takes all away but the last two and the last of a step
    that `every` divides."""
    buffer = io.BytesIO()
    torch.save({"step": step, **state}, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).digest()
    rows.write_bytes(_folder(stage) / f".step-{step:09d}.pt", digest + payload)
    files = _files(stage)
    regular = [path for path in files if _step(path) % every == 0][-1:]
    for path in files[:-KEPT]:
        if path not in regular:
            path.unlink()


def _step(path: Path) -> int:
    return int(path.name[6:-3])


def load(stage: Path, every: int = 1) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, of a step that `every` divides; None if there is none. Tensors
    are on the CPU."""
    for path in reversed(_files(stage)):
        if _step(path) % every:
            continue
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            state: dict[str, Any] = torch.load(
                io.BytesIO(data[32:]), map_location="cpu", weights_only=True
            )
            return state
        say(f"  {path}: this checkpoint is damaged: going on from the one before")
    return None


def drop_damaged(stage: Path, step: int) -> None:
    """Removes the files past the step that a resumed run goes on from: they could not be read."""
    for path in _files(stage):
        if _step(path) > step:
            path.unlink()


def clear(stage: Path) -> None:
    """Removes all checkpoints, once the stage is finished."""
    shutil.rmtree(_folder(stage), ignore_errors=True)


def rewind_metrics(path: Path, step: int) -> None:
    """Keeps the lines of metrics.jsonl up to `step`; steps after it are computed again."""
    kept = []
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step and line.endswith(b"\n"):
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill in mid-line
    rows.write_bytes(path, b"".join(kept))
