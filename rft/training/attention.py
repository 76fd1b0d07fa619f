"""Attention over trees, for every model that takes its attention from transformers' interface.

The textbook's mask over a packed row is quadratic in the row, and nearly all of it is hidden: groups
don't see each other. On a CPU each group is computed on its own; in float32 by `_Attention`, since torch's
kernel for CPUs is made for longer rows than these: it gets a fifth of what the machine's products can. On
a GPU FlexAttention skips a long row's hidden blocks (arXiv 2412.05496) where Triton is there to compile it,
and the whole row goes through SDPA with a mask where it is not.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from rft.precision import HAS_TRITON
from rft.training.data import BLOCK, Batch
from rft.training.products import HAS_ONEDNN, compiled, product, summed

SHORTEST, LONGEST = 140, 1024
"""Tokens of a group, on average and at most, whose scores are made as a whole, a product for each key head;
of longer ones torch's kernel makes a block at a time, and it has less to set up for short ones."""

FLEX_FROM = 2048
"""Tokens of a row from which FlexAttention is worth the seconds of its compilation; a shorter one, such as the
proofs before the first step have, goes through SDPA with a mask."""

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
        flex = HAS_TRITON and len(batch.end) >= FLEX_FROM
        return Trees(batch.sizes, (), block_mask(batch.end) if flex else visible(batch.end))
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
        # Rotating has made queries and keys float32 in some models' autocast regions.
        query, key = query.to(value.dtype), key.to(value.dtype)
        flex = flex_attention if torch.compiler.is_compiling() else compiled(flex_attention)
        got = flex(query, key, value, block_mask=trees.whole, scale=scaling, enable_gqa=grouped)
        return got.transpose(1, 2), None
    if trees.whole is not None:
        key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
        got = scaled_dot_product_attention(query, key, value, trees.whole, scale=scaling)
        return got.transpose(1, 2), None
    # Autocast would have its products in 16 bits.
    exact = query.dtype is value.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    fits = sum(trees.sizes) >= SHORTEST * len(trees.sizes) and max(trees.sizes) <= LONGEST
    if exact and fits and HAS_ONEDNN and query.device.type == "cpu":
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        got = _Attention.apply(query[0], key[0], value[0], trees, scale)
        return got[None], None
    key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
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


class _Attention(torch.autograd.Function):
    """Attention of each group by itself: H heads, K of keys and values, D numbers a head.

    The heads that share a key are one product, and the scores are made again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trees: Trees, scale: float
    ) -> torch.Tensor:
        """q (H, T, D), k and v (K, T, D); returns (T, H, D)."""
        heads, length, _ = q.shape
        out = v.new_empty(length, heads, v.shape[-1])
        for part, some, own, hidden in _pieces(trees, heads, len(k)):
            shares = _shares(q[some, part], k[own, part], scale, hidden)
            got = product(shares.flatten(0, 1), v[own, part].T)
            out[part, some] = got.view(*shares.shape[:2], -1).transpose(0, 1)
        ctx.trees, ctx.scale = trees, scale
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, out = ctx.saved_tensors
        g_q, g_k, g_v = (torch.empty_like(x) for x in (q, k, v))
        along = (grad * out).sum(-1, keepdim=True).transpose(0, 1)
        for part, some, own, hidden in _pieces(ctx.trees, len(q), len(k)):
            queries = q[some, part].flatten(0, 1)
            shares = _shares(q[some, part], k[own, part], ctx.scale, hidden)
            g_out = grad[part, some].transpose(0, 1).flatten(0, 1)
            g_v[own, part] = summed(shares.flatten(0, 1), g_out)
            g_shares = product(g_out, v[own, part]).view_as(shares)
            slope = g_shares.sub_(along[some, part]).mul_(shares).mul_(ctx.scale).flatten(0, 1)
            g_q[some, part] = product(slope, k[own, part].T).view(*shares.shape[:2], -1)
            g_k[own, part] = summed(slope, queries)
        return g_q, g_k, g_v, None, None


def _pieces(
    trees: Trees, heads: int, keys: int
) -> Iterator[tuple[slice, slice, int, torch.Tensor]]:
    """Each group's place in the row, the query heads of a key, the key, and what is hidden."""
    start, per = 0, heads // keys
    for size, mask in zip(trees.sizes, trees.masks):
        hidden = _future(size) if mask is None else ~mask
        for own in range(keys):
            yield slice(start, start + size), slice(own * per, own * per + per), own, hidden
        start += size


@functools.lru_cache(maxsize=64)
def _future(size: int) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu_(1)


def _shares(q: torch.Tensor, k: torch.Tensor, scale: float, hidden: torch.Tensor) -> torch.Tensor:
    """(heads, size, size): what each query (heads, size, D) gives to each key (size, D)."""
    scores = product(q.flatten(0, 1) * scale, k).view(*q.shape[:2], -1)
    return scores.masked_fill_(hidden, -torch.inf).softmax(-1)


def block_mask(end: torch.Tensor) -> Any:
    """FlexAttention's BlockMask, from `Batch.end` padded to whole blocks.

    torch's create_block_mask looks at each pair of tokens, (T, T) numbers of 8 bytes; the first and the last
    end in a block of keys say which blocks of queries see all of it, or some.
    """
    size = len(end)
    first = torch.arange(0, size, BLOCK, device=end.device)
    parts = end.view(-1, BLOCK)
    seen = (first < first[:, None]) & (parts.amax(1) > first[:, None])
    full = seen & (parts.amin(1) >= first[:, None] + BLOCK)
    part = (seen & ~full) | (first == first[:, None])

    def sees(_b: Any, _h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (q < end[k])

    return BlockMask.from_kv_blocks(
        *(*_ordered(part), *_ordered(full)),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(size, size),
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks of keys each block of queries takes, (1, 1, Q), and which, these first, (1, 1, Q, K)."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], order.int()[None, None]


AttentionInterface.register(NAME, attend)
