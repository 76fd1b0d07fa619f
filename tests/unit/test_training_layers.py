"""Operations that keep little say what the textbook's say, forward and back."""

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GemmaConfig, GemmaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rft.training import layers
from rft.training.data import Layout, collate
from rft.training.head import head_loss
from rft.training.objective import Fit, Objective
from rft.training.products import product, summed
from tests.unit.test_training_model import SMALL, adapted, gradients, llama, some_groups

ROWS = Fit(Layout.ROWS)


def qwen() -> Any:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL))


def gemma() -> Any:
    """Its norm multiplies by 1 + weight, and its activation is GELU."""
    torch.manual_seed(0)
    return GemmaForCausalLM(GemmaConfig(**SMALL, head_dim=8))


@pytest.mark.parametrize("make, replaced", [(llama, 7), (qwen, 7), (gemma, 0)])
def test_replaced_layers_change_neither_loss_nor_gradients(make, replaced):
    own, other = adapted(make()), None
    other = copy.deepcopy(own)
    assert layers.replace(other.get_base_model()) == replaced
    batch = collate(some_groups(), Layout.ROWS)
    losses = []
    for model in (own, other):
        # As different as norms can be, which all begin at 1.
        with torch.no_grad():
            for name, param in model.named_parameters():
                if "norm" in name:
                    param.copy_(torch.linspace(0.5, 2, len(param)))
        loss = Objective(model, ROWS, None)(batch)
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    wanted = gradients(own)
    for name, got in gradients(other).items():
        assert float((got - wanted[name]).norm()) < 5e-6 * float(wanted[name].norm()), name


def test_trained_norms_have_their_gradient():
    own = llama()
    other = copy.deepcopy(own)
    layers.replace(other)
    for model in (own, other):
        Objective(model, ROWS, None)(collate(some_groups(), Layout.ROWS)).backward()
    wanted = {name: p.grad for name, p in own.named_parameters()}
    for name, param in other.named_parameters():
        assert torch.allclose(param.grad, wanted[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_head_in_chunks_is_cross_entropy(monkeypatch, trained, bias):
    monkeypatch.setattr("rft.training.head.CHUNK", 20 * 50)
    torch.manual_seed(0)
    hidden = torch.randn(77, 12, requires_grad=True)
    head = torch.randn(50, 12, requires_grad=trained)
    shift = torch.randn(50, requires_grad=trained) if bias else None
    labels, weights = torch.randint(50, (77,)), torch.rand(77) * 2
    leaves = [x for x in (hidden, head, shift) if x is not None and x.requires_grad]
    logits = hidden @ head.T + (shift if shift is not None else 0)
    expected = (cross_entropy(logits, labels, reduction="none") * weights).sum() * 3
    wanted = torch.autograd.grad(expected, leaves)
    got = head_loss(hidden, head, shift, labels, weights) * 3
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(got, leaves), wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_vocabulary_larger_than_a_chunk(monkeypatch):
    monkeypatch.setattr("rft.training.head.CHUNK", 30)
    hidden, head, labels = torch.randn(40, 4), torch.randn(50, 4), torch.randint(50, (40,))
    got = head_loss(hidden, head, None, labels, torch.ones(40))
    assert got.item() == pytest.approx(
        cross_entropy(hidden @ head.T, labels, reduction="sum").item(), rel=1e-6
    )


@pytest.mark.parametrize("dense", [True, False])
def test_products_of_any_strides(dense):
    torch.manual_seed(0)
    x, weight, y = torch.randn(33, 3, 8), torch.randn(5, 3, 8), torch.randn(33, 3, 16)
    if dense:
        x, weight, y = (t.contiguous()[:, 0].contiguous() for t in (x, weight, y))
    else:
        x, weight, y = (t[:, 1] for t in (x, weight, y))
    assert torch.allclose(product(x, weight), x @ weight.T, atol=1e-5)
    assert torch.allclose(product(weight.T, x.T.T[:5].T), weight.T @ x[:5], atol=1e-5)
    assert torch.allclose(summed(x, y), x.T @ y, atol=1e-5)
    assert torch.allclose(summed(y, x), y.T @ x, atol=1e-5)


def test_uneven_weights_stay_within_fp16():
    """One row that weighs a hundred thousand others': its gradient is there, and so are theirs."""
    torch.manual_seed(0)
    hidden = torch.randn(40, 16, requires_grad=True)
    head, labels = torch.randn(50, 16), torch.randint(50, (40,))
    weights = torch.full((40,), 0.5)
    weights[0] = 1e5
    found = []
    for dtype in (torch.float32, torch.float16):
        with torch.autocast("cpu", dtype, enabled=dtype is torch.float16):
            head_loss(hidden, head, None, labels, weights).backward()
        found.append(hidden.grad)
        hidden.grad = None
    exact, got = found
    assert torch.isfinite(got).all()
    for part in (slice(0, 1), slice(1, 40)):
        assert (got[part] - exact[part]).norm() < 0.02 * exact[part].norm()
