"""First of all, where tasks of lm-evaluation-harness are asked for: are they there, and what do they run?

Loads each task with its data, so that what is missing is said before anything is sampled.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rft import process
from rft.rundir import StageDir
from rft.stages import _harness
from rft.types import RftError


def run(jobs: list[dict[str, Any]]) -> None:
    """Raises RftError for a task that is unknown, lacks its data, runs code, or has no value for each
    problem."""
    for job in jobs:
        started, asked = time.monotonic(), job["harness"]
        _harness.allow_code(asked["unsafe_code"])
        found = _harness.manager(asked["include_path"], tuple(asked["tasks"]))
        told = {name: _look(found, name, asked["unsafe_code"]) for name in asked["tasks"]}
        StageDir(Path(job["folder"])).commit(time.monotonic() - started, tasks=told)


def _look(found: Any, name: str, unsafe: bool) -> dict[str, Any]:
    """Task -> its problems and metrics, for a task, group or tag."""
    # Before it is loaded: some run code as they are.
    for leaf in _leaves(found.task_index, name):
        config = found.task_index[leaf].cfg or {}
        if config.get("unsafe_code") and not unsafe:
            raise RftError(
                f"eval.harness.tasks: {leaf} runs what the model writes on this machine, in no sandbox. Set "
                "eval.harness.unsafe_code=true if this machine may be harmed; the scorer `code` of rft runs "
                "such problems in a sandbox"
            )
    try:
        loaded = found.load([name])["tasks"]
    except Exception as fault:
        said = f"eval.harness.tasks: {name} cannot be loaded: {_short(fault)}"
        if isinstance(fault, OSError | ValueError):
            said += (
                ". Its data set must be in the cache of the Hugging Face hub or to be had from there; or copy "
                "the task's YAML into a folder of your own (include_path), with `dataset_path: json` and the "
                "files under dataset_kwargs.data_files"
            )
        raise RftError(said) from fault
    for leaf, task in loaded.items():
        if not _harness.means(task):
            raise RftError(
                f"eval.harness.tasks: {leaf} has no metric that is a mean over problems (it has "
                f"{', '.join(task.aggregation()) or 'none'}), so arms cannot be compared on it problem by "
                "problem: leave it out"
            )
    return {
        leaf: {"problems": len(task.eval_docs), "metrics": _harness.means(task)}
        for leaf, task in loaded.items()
    }


def _leaves(index: Any, name: str) -> Iterator[str]:
    """The tasks of a group or tag as far as the index names them; of a task itself."""
    entry = index[name]
    inner = (entry.cfg or {}).get("task") if "group" in (entry.cfg or {}) else sorted(entry.tags)
    if entry.kind.name in ("TASK", "PY_TASK"):
        yield name
        return
    for one in inner if isinstance(inner, list) else [inner]:
        one = one.get("task", one.get("group")) if isinstance(one, dict) else one
        if isinstance(one, str) and one in index and one != name:
            yield from _leaves(index, one)


def _short(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {lines[0][:300] if lines else ''}".rstrip(": ")


if __name__ == "__main__":
    process.stage_main(run)
