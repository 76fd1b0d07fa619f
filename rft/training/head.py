"""The loss of a language-model head, without its logits ever being there as a whole.

The textbook makes float32 logits of every position, (T, vocabulary), and their gradients: at 49,000
words 200 KB a token, each time. Here they are made in chunks, of the positions that predict a
completion's token only, and each chunk is turned into its gradient in place before the next is made:
in the forward pass, since a loss that is a sum hands nothing back but its scale (as in Liger's fused
linear cross-entropy, arXiv 2410.10989).
"""

from typing import Any

import torch

from rft.training.products import computed_in, fused, product, summed
from rft.training.surrogate import clipped

CHUNK, CHUNK_GPU = 1 << 24, 1 << 28
"""Logits of a chunk: 64 MB on a CPU; a GPU is kept busy by a thousand rows."""


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        weights: torch.Tensor,
        advantages: torch.Tensor | None,
        old: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        device = hidden.device.type
        computed = computed_in(hidden)
        rows = max((CHUNK_GPU if hidden.is_cuda else CHUNK) // head.shape[0], 16)
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
                logits = product(inputs, matrix)
                if bias is not None:
                    logits = logits.float() + bias.float()
                total_exp = _total(logits)
                logp, pull = (logits.gather(1, label) - total_exp)[:, 0], weights[part]
                if advantages is None or old is None:
                    total -= (logp * pull).sum()
                else:
                    gain, pull = clipped(logp, advantages[part], old[part], eps)
                    total -= gain.sum()
                if not any(needs[:3]):
                    continue
                sizes = None
                if computed is torch.float16:
                    # Uneven weights would leave its range, before any loss scale: they come afterwards.
                    sizes = pull.abs()[:, None].clamp(min=1e-30)
                    pull = pull.sign()
                slope = _shares(logits, total_exp, pull[:, None], computed)
                own = (logp.exp() - 1) * pull
                slope.scatter_(1, label, own[:, None].to(computed))
                if grad_hidden is not None:
                    got = product(slope, matrix.T)
                    grad_hidden[part] = got if sizes is None else got.float() * sizes
                if sizes is not None and (needs[1] or needs[2]):
                    slope, inputs = slope.float() * sizes, inputs.float()
                if grad_bias is not None:
                    grad_bias += slope.sum(0, dtype=torch.float32)
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
        return (*grads, None, None, None, None, None)


@fused
def _total(logits: torch.Tensor) -> torch.Tensor:
    """(C, 1), float32: the logarithm of the sum that softmax divides by."""
    return logits.float().logsumexp(-1, keepdim=True)


@fused
def _shares(
    logits: torch.Tensor, total: torch.Tensor, weights: torch.Tensor, computed: torch.dtype
) -> torch.Tensor:
    """Each word's share, softmax(logits), times the weight of the row; in place of float32 logits."""
    return logits.float().sub_(total).exp_().mul_(weights).to(computed)


def head_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    weights: torch.Tensor,
    advantages: torch.Tensor | None = None,
    old: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """Weighted sum of the labels' cross-entropies, nats, float32; with `advantages` and `old`, that of
    their clipped surrogates (`surrogate.clipped`).

    hidden (C, H), head (V, H), bias (V,), labels (C,), weights (C,) float32. Products are made in the
    format of an autocast region, sums in float32.
    """
    loss: torch.Tensor = _Loss.apply(hidden, head, bias, labels, weights, advantages, old, eps)
    return loss
