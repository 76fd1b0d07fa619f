"""What each arm was told to do, as plain data: the arms' own keys over the experiment's body."""

from typing import Any

from pydantic import ValidationError

from rft.config import Arm, merge
from rft.rundir import flatten

Settings = dict[str, Any]

_SPEED = {
    *("max_num_seqs", "kv_cache_gb", "gpu_memory_utilization"),
    *("tensor_parallel", "data_parallel", "compile"),
}
"""Keys of an engine that change speed and memory, not what is sampled."""


def resolved(job: dict[str, Any]) -> dict[str, Settings]:
    """Arm -> all of its settings. An arm whose settings nobody told, or that are another version's, is
    left out. An entry of the job may have `settings` of its own."""
    config = job.get("config") or {}
    body = {key: config[key] for key in Arm.model_fields if key in config}
    found: dict[str, Settings] = {}
    for entry in job["arms"]:
        name = entry["arm"].partition("@")[0]
        if name in found:
            continue
        told = (config.get("arms") or {}).get(name)
        try:
            if own := entry.get("settings"):
                arm = Arm.model_validate(own)
            elif told is not None:
                arm = Arm.model_validate(merge(body, told))
            else:
                continue
        except ValidationError:
            continue
        found[name] = arm.model_dump(mode="json")
    return found


def asked(settings: Settings) -> Settings:
    """What decides the answers of an evaluation and their verdicts, but for the trained weights."""
    own = settings["eval"]
    apart = ("k", "chat", "score", "inference", "engine", "logprobs", "train_problems")
    scorers = own["score"] or settings["score"]
    return {
        "eval": {key: value for key, value in own.items() if key not in apart},
        "engine": {k: v for k, v in own["engine"].items() if k not in _SPEED},
        "chat": merge(settings["chat"], own["chat"]),
        "score": {str(i): one for i, one in enumerate(scorers)},
        "combine": settings["combine"] if own["score"] is None and len(scorers) > 1 else {},
    }


def differing(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> both values, where they differ."""
    mine, theirs = flatten(one), flatten(other)
    return {
        path: (mine.get(path), theirs.get(path))
        for path in sorted(mine.keys() | theirs.keys())
        if mine.get(path) != theirs.get(path)
    }


def table(arms: dict[str, Settings]) -> list[dict[str, Any]]:
    """The dotted paths in which arms differ, each with every arm's value, None where it has none. Of a
    section that is null in one arm (`train`) the paths within count among the others alone."""
    flat = {
        name: {path: value for path, value in flatten(one).items() if value not in ({}, [])}
        for name, one in arms.items()
    }
    paths = sorted({path for one in flat.values() for path in one})
    out = []
    for path in paths:
        values = {name: one.get(path, _section(path, one)) for name, one in flat.items()}
        counted = [values[name] for name, one in flat.items() if not _within_null(path, one)]
        if any(value != counted[0] for value in counted):
            out.append({"path": path, "values": values})
    return out


def _section(path: str, flat: Settings) -> str | None:
    """What stands for a section where another arm has a single value."""
    return "(set)" if any(other.startswith(f"{path}.") for other in flat) else None


def _within_null(path: str, flat: Settings) -> bool:
    parts = path.split(".")
    above = (".".join(parts[:i]) for i in range(1, len(parts)))
    return any(one in flat and flat[one] is None for one in above)
