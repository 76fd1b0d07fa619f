"""What `rft run` makes again before it goes on, and what it leaves."""

from pathlib import Path

import pytest

from rft import rows
from rft.mend import mend
from rft.nodes import Node
from rft.types import ProblemRow


def made(root: Path, kind: str, *needs: Node, finished: bool = True) -> Node:
    """A stage with one row."""
    node = Node(kind, kind, {"kind": kind}, needs, {}, root / "stages")
    node.dir.path.mkdir(parents=True)
    node.dir.begin(kind, node.inputs)
    rows.write_part(node.dir.path, [ProblemRow("p", 1, 1, 0, 0, ("4",), (True,), 3)], ProblemRow)
    if finished:
        node.dir.commit(1.0)
    return node


def kept(*nodes: Node) -> list[bool]:
    return [bool(rows.parts(node.dir.path)) for node in nodes]


@pytest.mark.parametrize("finished", [True, False])
def test_verdicts_do_not_outlive_what_they_are_on(tmp_path: Path, finished: bool) -> None:
    """A part of the samples was changed: it is drawn anew, and judged anew, though scoring had not ended."""
    sample = made(tmp_path, "sample")
    score = made(tmp_path, "score", sample, finished=finished)
    count = made(tmp_path, "eval", sample, score, finished=finished)
    (part,) = rows.parts(sample.dir.path)
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    mend([sample, score, count])
    assert not any(node.done for node in (sample, score, count))
    assert kept(score, count) == [False, False]


def test_a_stage_that_was_removed_takes_along_what_came_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sample = made(tmp_path, "sample")
    score = made(tmp_path, "score", sample, finished=False)
    select = made(tmp_path, "select", sample, score)
    train = made(tmp_path, "train", select)
    mend([sample, score, select, train])
    assert [sample.done, score.done, select.done, train.done] == [True, False, False, True]
    assert kept(sample, score, select) == [True, True, False]
    assert f"remove {train.dir.path} to train again" in capfd.readouterr().err


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    data = made(tmp_path, "prompts", finished=False)
    sample = made(tmp_path, "sample", data, finished=False)
    score = made(tmp_path, "score", data, sample, finished=False)
    other = made(tmp_path / "other", "score", data)
    mend([data, sample, score, other])
    assert kept(sample, score, other) == [True, True, True]
    assert other.done
