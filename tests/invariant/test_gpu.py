"""What a GPU may not change: trees are rows, formats are what they say, a run repeats itself.

Skipped without one. The model is a very small random Llama, so all of it takes a minute or two, most of it
compiling.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rft.config import Model
from rft.config_train import Precision, Train
from rft.precision import HAS_TRITON, products
from rft.training import attention, layers
from rft.training.data import Group, Layout, collate, split
from rft.training.job import train_job
from rft.training.lora import fuse
from rft.training.model import adapt
from rft.training.objective import Fit, Objective, check_layout
from rft.training.stop import StopSignal
from tests.invariant.test_training import base, job, write_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
__all__ = ["base"]
LORA: dict[str, Any] = {"lora": {"rank": 8}}


def groups(seed: int, count: int, longest: int) -> list[Group]:
    """Three completions a prompt, two of which begin alike."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        prompt = draw.integers(0, 256, draw.integers(1, longest), np.int32)
        ids = [draw.integers(0, 256, size, np.int32) for size in draw.integers(2, longest, 3)]
        ids[1] = np.concatenate([ids[0][: len(ids[0]) // 2], ids[1]])
        ids = [np.array(some, np.int32) for some in sorted(some.tolist() for some in ids)]
        found.append(Group(f"p{number}", prompt, tuple(ids), (1.0, 0.5, 2.0)))
    return found


def learnt(model: Any, fit: Fit, some: list[Group], device: str) -> tuple[float, torch.Tensor]:
    """Loss and gradients."""
    objective = Objective(model.to(device), fit, None)
    loss = objective(collate(some, fit.layout).to(torch.device(device)))
    loss.backward()
    grads = [p.grad.flatten().cpu() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return loss.item(), torch.cat(grads)


@pytest.mark.parametrize("triton", [True, False], ids=["flex", "sdpa"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_trees_on_a_gpu_are_rows_on_a_cpu(
    base: Path, triton: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
):
    if triton and not HAS_TRITON:
        pytest.skip("there is no Triton")
    monkeypatch.setattr(attention, "HAS_TRITON", triton)
    monkeypatch.setattr(attention, "FLEX_FROM", 0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    train = Train(lora={"rank": 4})
    adapted = adapt(model, train, 0)
    for name, param in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.05)
    exact = copy.deepcopy(adapted)
    adapted.to("cuda")
    with products(train.precision):
        some = groups(0, 2, 30)
        fit = check_layout(model, Model(base=str(base)), some, train)
        assert (fit.layout, fit.fused_head) == (Layout.TREE, True), fit.why
        if fused:
            assert fuse(adapted) and layers.replace(model)
        # Several blocks, and several lengths, for which the kernels are made anew.
        for number, (count, longest) in enumerate([(2, 20), (5, 80), (3, 119), (4, 100)]):
            some = groups(number, count, longest)
            got = learnt(adapted, fit, some, "cuda")
            wanted = learnt(exact, Fit(Layout.ROWS), some, "cpu")
            assert got[0] == pytest.approx(wanted[0], rel=1e-5)
            assert (got[1] - wanted[1]).norm() < 1e-4 * wanted[1].norm()


def test_tf32_is_used_when_asked_for_and_only_then():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(512, 512, generator=draw)
    exact, on_gpu = x.double() @ x.double(), x.to("cuda")
    off = {}
    for compute in ("fp32", "tf32"):
        with products(Precision(compute=compute)):
            got = (on_gpu @ on_gpu).cpu().double()
        off[compute] = float((got - exact).norm() / exact.norm())
    assert off["fp32"] < 1e-6
    # Fractions of 10 bits.
    assert 1e-5 < off["tf32"] < 2e-3


def run(folder: Path, base: Path, data: Path, **train: Any) -> tuple[dict, dict, list[dict]]:
    """Manifest, weights and lines of a run."""
    made = job(folder, base, data, **{**LORA, **train})
    train_job(made, StopSignal())
    weights = load_file(folder / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "manifest.json").read_text()), weights, lines


WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"precision": {"compute": "tf32"}},
    "bf16": {"precision": {"compute": "bf16", "base": "bf16"}},
    "bf16 over fp32": {"precision": {"compute": "bf16"}},
    "fp16": {"precision": {"compute": "fp16", "base": "fp16"}},
    "rows": {"layout": "rows", "precision": {"compute": "bf16", "base": "bf16"}},
    "int8": {"precision": {"compute": "bf16", "base": "int8"}},
    "nf4": {"precision": {"compute": "bf16", "base": "nf4"}},
    # Moments of fewer than 4,096 numbers stay in 32 bits.
    "8-bit moments": {"optimizer": "adamw_8bit", "lora": {"rank": 64}},
    "paged": {"optimizer": "paged_adamw_8bit", "lora": {"rank": 64}},
    "compiled": {"compile": True, "precision": {"compute": "bf16", "base": "bf16"}},
    "checkpointed": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_learns_what_fp32_does(base: Path, tmp_path: Path, way: str):
    data = write_rows(tmp_path / "rows")
    manifest, _, lines = run(tmp_path / "run", base, data, **WAYS[way])
    torch.cuda.empty_cache()
    _, _, exact = run(tmp_path / "exact", base, data, lora=WAYS[way].get("lora", LORA["lora"]))
    losses = [line["loss"] for line in lines]
    print(way, manifest["proofs"], manifest["precision"], losses[0], losses[-1])
    assert manifest["device"] == "cuda"
    assert losses[-1] < losses[0] - 0.2
    assert losses[-1] == pytest.approx(exact[-1]["loss"], abs=0.15)
    assert manifest["layout"]["kind"] == ("rows" if way == "rows" else "tree"), manifest["layout"]


def test_a_run_repeats_itself_to_the_last_bit(base: Path, tmp_path: Path):
    data = write_rows(tmp_path / "rows")
    first, second = (run(tmp_path / name, base, data, **WAYS["bf16"])[1] for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_long_group_is_cut_and_its_parts_are_the_whole(base: Path):
    """Padding to whole blocks adds nothing."""
    model = adapt(AutoModelForCausalLM.from_pretrained(base), Train(**LORA), 0).to("cuda")
    (one,) = groups(0, 1, 119)
    fit = check_layout(model.get_base_model(), Model(base=str(base)), [one], Train(**LORA))
    whole = learnt(model, fit, [one], "cuda")[0]
    parts = sum(learnt(model, fit, [part], "cuda")[0] for part in split(one, 1))
    assert whole == pytest.approx(parts, rel=1e-5)
