"""An adapter that is not its base's is refused, and a GGUF is the model that it was made of."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rft import export, rows
from rft.config import Model
from rft.merge import merged
from rft.types import RftError, TrainRow
from tests.unit.test_training_model import llama, start_from


def trained(folder: Path) -> Any:
    """What a plan knows of a finished training stage."""
    start_from(folder)
    rows.write_part(folder / "rows", [TrainRow("a", "p", (1, 2), (3, 4), False)], TrainRow)
    return SimpleNamespace(
        dir=SimpleNamespace(path=folder / "first"), job={"rows": str(folder / "rows")}
    )


def test_an_adapter_on_its_base_ismerged(tmp_path: Path):
    node = trained(tmp_path)
    assert merged(node, Model(base=str(tmp_path / "base")))[1] < 1e-3


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
        RftError, match=f"first: this adapter does not fit {base}: .*{told}"
    ) as fault:
        merged(node, Model(base=str(base)))
    assert "Restore the base" in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.slow
def test_llama_cpps_own_converter(tmp_path: Path):
    model, script = (os.environ.get(f"RFT_TEST_{name}") for name in ("MODEL", "CONVERTER"))
    if not model or not script:
        pytest.skip(
            "set RFT_TEST_MODEL, and RFT_TEST_CONVERTER to llama.cpp's convert_hf_to_gguf.py"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    node = SimpleNamespace(dir=SimpleNamespace(path=Path(model)), job={"model": {"base": model}})
    export.weights(node, "bf16", tmp_path, Path(script), "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine-bf16.gguf"]
    kept = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="mine-bf16.gguf", dtype=torch.bfloat16
    )
    ids = AutoTokenizer.from_pretrained(model)("Two and two is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(read(ids).logits, kept(ids).logits)
