"""LoRA's layer as one operation with the gradients it needs and no others.

PEFT's layer writes the base's output, the update and their sum in three passes, and leaves autograd to
keep what each needs. Here the update is added by the matrix product that makes it, forward and back,
and the base's weight gets no gradient. Layers that are anything but a plain frozen linear with one
plain adapter keep PEFT's own code: dropout, DoRA, quantised bases.
"""

import types
from typing import Any

import torch
from peft.tuners.lora.layer import Linear

from rft.training.products import computed_in, product, summed


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        device = x.device.type
        used = computed_in(x)
        flat = x.reshape(-1, x.shape[-1]).to(used)
        with torch.autocast(device, enabled=False):
            inner = product(flat, down.to(used))
            out = product(flat, weight.to(used), None if bias is None else bias.to(used))
            out.addmm_(inner, up.T.to(used), alpha=scale)
        ctx.scale, ctx.dtypes = scale, (x.dtype, down.dtype, up.dtype)
        ctx.save_for_backward(flat, inner, weight, down, up)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        flat, inner, weight, down, up = ctx.saved_tensors
        x_dtype, down_dtype, up_dtype = ctx.dtypes
        g = grad.reshape(-1, grad.shape[-1]).to(flat.dtype)
        with torch.autocast(g.device.type, enabled=False):
            g_inner = product(g, up.to(g.dtype).T).mul_(ctx.scale)
            g_x = None
            if ctx.needs_input_grad[0]:
                g_x = product(g, weight.to(g.dtype).T)
                g_x.addmm_(g_inner, down.to(g.dtype))
                g_x = g_x.view(*grad.shape[:-1], -1).to(x_dtype)
            g_down = summed(g_inner, flat).to(down_dtype)
            g_up = summed(g, inner).mul_(ctx.scale).to(up_dtype)
        return g_x, None, None, g_down, g_up, None


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if self.disable_adapters or self.merged:
        return type(self).forward(self, x, *args, **kwargs)
    (name,) = self.active_adapters
    base = self.base_layer
    out: torch.Tensor = _Lora.apply(
        x,
        base.weight,
        base.bias,
        self.lora_A[name].weight,
        self.lora_B[name].weight,
        self.scaling[name],
    )
    return out


def fuse(model: torch.nn.Module) -> int:
    """Puts the operation into a PEFT model's layers that can have it; how many these are."""
    count = 0
    for module in model.modules():
        if isinstance(module, Linear) and _is_plain(module):
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


def _is_plain(layer: Any) -> bool:
    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear:
        return False
    if len(layer.active_adapters) != 1 or layer.lora_variant or layer.fan_in_fan_out:
        return False
    (name,) = layer.active_adapters
    plain = isinstance(layer.lora_dropout[name], torch.nn.Identity)
    more = layer.lora_B[name].bias is not None or layer.base_layer.weight.requires_grad
    return plain and not more
