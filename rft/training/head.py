"""The loss of a language-model head, without its logits ever being there as a whole.

The textbook makes float32 logits of every position, (T, vocabulary), and their gradients: at 49,000
words 200 KB a token, each time. Here they are made in chunks, of the positions that predict a
completion's token only, and each chunk is turned into its gradient in place before the next is made:
in the forward pass, since a loss that is a sum hands nothing back but its scale (as in Liger's fused
linear cross-entropy, arXiv 2410.10989).
"""

from typing import Any

import torch

from rft.training.products import computed_in, product, summed

CHUNK = 1 << 24
"""Logits of a chunk: 64 MB."""


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        device = hidden.device.type
        computed = computed_in(hidden)
        rows = max(CHUNK // head.shape[0], 16)
        with torch.autocast(device, enabled=False):
            matrix = head.to(computed)
            needs = ctx.needs_input_grad
            grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs[0] else None
            grad_head = torch.zeros_like(head, dtype=torch.float32) if needs[1] else None
            grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs[2] else None
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            for first in range(0, len(hidden), rows):
                part = slice(first, first + rows)
                inputs, label = hidden[part].to(computed), labels[part, None]
                logits = product(inputs, matrix).float()
                if bias is not None:
                    logits += bias.float()
                # log softmax in place, then the gradient in place of it.
                logits -= logits.logsumexp(-1, keepdim=True)
                total -= (logits.gather(1, label)[:, 0] * weights[part]).sum()
                if not any(needs[:3]):
                    continue
                slope = logits.exp_()
                slope.scatter_add_(1, label, slope.new_full(label.shape, -1.0))
                slope *= weights[part, None]
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                slope = slope.to(computed)
                if grad_hidden is not None:
                    grad_hidden[part] = product(slope, matrix.T)
                if grad_head is not None:
                    grad_head += summed(slope, inputs)
        ctx.dtypes = hidden.dtype, head.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(grad_hidden, grad_head, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        grads = (
            None if grad is None else (grad * scale).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        )
        return (*grads, None, None)


def head_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum of the labels' cross-entropies, nats, float32.

    hidden (C, H), head (V, H), bias (V,), labels (C,), weights (C,) float32. Products are made in the
    format of an autocast region, sums in float32.
    """
    loss: torch.Tensor = _Loss.apply(hidden, head, bias, labels, weights)
    return loss
