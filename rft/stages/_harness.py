"""What both stages of lm-evaluation-harness share: its index of tasks, and its silence."""

import difflib
import functools
import logging
import os
from typing import Any

from rft.types import RftError


@functools.cache
def manager(folder: str | None, tasks: tuple[str, ...]) -> Any:
    """The harness's TaskManager. Reading its own 14,000 tasks takes seconds, so they are left out where
    the folder has all that is asked for.

    Raises RftError for a task that there is none of, with names like it.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own
    found = TaskManager(include_path=folder)
    for name in tasks:
        if name not in found.task_index:
            near = difflib.get_close_matches(name, found.all_tasks, n=5, cutoff=0.5)
            near += [one for one in found.all_tasks if name in one and one not in near][:3]
            raise RftError(
                f"eval.harness.tasks: lm-evaluation-harness has no task {name!r}"
                + (f"; near it are {', '.join(near)}" if near else "")
                + ". `lm_eval ls tasks` lists all; your own go into the folder of include_path."
            )
    return found


def allow_code(allowed: bool) -> None:
    """Sets what the metric `code_eval` asks for before it runs what a model wrote."""
    if allowed:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"


def means(task: Any) -> list[str]:
    """A task's metrics that are a mean over problems and better where higher, in the task's order."""
    from lm_eval.api.metrics import mean

    better = task.higher_is_better()
    return [k for k, fn in task.aggregation().items() if fn is mean and better.get(k, True)]
