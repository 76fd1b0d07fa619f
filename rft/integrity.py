"""Is a run still what its stages wrote? Every file, manifest, key, link and setting against its digest.

Made to find what was changed by hand or on its way, such as one verdict, one row or one setting. It
is no seal against somebody who makes all digests anew.

    manifest.json    tells the bytes and SHA-256 of each file of its stage, and a digest of itself
    stage.json       tells what the stage's key was made of; the folder's name begins with that key
    run.json         tells the digest of experiment.yaml and which stage each arm and seed uses
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rft import rows, rundir
from rft.rundir import StageDir
from rft.types import RftError, Verdict, digest

TRUSTED = 64 << 20
"""Bytes from which a file that is older than its manifest is not read at each start of `rft run`."""

RUN = "run.json"
CHANGED = "was changed after it was written"


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it was written."""

    file: Path
    why: str

    def __str__(self) -> str:
        return f"{self.file}: {self.why}"


def stage_faults(stage: StageDir, thorough: bool = True) -> Iterator[Fault]:
    """What is wrong with a finished stage. A training's weights are not read, and may be missing, since
    runs are copied without them. thorough: read large files too that are older than
    the manifest."""
    path = stage.path / "manifest.json"
    manifest = stage.manifest()
    if manifest is None:
        yield Fault(path, "is missing" if not path.is_file() else "is no JSON object")
        return
    told = {k: v for k, v in manifest.items() if k != "digest"}
    files = told.get("files")
    if (
        "digest" not in manifest
        or not isinstance(files, dict)
        or not all(
            isinstance(known, dict) and {"bytes", "sha256"} <= known.keys()
            for known in files.values()
        )
    ):
        yield Fault(
            path,
            "was changed, or written by another version of rft: it does not tell its files' digests",
        )
        return
    if digest(told) != manifest["digest"]:
        yield Fault(path, CHANGED)
    yield from _key_faults(stage)
    written = path.stat().st_mtime_ns
    for name, known in files.items():
        if fault := _file_fault(stage.path / name, known, written, thorough):
            yield fault
    for part in sorted(stage.path.rglob("part-*.parquet")):
        inner = part.relative_to(stage.path)
        # A killed stage may have left its scratch folder.
        if str(inner) not in files and not any(name.startswith(".") for name in inner.parts):
            yield Fault(part, "was put there after the stage had ended")


def _key_faults(stage: StageDir) -> Iterator[Fault]:
    path, record = stage.path / "stage.json", stage.inputs()
    if record is None:
        yield Fault(path, "is missing, or no JSON object")
    elif record.get("key") != digest(record.get("inputs")):
        yield Fault(path, "was changed: its key is not that of its inputs")
    elif stage.path.parent.name == "stages":
        # A copy that followed the links has other folders.
        if stage.path.name != stage_name(stage):
            yield Fault(path, f"belongs to a folder called {stage_name(stage)}")


def _file_fault(path: Path, known: Any, written: int, thorough: bool) -> Fault | None:
    try:
        seen = path.stat()
    except FileNotFoundError:
        return None if is_weights(path) else Fault(path, "is missing")
    if seen.st_size != known["bytes"]:
        return Fault(path, f"has {seen.st_size} bytes instead of {known['bytes']}")
    if is_weights(path):
        return None
    if not thorough and seen.st_size > TRUSTED and seen.st_mtime_ns <= written:
        return None
    if rundir.file_digest(path) != known["sha256"]:
        return Fault(path, CHANGED)
    return None


def is_weights(path: Path) -> bool:
    """Nothing that a report reads."""
    return path.suffix in (".safetensors", ".bin")


