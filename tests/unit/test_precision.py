"""Masters that keep small updates, loss scaling that saves small gradients, formats that are refused."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rft.config_train import Precision, Train
from rft.precision import LossScale, autocast_dtype, check_hardware, zero_share
from rft.training.data import Layout, collate
from rft.training.lora import fuse
from rft.training.objective import Fit, Objective
from rft.types import RftError
from tests.unit.test_training_model import adapted, llama, some_groups

FP16 = Precision(compute="fp16")
TOKENS = 1e7
"""Of a step, by whose number the loss is divided: the gradients are as small as in a large run."""


def learnt(scaled: bool, fused: bool) -> tuple[float, float, float]:
    """Loss before and after 8 steps in fp16, and the share of gradients that were 0 at the last."""
    model = adapted(llama())
    if fused:
        fuse(model)
    objective = Objective(model, Fit(Layout.ROWS), autocast_dtype(FP16))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, eps=1e-16)
    scale = LossScale("cpu", FP16 if scaled else Precision())
    batch, losses = collate(some_groups(), Layout.ROWS), []
    for _ in range(8):
        loss = objective(batch)
        losses.append(loss.item())
        scale.scaled(loss / TOKENS).backward()
        scale.unscale(optimizer)
        zeros = zero_share(trainable)
        scale.step(optimizer)
        optimizer.zero_grad()
    assert scale.skipped == 0
    return losses[0], losses[-1], zeros


@pytest.mark.parametrize("fused", [False, True])
def test_unscaled_fp16_underflows_and_scaled_fp16_learns(fused):
    before, after, zeros = learnt(scaled=False, fused=fused)
    assert zeros > 0.9
    assert after > 0.97 * before
    before, after, zeros = learnt(scaled=True, fused=fused)
    assert zeros < 0.1
    assert after < 0.8 * before


def test_a_gradient_that_overflows_costs_its_step_and_halves_the_scale():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scale = LossScale("cpu", FP16)
    first = scale.facts["loss_scale"]
    for grad, took in ((math.inf, False), (1.0, True), (math.nan, False)):
        scale.scaled((weight * grad).sum()).backward()
        scale.unscale(optimizer)
        before = weight.detach().clone()
        assert scale.step(optimizer) is took
        assert torch.equal(before, weight) is not took
        optimizer.zero_grad()
    assert scale.facts == {"loss_scale": first / 4, "skipped_steps": 2}
    again = LossScale("cpu", FP16)
    again.load_state_dict(scale.state_dict())
    assert again.facts == scale.facts
    # A roll-back comes after the gradients were divided, and before the step.
    scale.scaled(weight.sum()).backward()
    scale.unscale(optimizer)
    scale.load_state_dict(again.state_dict())
    optimizer.zero_grad()
    scale.scaled(weight.sum()).backward()
    scale.unscale(optimizer)
    assert scale.step(optimizer)


def test_a_scale_that_collapses_stops_with_advice():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scale = LossScale("cpu", FP16)

    def overflow() -> None:
        scale.scaled((weight * math.inf).sum()).backward()
        scale.unscale(optimizer)
        scale.step(optimizer)
        optimizer.zero_grad()

    while scale.facts["loss_scale"] > 1:
        overflow()
    with pytest.raises(RftError, match=r"loss scale has fallen to 0\.5: .*compute to bf16"):
        overflow()


def test_other_formats_are_not_scaled():
    scale = LossScale("cpu", Precision(compute="bf16"))
    assert scale.scaled(torch.tensor(3.0)).item() == 3.0
    assert scale.facts == {}


def test_updates_that_bf16_masters_lose_survive_in_fp32():
    """A thousand updates of 1e-4 each: half a unit in the last place of a bf16 near 1 is 2e-3."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))
        optimizer = torch.optim.SGD([weight], lr=1e-4)
        for _ in range(1000):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        found[dtype] = weight.detach().float()
    assert torch.equal(found[torch.bfloat16], torch.ones(4))
    assert torch.allclose(found[torch.float32], torch.full((4,), 0.9), atol=1e-4)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"master": "bf16"}, "rounded away"),
        ({"compute": "fp32", "base": "bf16"}, "would compute in bf16"),
        ({"compute": "tf32", "base": "fp16"}, "would compute in fp16"),
        ({"compute": "fp16", "base": "bf16"}, "infinite in fp16"),
        ({"compute": "fp8"}, "fp32"),
    ],
)
def test_combinations_that_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ValidationError, match=told):
        Precision(**settings)


def test_all_weights_are_masters_so_their_storage_is_fp32():
    with pytest.raises(ValidationError, match="set precision.base to fp32, or give a lora"):
        Train(lora=None, precision={"compute": "bf16", "base": "bf16"})


def test_formats_that_the_machine_lacks():
    with pytest.raises(RftError, match=r"compute: tf32: there is none on a CPU\. Set it to fp32$"):
        check_hardware(Train(precision=Precision(compute="tf32")), torch.device("cpu"))
    with pytest.raises(RftError, match="reduce: bf16: only GPUs add up in it. Set it to fp32"):
        check_hardware(Train(precision=Precision(reduce="bf16")), torch.device("cpu"))
    check_hardware(Train(precision=Precision(compute="fp16", base="fp16")), torch.device("cpu"))


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"compute": "tf32"}, r"tf32: Old GPU has none\. Set it to fp32$"),
        ({"compute": "bf16"}, r"bf16: Old GPU has none\. Set it to fp16$"),
        (
            {"compute": "bf16", "base": "bf16"},
            r"bf16: Old GPU has none\. Set it to fp16, and base as well$",
        ),
    ],
)
def test_formats_that_a_gpu_lacks(monkeypatch: pytest.MonkeyPatch, settings, told):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Old GPU")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **how: False)
    with pytest.raises(RftError, match=f"train.precision.compute: {told}"):
        check_hardware(Train(precision=settings), torch.device("cuda"))


def test_bitsandbytes_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RftError, match=r"base: nf4 needs bitsandbytes: pip install 'rft\[quant\]'"):
        check_hardware(Train(precision=Precision(compute="bf16", base="nf4")), torch.device("cpu"))
