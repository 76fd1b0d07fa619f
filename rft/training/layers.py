"""What lies between the products of a transformer's layer, as operations that keep little and read less.

The textbook's RMSNorm and gated MLP are five and two operations, each of which leaves its result for the
backward pass; at a hundred million weights they take as much memory as all products. Here each is
one, which keeps its input and computes the rest again. A module gets it only if it says the same as the
module's own code on numbers drawn for the purpose: classes of the same name differ between models.
"""

import types
from typing import Any

import torch
from torch.nn.functional import silu

from rft.training.products import fused


class _Norm(torch.autograd.Function):
    """x / rms(x) * weight (Zhang and Sennrich 2019, arXiv 1910.07467), in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out, rstd = _norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, rstd = ctx.saved_tensors
        g_weight = None
        if ctx.needs_input_grad[1]:
            g_weight = (grad.float() * (x.float() * rstd)).flatten(0, -2).sum(0).to(weight.dtype)
        return _norm_backward(grad, x, weight, rstd), g_weight, None


@fused
def _norm_forward(
    x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    rstd = square.add_(eps).rsqrt_()
    return (wide * rstd).mul_(weight).to(x.dtype), rstd


@fused
def _norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> torch.Tensor:
    hat = x.float() * rstd
    g = grad.float() * weight
    along = (g * hat).mean(-1, keepdim=True)
    return g.addcmul_(hat, along, value=-1).mul_(rstd).to(x.dtype)


class _Gated(torch.autograd.Function):
    """silu(gate) * up (SwiGLU, Shazeer 2020, arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return _gated_forward(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _gated_backward(grad, *ctx.saved_tensors)


@fused
def _gated_forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return silu(gate).mul_(up)


@fused
def _gated_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    open_ = silu(gate)
    g_up = grad * open_
    return torch.ops.aten.silu_backward(open_.copy_(grad).mul_(up), gate), g_up


def _norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _Norm.apply(x, self.weight, self.variance_epsilon)
    return out


def _mlp(self: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))
    return out


def replace(model: torch.nn.Module) -> int:
    """Puts the operations into a model's layers that can have them; how many these are."""
    count = 0
    tried: dict[type, bool] = {}
    for module in model.modules():
        kind = type(module)
        if kind not in tried:
            tried[kind] = _fits(module)
        if tried[kind]:
            own = _norm if hasattr(module, "variance_epsilon") else _mlp
            module.forward = types.MethodType(own, module)
            count += 1
    return count


@torch.no_grad()
def _fits(module: Any) -> bool:
    if hasattr(module, "variance_epsilon"):
        width, own = getattr(module, "weight", torch.empty(0)).shape[-1], _norm
    elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")):
        width, own = getattr(module.gate_proj, "in_features", 0), _mlp
    else:
        return False
    if not width:
        return False
    first = next(module.parameters())
    draw = torch.Generator().manual_seed(0)
    # Large enough for a wrong activation to show, in the format of the weights.
    x = torch.randn(4, width, generator=draw).to(first.device, first.dtype) * 3
    try:
        told, got = module(x), own(module, x)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    bound = 1e-5 if first.dtype is torch.float32 else 0.02
    return bool(got.shape == told.shape and (got - told).norm() <= bound * told.norm())
