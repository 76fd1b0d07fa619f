"""The loss of a batch, and which layout the model at hand computes rightly.

Architectures differ in what they do with the branches of a tree, and in what they make of the last
hidden states. So the model is asked before it is trained: two short groups are laid out as trees, as
padded rows and as rows alone, and the losses of their tokens compared.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rft.config import Model
from rft.config_train import Train
from rft.training import attention
from rft.training.data import Batch, Group, Layout, collate
from rft.training.head import head_loss
from rft.training.surrogate import clipped
from rft.types import RftError


@dataclass(frozen=True)
class Fit:
    """How a model is trained, as `check_layout` has found it out."""

    layout: Layout
    why: str = ""
    """Why it is rows and not trees."""
    fused_head: bool = True
    """Whether logits are the head's product with the last hidden states and nothing else."""
    gap: float = 0.0
    """Difference in a token's cross-entropy between trees and rows alone, nats: the largest where the
    weights are FP32, else the root of the mean square."""


class Objective(torch.nn.Module):
    """The model with its loss, so that DDP and FSDP see one forward pass. B, T, C: see `Batch`."""

    def __init__(
        self, model: Any, fit: Fit, compute: torch.dtype | None, clip: float | None = None
    ):
        """fit: what `check_layout` has found out. compute: of an autocast region; None for none. clip:
        `train.loss.clip`."""
        super().__init__()
        self.model, self.fit, self.compute, self.eps = model, fit, compute, clip or 0.0

    def forward(self, batch: Batch, score: bool = False) -> Any:
        """Weighted sum (not mean) of the completion tokens' cross-entropies, nats, float32, or of their
        clipped surrogates where the batch has `old`. score: always the cross-entropies, and with them the
        weights of the tokens that are the likeliest, added up; without gradients."""
        with self.casting():
            if self.fit.fused_head and not score:
                head = unwrapped(self.model).get_output_embeddings()
                hidden = hidden_states(self.model, batch)
                return head_loss(
                    *(hidden, head.weight, head.bias, batch.labels, batch.weights),
                    *(batch.advantages, batch.old, self.eps),
                )
            made = logits(self.model, batch)
        each = cross_entropy(made, batch.labels, reduction="none")
        if batch.advantages is not None and batch.old is not None and not score:
            gain, pull = clipped(-each, batch.advantages, batch.old, self.eps)
            # The value of the one and the gradient of the other.
            return (pull * (each - each.detach())).sum() - gain.sum()
        loss = (each * batch.weights).sum()
        return (loss, ((made.argmax(-1) == batch.labels) * batch.weights).sum()) if score else loss

    def casting(self) -> Any:
        """The region in which the model computes in its format."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, self.compute, enabled=self.compute is not None)


def unwrapped(model: Any) -> Any:
    """transformers' model, out of PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _inputs(batch: Batch) -> dict[str, Any]:
    own = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.end is None:
        return own | {"attention_mask": batch.mask}
    return own | {"position_ids": batch.position_ids, "trees": attention.trees(batch)}


def hidden_states(model: Any, batch: Batch) -> torch.Tensor:
    """(C, H): what the head makes the predictors' logits of."""
    # The part that transformers calls base_model: all but the head.
    got = unwrapped(model).base_model(**_inputs(batch)).last_hidden_state
    picked: torch.Tensor = got.flatten(0, 1)[batch.predictors]
    return picked


def logits(model: Any, batch: Batch) -> torch.Tensor:
    """(C, vocabulary), float32, as the model itself makes them."""
    inputs, own = _inputs(batch), unwrapped(model)
    if len(batch.input_ids) == 1 and takes_logits_to_keep(own):
        got = own(**inputs, logits_to_keep=batch.predictors).logits[0]
    else:
        got = own(**inputs).logits.flatten(0, 1)[batch.predictors]
    picked: torch.Tensor = got.float()
    return picked


def takes_logits_to_keep(base: Any) -> bool:
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


