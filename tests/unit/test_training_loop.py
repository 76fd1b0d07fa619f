"""The learning rate by table, and checkpoints that are whole or ignored."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from rft.config_train import Train
from rft.training import checkpoint
from rft.training.loop import learning_rate


@pytest.mark.parametrize(
    "schedule, warmup, steps, expected",
    [
        ("constant", 0.0, 4, [1, 1, 1, 1]),
        ("linear", 0.0, 4, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, 4, [1, 0.853553, 0.5, 0.146447]),
        ("constant", 0.5, 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("linear", 0.5, 4, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0.5, 4, [1 / 3, 2 / 3, 1, 0.5]),
        ("linear", 1.0, 2, [1 / 3, 2 / 3]),
        ("cosine", 0.05, 1, [1]),
    ],
)
def test_learning_rate(schedule, warmup, steps, expected):
    train = Train(lr=2e-3, schedule=schedule, warmup_ratio=warmup)
    got = [learning_rate(step, steps, train) for step in range(steps)]
    assert got == pytest.approx([2e-3 * share for share in expected], rel=1e-5)


def state(value: float) -> dict:
    return {"adapter": {"w": torch.full((3,), value)}, "some": [1, (2.5, None)]}


def names(stage: Path) -> list[str]:
    return sorted(path.name for path in (stage / ".checkpoints").iterdir())


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path):
    assert checkpoint.load(tmp_path) is None
    for step in (3, 6, 9, 12):
        checkpoint.save(tmp_path, step, state(step))
    assert names(tmp_path) == [".step-000000009-000", ".step-000000012-000"]
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 12 and loaded["some"] == [1, (2.5, None)]
    assert checkpoint.fill(loaded, {})["adapter"]["w"].tolist() == [12.0] * 3


def test_a_checkpoint_of_a_regular_step_outlives_interruptions(tmp_path: Path):
    """Leaps are rolled back to it, as they would be had there been no interruption."""
    for step in (4, 5, 6, 7):
        checkpoint.save(tmp_path, step, state(step), every=4)
    assert names(tmp_path) == [f".step-00000000{step}-000" for step in (4, 6, 7)]
    loaded = [checkpoint.load(tmp_path), checkpoint.load(tmp_path, every=4)]
    assert [one and one["step"] for one in loaded] == [7, 4]
    assert checkpoint.load(tmp_path, every=3)["step"] == 6


def test_a_step_that_is_saved_again_takes_the_place_of_its_first_checkpoint(tmp_path: Path):
    for value in (1, 2, 3):
        checkpoint.save(tmp_path, 4, state(value))
    checkpoint.save(tmp_path, 8, state(4))
    assert names(tmp_path) == [".step-000000004-002", ".step-000000008-000"]
    last = tmp_path / ".checkpoints" / ".step-000000004-002"
    checkpoint.drop_after(tmp_path, last)
    loaded = checkpoint.load(tmp_path)
    assert loaded and loaded["folder"] == last
    assert checkpoint.fill(loaded, {})["adapter"]["w"].tolist() == [3.0] * 3


FILES = ["__0_0.distcp", ".metadata", checkpoint.PLAIN, checkpoint.DIGESTS]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, name, damage, capfd):
    checkpoint.save(tmp_path, 3, state(3))
    checkpoint.save(tmp_path, 6, state(6))
    folder = tmp_path / ".checkpoints" / ".step-000000006-000"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data}.get(damage, b""))
    if damage == "gone":
        path.unlink()
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 3
    assert f"{folder}: this checkpoint is damaged" in capfd.readouterr().err
    # Otherwise it would count as one of the two that are kept.
    checkpoint.drop_after(tmp_path, loaded["folder"])
    assert not folder.exists()
    checkpoint.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["_begin", "_write", "_digests", "_commit"])
def test_a_kill_while_it_is_written_leaves_the_ones_before(tmp_path: Path, moment):
    class Kill(BaseException):
        pass

    def killed(*args: Any) -> None:
        if moment == "_write":
            write(*args)
            next(args[0].glob("__0_*")).write_bytes(b"half")
        raise Kill

    checkpoint.save(tmp_path, 3, state(3))
    write = checkpoint._write
    with patch.object(checkpoint, moment, killed), pytest.raises(Kill):
        checkpoint.save(tmp_path, 6, state(6))
    loaded = checkpoint.load(tmp_path)
    assert loaded and loaded["step"] == 3
    checkpoint.save(tmp_path, 6, state(6))
    assert names(tmp_path) == [".step-000000003-000", ".step-000000006-000"]


def test_metrics_are_rewound_to_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": %d, "loss": 0.5}\n' % step for step in range(1, 6)]
    path.write_bytes(b"".join(lines) + b'{"step": 2, "lo')
    checkpoint.rewind_metrics(path, 3)
    assert path.read_bytes() == b"".join(lines[:3])
    checkpoint.rewind_metrics(path, 0)
    assert path.read_bytes() == b""
