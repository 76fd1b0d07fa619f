"""A run on disk: stage folders by key, a manifest that is written last, links by arm, a lock.

    runs/NAME/stages/sample-3fa9c1d2e4b5/   stage.json, parts, manifest.json
    runs/NAME/rft/seed0/2_sample            link to the stage that this arm and seed use
    runs/NAME/report/

A stage's key is the hash of everything its result depends on, each under a name, so that arms with
the same settings share a folder, and a change can be named. `manifest.json` is written after all
else: its existence means that the stage is complete.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rft
from rft import rows
from rft.types import RftError, digest

LEAVE_S = 10
"""Seconds that the stages of a run which was killed may take to die."""


@dataclass(frozen=True)
class StageDir:
    """One stage's folder."""

    path: Path

    def inputs(self) -> dict[str, Any] | None:
        """What the key of this folder was made of; None if the stage was never begun."""
        return read_json(self.path / "stage.json")

    def manifest(self) -> dict[str, Any] | None:
        """The finished stage's record; None while it is not finished."""
        return read_json(self.path / "manifest.json")

    def begin(self, kind: str, inputs: dict[str, Any]) -> None:
        """Writes what the key was made of. Idempotent, so a resumed stage calls it again."""
        if self.inputs() is None:
            rows.write_bytes(self.path / "stage.json", to_json(stage_record(kind, inputs)))

    def commit(self, seconds: float, **record: Any) -> None:
        """Writes the manifest. seconds: what this attempt took; earlier ones are not counted."""
        files = {
            str(p.relative_to(self.path)): {"bytes": p.stat().st_size, "sha256": file_digest(p)}
            for p in sorted(self.path.rglob("*"))
            if p.is_file()
            and not any(part.startswith(".") for part in p.relative_to(self.path).parts)
            and p.suffix != ".torn"
            and p != self.path / "manifest.json"
        }
        manifest = {
            **record,
            "files": files,
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "rft": rft.__version__,
        }
        # As it will be read back: tuples as lists, keys as strings.
        told = json.loads(to_json(manifest))
        rows.write_bytes(self.path / "manifest.json", to_json({**told, "digest": digest(told)}))

    def check(self) -> str | None:
        """Why a finished stage is not whole any more, by file sizes; None if it is. `rft.integrity` reads
        the files too."""
        manifest = self.manifest()
        for name, known in (manifest or {}).get("files", {}).items():
            path = self.path / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != known["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {known['bytes']}"
        return None

    def reopen(self) -> None:
        """Takes the manifest away, so that the missing rows are made again."""
        rows.parts(self.path)
        (self.path / "manifest.json").unlink(missing_ok=True)


def stage_record(kind: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """What stage.json holds."""
    return {"kind": kind, "key": digest(inputs), "inputs": inputs}


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a file holds; None where it is not there, torn, or holds none."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        # Only a torn disk makes one, since files are renamed into place: treat it as unwritten.
        return None
    return found if isinstance(found, dict) else None


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name: before -> after` for each named input that differs."""
    before, after = flatten(old), flatten(new)
    out = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            out.append(f"{name}: {_short(before.get(name))} -> {_short(after.get(name))}")
    return out


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as {dotted path: leaf}."""
    if isinstance(value, dict | list) and value:
        out: dict[str, Any] = {}
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            out.update(flatten(inner, f"{path}.{key}" if path else str(key)))
        return out
    return {path: value}


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[int]:
    """Holds the run's folder for this process and, through the descriptor, for its stages."""
    with rows.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = time.monotonic() + LEAVE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = os.pread(handle, 100, 0).decode() or "another process"
                pid = owner.removeprefix("process ")
                # Of a run that was just killed, a stage may take a moment to die.
                if not Path("/proc", pid).exists() and time.monotonic() < end:
                    time.sleep(0.1)
                    continue
                raise RftError(
                    f"{folder}: in use by {owner}. Wait for it to end, or start a run of another "
                    "name with name=NEW_NAME."
                ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()}".encode())
        yield handle
    finally:
        os.close(handle)


def link(place: Path, target: Path) -> None:
    """Makes `place` a relative link to `target`, replacing an older link."""
    with rows.disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        relative = os.path.relpath(target, place.parent)
        if place.is_symlink():
            if os.readlink(place) == relative:
                return
            place.unlink()
        place.symlink_to(relative)


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def model_digest(base: str, revision: str | None) -> str:
    """Identity of a model: a folder's files, or a hub name with its revision.

    Of files over 8 MiB only the size and 16 KiB of every MiB are read: hashing hundreds of
    gigabytes at every start would cost more than the check is worth, and training changes whole
    tensors.
    """
    folder = Path(base)
    if not folder.is_dir():
        return digest("hub", base, revision)
    seen = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in {
            ".json",
            ".safetensors",
            ".jinja",
            ".model",
            ".bin",
            ".txt",
            ".gguf",
            ".py",
        }:
            continue
        seen.append([path.name, *_looked_at(path)])
    return digest("folder", seen)


def folder_digest(folder: Path) -> str:
    """Identity of all that a folder holds but hidden files; large ones as in `model_digest`."""
    return digest(
        sorted(
            [str(path.relative_to(folder)), *_looked_at(path)]
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
    )


def _looked_at(path: Path) -> list[Any]:
    size = path.stat().st_size
    if size <= 8 << 20:
        return [file_digest(path)]
    with open(path, "rb") as file:
        spots = hashlib.sha256()
        for start in range(0, size, 1 << 20):
            file.seek(start)
            spots.update(file.read(16 << 10))
    return [size, spots.hexdigest()]