def count_faults(evaluated: Path, scored: Path) -> Iterator[Fault]:
    """Whether an evaluation's rows say what its score rows say: correct and unknown, by problem."""
    told = rows.read_table(scored, ["id", "prompt_id", "verdict"])
    verdict = told["verdict"]
    counted = pa.table(
        {
            "prompt_id": told["prompt_id"],
            "n": pa.repeat(1, len(told)),
            **{
                name: pc.equal(verdict, str(value)).cast(pa.int64())
                for name, value in (("correct", Verdict.CORRECT), ("unknown", Verdict.UNKNOWN))
            },
        }
    )
    names = ["n", "correct", "unknown"]
    counted = counted.group_by("prompt_id").aggregate([(name, "sum") for name in names])
    counted = counted.sort_by("prompt_id")
    rows_P = rows.read_table(evaluated, ["prompt_id", *names]).sort_by("prompt_id")
    if not rows_P["prompt_id"].equals(counted["prompt_id"]):
        yield Fault(evaluated, f"its problems are not those that {scored.name} has verdicts on")
        return
    differ = np.zeros(len(rows_P), dtype=bool)
    for name in names:
        differ |= rows_P[name].to_numpy() != counted[f"{name}_sum"].to_numpy()
    if differ.any():
        first = rows_P["prompt_id"][int(np.flatnonzero(differ)[0])]
        yield Fault(
            evaluated,
            f"{int(differ.sum()):,} problems are not what the verdicts in {scored.name} make of them, the "
            f"first is {first}",
        )


def seal(run: Path, links: dict[str, str]) -> None:
    """Writes run.json. links: of each arm and seed, in the order of the settings, the place in the run's
    folder and the name of the stage that it is a link to."""
    told = {"experiment": rundir.file_digest(run / "experiment.yaml"), "links": links}
    rows.write_bytes(run / RUN, rundir.to_json({**told, "digest": digest(told)}))


def links(run: Path) -> dict[str, str]:
    """What `seal` was told. Raises RftError where it was never called."""
    found: dict[str, str] = _sealed(run)["links"]
    return found


def _sealed(run: Path) -> dict[str, Any]:
    sealed = rundir.read_json(run / RUN) or {}
    told = sealed.get("links")
    if not isinstance(told, dict) or not all(isinstance(stage, str) for stage in told.values()):
        raise RftError(
            f"{run / RUN}: is missing, or tells no links: give the run's command (`rft run`) again, which "
            "writes it anew and makes no finished stage again"
        )
    return sealed


def run_faults(run: Path) -> Iterator[Fault]:
    """Whether the run's settings and links are those that `rft run` wrote."""
    sealed = _sealed(run)
    if sealed.get("digest") != digest({k: v for k, v in sealed.items() if k != "digest"}):
        yield Fault(run / RUN, CHANGED)
    config = run / "experiment.yaml"
    if not config.is_file():
        yield Fault(config, "is missing")
    elif rundir.file_digest(config) != sealed.get("experiment"):
        yield Fault(config, CHANGED)
    for name, stage in sealed["links"].items():
        place = run / name
        if place.is_symlink():
            if place.readlink().name != stage:
                yield Fault(place, f"is a link to {place.readlink().name}, and was one to {stage}")
        elif stage_name(StageDir(place)) != stage:
            # A copy that followed the links has folders in their place.
            yield Fault(place, f"is missing: it was a link to {stage}")


def stage_name(stage: StageDir) -> str | None:
    """The name of a stage's folder by its stage.json."""
    record = stage.inputs()
    return f"{record.get('kind')}-{str(record.get('key'))[:12]}" if record else None


@contextlib.contextmanager
def fitting(faults: Sequence[object]) -> Iterator[None]:
    """Around the reading of what may have been changed: raises RftError where it does not fit together."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as wrong:
        if not faults:
            raise
        raise RftError(
            f"what was changed does not fit together any more, so that nothing can be reported of it, not "
            f"with --flagged either ({type(wrong).__name__}: {wrong}). `rft run` makes it again. The first of "
            f"{len(faults)}: {faults[0]}"
        ) from wrong


def refuse(faults: Iterable[Fault]) -> None:
    """Raises RftError for the first few of them."""
    found = list(faults)
    if found:
        more = f"\nand {len(found) - 5} more" if len(found) > 5 else ""
        raise RftError(
            "this run is not as it was written, so nothing is reported of it:\n"
            + "\n".join(f"  {fault}" for fault in found[:5])
            + f"{more}\n`rft run` makes again what was changed. `rft compare --flagged` reports all the same, "
            "and says so."
        )
