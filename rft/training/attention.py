"""Attention over trees, for every model that takes its attention from transformers' interface.

The textbook's mask over a packed row is quadratic in the row, and nearly all of it is hidden: groups
don't see each other. On a CPU each group is computed on its own, as plain causal attention where it
has one completion. On a GPU FlexAttention skips the hidden blocks (arXiv 2412.05496), where Triton
is there to compile it, and the whole row goes through SDPA with a mask where it is not.
"""

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from rft.training.data import Batch

NAME = "rft_trees"
"""Of this attention among transformers' ones."""


@dataclass(frozen=True)
class Trees:
    """What each layer must know of a batch of trees."""

    sizes: tuple[int, ...]
    masks: tuple[torch.Tensor | None, ...]
    """Of each group, (size, size), bool, true where a query (row) may see a key (column); None where that
    is what causal attention sees. Empty on a GPU."""
    whole: Any = None
    """On a GPU: FlexAttention's mask of the whole row, or SDPA's."""


def trees(batch: Batch) -> Trees:
    """The masks of a batch in the tree layout, on the device where it is."""
    assert batch.end is not None
    if batch.end.is_cuda:
        return Trees(batch.sizes, (), _flex_mask(batch.end) if _flex() else visible(batch.end))
    start, masks = 0, list[torch.Tensor | None]()
    for size in batch.sizes:
        end = batch.end[start : start + size] - start
        masks.append(None if bool((end == size).all()) else visible(end))
        start += size
    return Trees(batch.sizes, tuple(masks))


def visible(end: torch.Tensor) -> torch.Tensor:
    """(T, T), bool, from `Batch.end`: true where a query (row) may see a key (column)."""
    at = torch.arange(len(end), device=end.device)
    return (at[None, :] <= at[:, None]) & (at[:, None] < end[None, :])


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    trees: Trees | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the signature of transformers' AttentionInterface; plain SDPA without `trees`.

    query (B, heads, T, D), key and value (B, key heads, T, D); returns (B, T, heads, D).
    """
    if trees is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return out, None
    if trees.whole is not None and not torch.is_tensor(trees.whole):
        grouped = query.shape[1] != key.shape[1]
        got = _flex()(query, key, value, block_mask=trees.whole, scale=scaling, enable_gqa=grouped)
        return got.transpose(1, 2), None
    times = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    if trees.whole is not None:
        got = scaled_dot_product_attention(query, key, value, trees.whole, scale=scaling)
        return got.transpose(1, 2), None
    # Not slices, whose gradients would each be as long as the row.
    parts = (x.split(trees.sizes, dim=2) for x in (query, key, value))
    got = torch.cat(
        [
            scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scaling)
            for q, k, v, mask in zip(*parts, trees.masks)
        ],
        dim=2,
    )
    return got.transpose(1, 2), None


def _flex_mask(end: torch.Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(_b: Any, _h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (q < end[k])

    size = len(end)
    return create_block_mask(sees, None, None, size, size, device=end.device)


@functools.cache
def _flex() -> Any:
    """FlexAttention, compiled; None without Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


AttentionInterface.register(NAME, attend)
