"""The base model, its LoRA adapter, and the check that it computes the grouped layout rightly.

Only the adapter is trained. Its weights are float32 in every mode; they depend on the seed alone,
since they are made on the CPU, before the model moves anywhere.
"""

import contextlib
import inspect
import os
import shutil
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
from rft.training.data import Batch, Group, collate
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


def completion_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits, float32, (C, vocabulary), of the positions that predict a completion's token.

    `logits_to_keep` as an index tensor keeps the prompts' logits from being computed at all. Models
    without it compute all and most are thrown away: right, but slower.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": batch.mask(),
        "use_cache": False,
    }
    if takes_logits_to_keep(model):
        inputs["logits_to_keep"] = batch.predictors
        logits = model(**inputs).logits[0]
    else:
        logits = model(**inputs).logits[0, batch.predictors]
    return logits.float()


def takes_logits_to_keep(model: Any) -> bool:
    while hasattr(model, "module"):
        model = model.module  # DDP
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def completion_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Sum (not mean) of the completion tokens' cross-entropies, nats, float32."""
    return cross_entropy(completion_logits(model, batch), batch.labels, reduction="sum")


def check_rows(base: Any, model: Model, groups: list[Group]) -> None:
    """Raises RftError for rows that this model cannot be trained on."""
    config = base.config.get_text_config()
    vocabulary = base.get_input_embeddings().weight.shape[0]
    limits = {
        "max_position_embeddings": getattr(config, "max_position_embeddings", None),
        # The layout hides positions from one another by mask, and a window would have to be in it.
        "sliding_window": _window(config),
    }
    for group in groups:
        longest = len(group.prompt) + max(map(len, group.completions))
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


@torch.no_grad()
def check_layout(base: Any, model: Model, groups: list[Group]) -> float:
    """Largest difference in a token's cross-entropy between grouped and separate rows, nats.

    Architectures differ in what they do with a mask of one's own: state-space layers, or positions
    taken from the place in memory, would mix completions in silence. So the model at hand is asked,
    on two short groups. Raises RftError where the two disagree.
    """
    device = next(base.parameters()).device
    probe = [_shorten(groups[0]), _shorten(groups[-1])]
    alone = [collate([Group(g.prompt_id, g.prompt, (c,))]) for g in probe for c in g.completions]
    was_training = base.training
    base.eval()
    try:
        together = collate(probe).to(device)
        packed = cross_entropy(completion_logits(base, together), together.labels, reduction="none")
        plain = []
        for batch in (one.to(device) for one in alone):
            # The plain call: no mask, no positions, all logits.
            logits = base(input_ids=batch.input_ids, use_cache=False).logits[0, batch.predictors]
            plain.append(cross_entropy(logits.float(), batch.labels, reduction="none"))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as fault:
        raise RftError(_unsupported(model, f"{type(fault).__name__}: {fault}")) from fault
    finally:
        base.train(was_training)
    gap = float((packed - torch.cat(plain)).abs().max())
    # Formats of 8 bits of mantissa differ by a few hundredths between two orders of summation;
    # completions that see each other differ by whole nats.
    stored = next(base.parameters()).dtype
    if not gap < (1e-3 if stored is torch.float32 else 0.5):
        raise RftError(_unsupported(model, f"a token's loss differs by {gap:.3g} nats"))
    return gap


def _shorten(group: Group) -> Group:
    """At most 64 tokens of prompt and two different completions of at most 32."""
    first = group.completions[0][:32]
    second = group.completions[1][:32] if len(group.completions) > 1 else np.flip(first).copy()
    return Group(group.prompt_id, group.prompt[-64:], (first, second))


def _unsupported(model: Model, what: str) -> str:
    return (
        f"model.base: {model.base}: its attention does not compute several completions behind one "
        f"prompt as it computes them apart ({what}). Models of the Llama, Qwen, Mistral and Gemma "
        "kinds do; state-space, linear-attention and ALiBi models do not."
    )


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
