"""Checkpoints to resume from, each whole or ignored: folders of torch.distributed.checkpoint (DCP).

The textbook gathers the state and has one process write it. Here each process writes the tensors, or
the parts of them, that it holds, and reads those that it needs: no memory holds all of a sharded
state, and a run goes on with any number of processes, sharded or not. What is no tensor is in
`state.pt`, with empty tensors in the others' places.

DCP commits nothing and checks nothing, so a folder is written as `.tmp` and renamed when all processes
have written, and `sha256.json` has the digests of its files. The last two are kept, so one that a
torn disk spoiled costs a few steps and not the run. Names begin with a dot: these are no part of the
finished stage.

There are no random states in it: the loop seeds every step from (seed, step, process), so the
step's number is all that resuming needs.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem

from rft import rows
from rft.process import say
from rft.training.sharding import rank, together, world
from rft.types import RftError

KEPT = 2
PLAIN, DIGESTS = "state.pt", "sha256.json"


def _folder(stage: Path) -> Path:
    return stage / ".checkpoints"


def _saved(stage: Path) -> list[Path]:
    """Oldest first. One of a step may be written again, after a roll-back to it: the number behind the
    step's grows, since a folder can't be put in another's place."""
    return sorted(_folder(stage).glob(".step-?????????-???"))


def _step(path: Path) -> int:
    return int(path.name[6:15])


def save(stage: Path, step: int, state: dict[str, Any], every: int = 1) -> None:
    """Writes a checkpoint after `step` steps, and takes all away but the last two and the last of a step
    that `every` divides. Every process calls it; tensors are in mappings within `state`.

    Raises RftError, in all processes, where one can't write. What was there is then as it was.
    """
    tensors: dict[str, torch.Tensor] = {}

    def emptied(at: tuple[Any, ...], tensor: torch.Tensor) -> torch.Tensor:
        tensors["/".join(map(str, at))] = tensor.detach()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    plain = _replaced({"step": step, **state}, emptied)
    tmp = _folder(stage) / ".tmp"
    with rows.disk_errors(stage):
        try:
            together(lambda: _begin(tmp, plain) if rank() == 0 else None)
            together(lambda: _write(tmp, tensors))
            parts = together(lambda: _digests(tmp))
            digests = {name: digest for part in parts for name, digest in part.items()}
            together(lambda: _commit(stage, step, tmp, digests) if rank() == 0 else None)
        except (OSError, RftError):
            if rank() == 0:
                shutil.rmtree(tmp, ignore_errors=True)
            raise
    if rank() == 0:
        _rotate(stage, every)


def _replaced(
    state: Any, change: Callable[[tuple[Any, ...], torch.Tensor], Any], at: tuple[Any, ...] = ()
) -> Any:
    """The state with what `change` makes of its tensors, given where they are in it."""
    if torch.is_tensor(state):
        return change(at, state)
    if isinstance(state, dict):
        return {key: _replaced(value, change, (*at, key)) for key, value in state.items()}
    return state


def _begin(tmp: Path, plain: dict[str, Any]) -> None:
    shutil.rmtree(tmp, ignore_errors=True)
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    rows.write_bytes(tmp / PLAIN, buffer.getvalue())


class _Files(FileSystem):
    """DCP's, with a full disk told as such: torch.save says `unexpected pos` in its place."""

    @contextlib.contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            try:
                yield stream
            except RuntimeError as fault:
                if isinstance(fault.__context__, OSError):
                    raise fault.__context__ from None
                raise


def _write(tmp: Path, tensors: dict[str, torch.Tensor]) -> None:
    writer = dcp.FileSystemWriter(tmp)
    writer.fs = _Files()
    try:
        with _alone_or_not() as alone:
            dcp.save(tensors, storage_writer=writer, no_dist=alone)
    except CheckpointException as fault:
        raise next(iter(fault.failures.values()))[0] from fault


@contextlib.contextmanager
def _alone_or_not() -> Iterator[bool]:
    """Whether there is one process only, of which DCP would warn each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield not torch.distributed.is_initialized()


def _digests(tmp: Path) -> dict[str, str]:
    """Of the files that this process has written."""
    mine = list(tmp.glob(f"__{rank()}_*"))
    if rank() == 0:
        mine += [tmp / ".metadata", tmp / PLAIN]
    return {path.name: _digest(path) for path in mine}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(stage: Path, step: int, tmp: Path, digests: dict[str, str]) -> None:
    rows.write_bytes(tmp / DIGESTS, json.dumps(digests).encode())
    again = [int(path.name[16:]) + 1 for path in _saved(stage) if _step(path) == step]
    os.replace(tmp, _folder(stage) / f".step-{step:09d}-{max(again, default=0):03d}")
    rows.sync_folder(_folder(stage))


def _rotate(stage: Path, every: int) -> None:
    last = {_step(path): path for path in _saved(stage)}
    regular = [path for step, path in last.items() if step % every == 0][-1:]
    for path in _saved(stage):
        if path not in [*last.values()][-KEPT:] and path not in regular:
            shutil.rmtree(path)


def load(stage: Path, every: int = 1) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, of a step that `every` divides; None if there is none. Every
    process calls it. Its tensors are empty ones (on the meta device): `fill` reads them."""
    for path in reversed(_saved(stage)):
        if _step(path) % every:
            continue
        if all(together(partial(_is_whole, path))):
            state: dict[str, Any] = torch.load(path / PLAIN, weights_only=True)
            return {**state, "folder": path}
        say(f"  {path}: this checkpoint is damaged: going on from the one before")
    return None


def _is_whole(path: Path) -> bool:
    """Whether the files are that this process looks at: its share of them."""
    try:
        digests: dict[str, str] = json.loads((path / DIGESTS).read_text())
        mine = sorted(digests)[rank() :: world()]
        return PLAIN in digests and all(_digest(path / name) == digests[name] for name in mine)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def fill(saved: dict[str, Any], like: Mapping[Any, torch.Tensor]) -> dict[str, Any]:
    """What `load` gave, with its tensors, on the CPU. Every process calls it. like: parameters by name or
    number; tensors that lie under one of these in the state, and have its shape, are sharded as it is."""
    tensors: dict[str, torch.Tensor] = {}

    def roomy(at: tuple[Any, ...], empty: torch.Tensor) -> torch.Tensor:
        known = next((like[key] for key in at if key in like), empty)
        made = torch.empty_like(
            known if known.shape == empty.shape else empty, dtype=empty.dtype, device="cpu"
        )
        tensors["/".join(map(str, at))] = made
        return made

    state: dict[str, Any] = _replaced(saved, roomy)
    with _alone_or_not() as alone:
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(saved["folder"]), no_dist=alone)
    return state


def drop_after(stage: Path, last: Path | None) -> None:
    """Removes those after the one that a run goes on from: damaged ones, and those of steps that were
    rolled back."""
    for path in _saved(stage):
        if last is None or path.name > last.name:
            shutil.rmtree(path)


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
