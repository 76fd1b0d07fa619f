"""The learning rate by table, and checkpoints that are whole or ignored."""

from pathlib import Path

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
    return {"adapter": {"w": torch.full((3,), value)}}


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path):
    assert checkpoint.load(tmp_path) is None
    for step in (3, 6, 9, 12):
        checkpoint.save(tmp_path, step, state(step))
    assert [p.name for p in sorted((tmp_path / ".checkpoints").iterdir())] == [
        ".step-000000009.pt",
        ".step-000000012.pt",
    ]
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 12
    assert loaded["adapter"]["w"].tolist() == [12.0] * 3


def test_a_checkpoint_of_a_regular_step_outlives_interruptions(tmp_path: Path):
    """Leaps are rolled back to it, as they would be had there been no interruption."""
    for step in (4, 5, 6, 7):
        checkpoint.save(tmp_path, step, state(step), every=4)
    kept = [p.name for p in sorted((tmp_path / ".checkpoints").iterdir())]
    assert kept == [f".step-00000000{step}.pt" for step in (4, 6, 7)]
    loaded = [checkpoint.load(tmp_path), checkpoint.load(tmp_path, every=4)]
    assert [one and one["step"] for one in loaded] == [7, 4]
    assert checkpoint.load(tmp_path, every=3)["step"] == 6


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage, capfd):
    checkpoint.save(tmp_path, 3, state(3))
    checkpoint.save(tmp_path, 6, state(6))
    path = tmp_path / ".checkpoints" / ".step-000000006.pt"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes({"cut": data[:-100], "flip": data, "empty": b""}[damage])
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 3
    assert ".step-000000006.pt: this checkpoint is damaged" in capfd.readouterr().err
    # Otherwise it would count as one of the two that are kept.
    checkpoint.drop_damaged(tmp_path, 3)
    assert not path.exists()
    checkpoint.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_rewound_to_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": %d, "loss": 0.5}\n' % step for step in range(1, 6)]
    path.write_bytes(b"".join(lines) + b'{"step": 2, "lo')
    checkpoint.rewind_metrics(path, 3)
    assert path.read_bytes() == b"".join(lines[:3])
    checkpoint.rewind_metrics(path, 0)
    assert path.read_bytes() == b""
