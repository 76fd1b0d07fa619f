"""Before a run goes on: what is missing or was changed is made ready to be made again, with all that came
of it."""

import json
from collections.abc import Iterable
from typing import Any

from rft import integrity, process, rows, rundir
from rft.integrity import Fault
from rft.nodes import Node
from rft.types import RftError

DERIVED = ("score", "select", "eval")
"""Kinds that are made again when what they read is: their rows follow from it, and cost little."""


def mend(nodes: Iterable[Node]) -> None:
    """nodes: each after those it needs. Files that a report reads are looked at in full, large ones that
    are older than their manifest by size alone. Raises RftError for a training that was changed: it may
    have taken days, so nobody's but the user's word starts it again."""
    again: set[str] = set()
    for node in nodes:
        _write_inputs(node)
        if node.kind in DERIVED and _is_outrun(node, again):
            if node.done:
                process.say(f"{node.label}: what it was made of is made again, and so is this")
            _clear(node)
            again.add(node.key)
            continue
        if not node.done:
            continue
        if node.kind == "train" and any(need.key in again for need in node.needs):
            process.say(
                f"{node.label}: is kept, though the rows it learnt from are made again. Where sampling is not "
                f"repeatable they may be others: remove {node.dir.path} to train again"
            )
        found = [str(fault) for fault in _found(node)]
        if node.kind == "train" and not found and (missing := node.dir.check()):
            found = [missing]
        if not found:
            continue
        process.say(f"{node.label}: {'; '.join(found)}: making the missing rows again")
        node.dir.reopen()
        if node.kind != "prompts":  # these come from the data, as they were
            again.add(node.key)


def _is_outrun(node: Node, again: set[str]) -> bool:
    """Whether rows that a stage has, finished or not, may come of others than it will be given."""
    needs = [need for need in node.needs if need.kind != "prompts"]
    return any(need.key in again or (node.done and not need.done) for need in needs)


def _found(node: Node) -> list[Fault]:
    """What is wrong with a stage; the files that were changed are set aside. A training's weights count
    only where they are torn."""
    found = list(integrity.stage_faults(node.dir, thorough=False))
    for fault in found:
        if fault.file.is_file():
            if node.kind == "train" and not integrity.is_weights(fault.file):
                raise RftError(
                    f"{fault}. Put back the file as it was, or remove {fault.file.parent} to train "
                    "again, and the folders of what was sampled from it as well"
                )
            if fault.file.name != "manifest.json":
                fault.file.rename(fault.file.with_name(fault.file.name + ".torn"))
    return found


def _as_read(node: Node) -> Any:
    return json.loads(rundir.to_json(rundir.stage_record(node.kind, node.inputs)))


def _write_inputs(node: Node) -> None:
    """Of stage.json the plan knows what it must say."""
    if node.dir.inputs() != _as_read(node):
        path = node.dir.path / "stage.json"
        if path.is_file():
            process.say(f"{node.label}: {path}: {integrity.CHANGED}: written again")
            path.unlink()
        if node.dir.path.is_dir():
            node.dir.begin(node.kind, node.inputs)


def _clear(node: Node) -> None:
    """A verdict must not stand for a text that was drawn anew."""
    for folder in (node.dir.path, node.dir.path / "train", node.dir.path / "choices"):
        rows.clear(folder)
    node.dir.reopen()
