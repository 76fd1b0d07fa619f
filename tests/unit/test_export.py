"""What `rft export` says of an adapter that is not its base's."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rft import rows
from rft.config import Model
from rft.export import _merged
from rft.types import RftError, TrainRow
from tests.unit.test_training_model import llama, start_from


def trained(folder: Path) -> Any:
    """What a plan knows of a finished training stage."""
    start_from(folder)
    rows.write_part(folder / "rows", [TrainRow("a", "p", (1, 2), (3, 4), False)], TrainRow)
    return SimpleNamespace(
        dir=SimpleNamespace(path=folder / "first"), job={"rows": str(folder / "rows")}
    )


def test_an_adapter_on_its_base_is_merged(tmp_path: Path):
    node = trained(tmp_path)
    assert _merged(node, Model(base=str(tmp_path / "base")))[1] < 1e-3


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"hidden_size": 16}, r"lora_B.weight is \(32, 16\) in it, and in the model \(16, 16\)"),
        ({"num_hidden_layers": 1}, r"layers.1.* and in the model not there"),
    ],
)
def test_an_adapter_of_another_base_is_named(tmp_path: Path, changes, told):
    node = trained(tmp_path)
    base = tmp_path / "base"
    shutil.rmtree(base)
    llama(**changes).save_pretrained(base)
    with pytest.raises(
        RftError, match=f"first: this adapter is none for {base}: .*{told}"
    ) as fault:
        _merged(node, Model(base=str(base)))
    assert "Put the base back" in str(fault.value) and "\n" not in str(fault.value)