@torch.no_grad()
def check_layout(base: Any, model: Model, groups: list[Group], train: Train) -> Fit:
    """Asks the model which layout it computes rightly, and sets its attention to it. Raises RftError
    for a model that does not even compute padded rows as it computes each alone."""
    device = next(base.parameters()).device
    probe = [_forked(groups[0]), _forked(groups[-1])]
    # Formats of 8 bits of mantissa, and products of quantised weights, differ between two orders of
    # summation by a few hundredths, on a rare token by a nat; completions that see each other differ by
    # whole nats on most tokens.
    exact = all(param.dtype is torch.float32 for param in base.parameters())
    bound = 1e-3 if exact else 0.5
    apart = _most if exact else _typical
    was_training = base.training
    base.eval()
    try:
        alone = torch.cat(
            [
                _losses(base, collate([one], Layout.ROWS).to(device))
                for group in probe
                for one in group.singles()
            ]
        )
        padded = collate(probe, Layout.ROWS).to(device)
        gap = apart(_losses(base, padded) - alone)
        if not gap < bound:
            raise RftError(
                f"model.base: {model.base}: a token's loss differs by {gap:.3g} nats between a row and "
                "the same row beside longer ones: it can't be trained on rows of several lengths"
            )
        fused = _head_is_all(base, padded, bound)
        why = _unfit_for_trees(base, groups, train)
        if not why:
            # Tokens that a tree has once.
            first = [
                np.arange(len(ids)) >= shared
                for group in probe
                for ids, shared in zip(group.completions, group.shared)
            ]
            wanted = alone[torch.from_numpy(np.concatenate(first)).to(device)]
            why, gap = _try_trees(base, collate(probe).to(device), wanted, bound, apart)
        return Fit(Layout.ROWS if why else Layout.TREE, why, fused, gap)
    finally:
        base.train(was_training)


def _most(differences: torch.Tensor) -> float:
    return float(differences.abs().max())


def _typical(differences: torch.Tensor) -> float:
    return float(differences.square().mean().sqrt())


def _forked(group: Group) -> Group:
    """At most 64 tokens of prompt and three completions of at most 32, two of which begin alike."""
    first = group.completions[0][:32]
    half = len(first) // 2
    fork = np.concatenate([first[:half], np.flip(first[half:])])
    completions = (first, fork, np.flip(first).copy())
    return Group(group.prompt_id, group.prompt[-64:], completions, (1.0,) * 3)


def _losses(base: Any, batch: Batch) -> torch.Tensor:
    return cross_entropy(logits(base, batch), batch.labels, reduction="none")


def _head_is_all(base: Any, batch: Batch, bound: float) -> bool:
    """Whether `head_loss` computes this model's logits: some scale them, or cap them."""
    head = base.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    made = head(hidden_states(base, batch)).float()
    return bool((made - logits(base, batch)).abs().max() < bound)


def _unfit_for_trees(base: Any, groups: list[Group], train: Train) -> str:
    if train.layout == "rows":
        return "as train.layout says"
    if (train.lora and train.lora.dropout) or _draws(base):
        return "dropout would be drawn once for all that completions share"
    window = _window(base.config.get_text_config())
    longest = max(group.longest for group in groups)
    if window is not None and longest > window:
        return f"rows have up to {longest} tokens, and its attention a window of {window}"
    return ""


def _draws(base: Any) -> bool:
    """Whether a model has dropout of its own: as modules, or by its config."""
    told = base.config.get_text_config().to_dict()
    rates = (
        value
        for name, value in told.items()
        if name.endswith(("dropout", "pdrop")) and not name.startswith(("classifier", "summary"))
    )
    modules = (m for m in base.modules() if isinstance(m, torch.nn.Dropout))
    return any(m.p > 0 for m in modules) or any(isinstance(r, float) and r > 0 for r in rates)


def _try_trees(
    base: Any,
    tree: Batch,
    wanted: torch.Tensor,
    bound: float,
    apart: Callable[[torch.Tensor], float],
) -> tuple[str, float]:
    """Why trees are not for this model ("" if they are, and it is set to them), and the gap."""
    before = base.config._attn_implementation
    try:
        base.set_attn_implementation(attention.NAME)
        if base.config._attn_implementation != attention.NAME:
            return f"{type(base).__name__} has an attention of its own", 0.0
        gap = apart(_losses(base, tree) - wanted)
        why = f"a token's loss differs by {gap:.3g} nats" if not gap < bound else ""
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError) as fault:
        gap, why = 0.0, f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
    if not why:
        return "", gap
    base.set_attn_implementation(before)
    return f"its attention does not compute branches as it computes rows ({why})", gap


def _window(config: Any) -> int | None:
    """The sliding window, where any layer uses one."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False:
        return None
    if kinds is not None and not any("sliding" in kind for kind in kinds):
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window
