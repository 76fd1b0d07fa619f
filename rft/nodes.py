"""What a plan is made of: stages by their keys, and which of them an arm and seed use."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rft.rundir import StageDir
from rft.samplers import _formats
from rft.types import RftError, digest


@dataclass(frozen=True)
class Node:
    """One stage to run: its key's inputs, the stages it reads, and what its process is told."""

    kind: str
    """prompts, sample, score, select, train or eval; tasks or harness."""
    label: str
    inputs: dict[str, Any]
    needs: tuple["Node", ...]
    job: dict[str, Any] = field(repr=False)
    stages: Path = field(repr=False)
    late: bool = False
    """Evaluation waits for all training, so that one engine serves every arm."""

    @functools.cached_property
    def key(self) -> str:
        return digest(self.inputs)

    @property
    def dir(self) -> StageDir:
        return StageDir(self.stages / f"{self.kind}-{self.key[:12]}")

    @property
    def done(self) -> bool:
        return self.dir.manifest() is not None


@dataclass(frozen=True)
class ArmPlan:
    """The nodes of one arm and seed, by the name of the link to each."""

    arm: str
    """The arm's name; for a round that is not its last, `NAME@ROUND`."""
    seed: int
    links: dict[str, Node]


def in_order(wanted: Iterable[Node]) -> Iterator[Node]:
    """The wanted nodes and all that they need, each once and after those it needs."""
    seen: set[str] = set()

    def visit(node: Node) -> Iterator[Node]:
        if node.key in seen:
            return
        for need in node.needs:
            yield from visit(need)
        seen.add(node.key)
        yield node

    for node in wanted:
        yield from visit(node)


def _gives_adapter(node: Node) -> bool:
    """Whether it trains an adapter that engines serve as one."""
    lora = node.job["train"]["lora"] if node.kind == "train" else None
    return lora is not None and not lora["dora"]


def refuse_formats(nodes: Iterable[Node]) -> None:
    """Raises RftError for samples to be drawn in a number format that their sampler or this machine
    lacks."""
    for node in nodes:
        if node.kind == "sample" and not node.done:
            adapted = any(_gives_adapter(need) for need in node.needs)
            if fault := _formats.missing(node.job["engine"]["dtype"], node.job["use"], adapted):
                raise RftError(f"{node.job['setting']}: {fault}")
