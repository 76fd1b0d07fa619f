"""The base model, its LoRA adapter, and the check that it computes the grouped layout rightly.

Only the adapter is trained. Its weights are float32 in every mode; they depend on the seed alone,
since they are made on the CPU, before the model moves anywhere.
"""

import contextlib
import inspect
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rft import rows
from rft.config import Model
from rft.config_train import Train
from rft.precision import DTYPES
from rft.rows import disk_errors
from rft.training import attention
from rft.training.data import Batch, Group, Layout, collate
from rft.training.head import head_loss
from rft.types import RftError


def load_base(model: Model, train: Train) -> Any:
    """The base model on the CPU, stored in train.precision.base. Raises RftError."""
    from transformers import AutoModelForCausalLM

    try:
        base = AutoModelForCausalLM.from_pretrained(
            model.base,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=DTYPES[train.precision.base],
            # Flash attention takes no mask of one's own; SDPA does, and needs no extra package.
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as fault:
        raise RftError(
            f"model.base: {model.base}: cannot be loaded for training: "
            f"{str(fault).splitlines()[0]}. Give a model folder (./name) or a hub name of a causal "
            "language model with SDPA attention."
        ) from fault
    base.config.use_cache = False
    return base


def add_lora(base: Any, train: Train, seed: int, start: str | None = None) -> Any:
    """The base with a fresh adapter (PEFT), or with the weights of the adapter in the folder `start`.

    Raises RftError for targets that are not in it, or an adapter of another shape.
    """
    from peft import LoraConfig, get_peft_model

    lora = train.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    if train.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(seed)
    try:
        model = get_peft_model(base, config)
    except ValueError as fault:
        raise RftError(
            f"train.lora.targets: {lora.targets}: {str(fault).splitlines()[0]}"
        ) from fault
    if start is not None:
        _load_weights(model, train, Path(start))
    model.train()
    return model


def _load_weights(model: Any, train: Train, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / "adapter_model.safetensors")
        got = set_peft_model_state_dict(model, weights)
        wrong = got.unexpected_keys or [name for name in got.missing_keys if "lora_" in name]
        why = f"it does not fit: {wrong[0]}" if wrong else ""
    except (OSError, RuntimeError, ValueError) as fault:
        why = " ".join(str(fault).split())[:200]
    if why:
        raise RftError(
            f"rounds.init: last: {folder}: {why}. The adapter to go on from must have been trained with "
            f"the same train.lora (here rank {train.lora.rank}, targets {train.lora.targets})"
        )


class Objective(torch.nn.Module):
    """The model with its loss, so that DDP and FSDP see one forward pass. B, T, C: see `Batch`."""

    def __init__(self, model: Any, fit: "Fit", compute: torch.dtype | None):
        """fit: what `check_layout` has found out. compute: of an autocast region; None for none."""
        super().__init__()
        self.model, self.fit, self.compute = model, fit, compute

    def forward(self, batch: Batch) -> torch.Tensor:
        """Weighted sum (not mean) of the completion tokens' cross-entropies, nats, float32."""
        device = batch.input_ids.device.type
        with torch.autocast(device, self.compute, enabled=self.compute is not None):
            if self.fit.fused_head:
                head = unwrapped(self.model).get_output_embeddings()
                hidden = hidden_states(self.model, batch)
                return head_loss(hidden, head.weight, head.bias, batch.labels, batch.weights)
            losses = cross_entropy(logits(self.model, batch), batch.labels, reduction="none")
        return (losses * batch.weights).sum()


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


def check_rows(base: Any, model: Model, groups: list[Group]) -> None:
    """Raises RftError for rows that this model cannot be trained on."""
    config = base.config.get_text_config()
    vocabulary = base.get_input_embeddings().weight.shape[0]
    limits = {
        "max_position_embeddings": getattr(config, "max_position_embeddings", None),
    }
    for group in groups:
        longest = group.longest
        for name, limit in limits.items():
            if limit is not None and longest > limit:
                raise RftError(
                    f"training rows of prompt {group.prompt_id}: prompt and completion have "
                    f"{longest} tokens, and the {name} of {model.base} is {limit}. Lower "
                    "sample.max_tokens, or drop long rows with a selector."
                )
        top = max(int(ids.max()) for ids in (group.prompt, *group.completions))
        if top >= vocabulary:
            raise RftError(
                f"training rows of prompt {group.prompt_id} hold token {top}, and {model.base} has "
                f"{vocabulary}: they were made with another tokenizer. Sample again with this one."
            )


def _window(config: Any) -> int | None:
    """The sliding window, where any layer uses one."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False:
        return None
    if kinds is not None and not any("sliding" in kind for kind in kinds):
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


@dataclass(frozen=True)
class Fit:
    """How a model is trained, as `check_layout` has found it out."""

    layout: Layout
    why: str = ""
    """Why it is rows and not trees."""
    fused_head: bool = True
    """Whether logits are the head's product with the last hidden states and nothing else."""
    gap: float = 0.0
    """Largest difference in a token's cross-entropy between trees and rows alone, nats."""


@torch.no_grad()
def check_layout(base: Any, model: Model, groups: list[Group], dropout: bool = False) -> Fit:
    """Asks the model at hand which layout it computes rightly, on two short groups, and sets its
    attention to it. dropout: training draws some.

    Architectures differ in what they do with branches: state-space layers, or positions taken from
    the place in memory, would mix completions in silence. Raises RftError for a model that does not
    even compute padded rows as it computes each alone.
    """
    device = next(base.parameters()).device
    probe = [_forked(groups[0]), _forked(groups[-1])]
    # Formats of 8 bits of mantissa differ by a few hundredths between two orders of summation;
    # completions that see each other differ by whole nats.
    bound = 1e-3 if next(base.parameters()).dtype is torch.float32 else 0.5
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
        gap = float((_losses(base, padded) - alone).abs().max())
        if not gap < bound:
            raise RftError(
                f"model.base: {model.base}: a token's loss differs by {gap:.3g} nats between a row and "
                "the same row beside longer ones: it can't be trained on rows of several lengths"
            )
        fused = _head_is_all(base, padded, bound)
        why = _unfit_for_trees(base, groups, dropout)
        if not why:
            # Tokens that a tree has once.
            first = [
                np.arange(len(ids)) >= shared
                for group in probe
                for ids, shared in zip(group.completions, group.shared)
            ]
            wanted = alone[torch.from_numpy(np.concatenate(first)).to(device)]
            why, gap = _try_trees(base, collate(probe).to(device), wanted, bound)
        return Fit(Layout.ROWS if why else Layout.TREE, why, fused, gap)
    finally:
        base.train(was_training)


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


def _unfit_for_trees(base: Any, groups: list[Group], dropout: bool) -> str:
    if dropout:
        return "dropout would be drawn once for all that completions share"
    window = _window(base.config.get_text_config())
    longest = max(group.longest for group in groups)
    if window is not None and longest > window:
        return f"rows have up to {longest} tokens, and its attention a window of {window}"
    return ""


def _try_trees(base: Any, tree: Batch, wanted: torch.Tensor, bound: float) -> tuple[str, float]:
    """Why trees are not for this model ("" if they are, and it is set to them), and the gap."""
    before = base.config._attn_implementation
    try:
        base.set_attn_implementation(attention.NAME)
        if base.config._attn_implementation != attention.NAME:
            return f"{type(base).__name__} has an attention of its own", 0.0
        gap = float((_losses(base, tree) - wanted).abs().max())
        why = f"a token's loss differs by {gap:.3g} nats" if not gap < bound else ""
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError) as fault:
        gap, why = 0.0, f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
    if not why:
        return "", gap
    base.set_attn_implementation(before)
    return f"its attention does not compute branches as it computes rows ({why})", gap


def save_adapter(model: Any, stage: Path) -> None:
    """Writes adapter_model.safetensors and adapter_config.json into the stage's folder.

    Each is written in full beside it, then renamed into place; the manifest comes after both.
    """
    tmp = stage / ".adapter.tmp"
    with disk_errors(stage):
        shutil.rmtree(tmp, ignore_errors=True)
        # Embeddings are never trained; without this PEFT asks the hub whether they grew.
        model.save_pretrained(tmp, save_embedding_layers=False)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            with open(tmp / name, "rb") as file:
                os.fsync(file.fileno())
            os.replace(tmp / name, stage / name)
        rows.sync_folder(stage)
    with contextlib.suppress(OSError):
        shutil.rmtree(tmp)
