"""The model to train: the base as it is stored, with an adapter or without, and how it is saved.

Trainable weights are float32 in every mode. An adapter's depend on the seed alone, since they are made
on the CPU, before the model moves anywhere.
"""

import contextlib
import json
import logging
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor

from rft import rows
from rft.config import Model
from rft.config_train import Lora, Train
from rft.precision import DTYPES, QUANTISED
from rft.rows import disk_errors
from rft.training import sharding, stream
from rft.training.data import Group
from rft.types import RftError

UNREADABLE = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)
"""What a folder that is no model or adapter, or a torn one, makes the libraries raise."""


def one_line(fault: Exception) -> str:
    """What it says, in a line."""
    return " ".join(str(fault).split())[:200] or type(fault).__name__


def load_base(model: Model, train: Train) -> Any:
    """The base model on the CPU, stored in train.precision.base. Raises RftError."""
    from transformers import AutoModelForCausalLM

    stored = train.precision.base
    # It warns of each product that is not in fp16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    computed = DTYPES.get(train.precision.compute, torch.float32)
    try:
        base = AutoModelForCausalLM.from_pretrained(
            model.base,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=computed if stored in QUANTISED else DTYPES[stored],
            attn_implementation="sdpa",
            **(
                {"quantization_config": _quantised(stored, computed)} if stored in QUANTISED else {}
            ),
        )
    except UNREADABLE as fault:
        raise RftError(
            f"model.base: {model.base}: cannot be loaded for training: {one_line(fault)}. Give a model folder "
            "(./name) or a hub name of a causal language model with SDPA attention."
        ) from fault
    base.config.use_cache = False
    return base


def _quantised(stored: str, computed: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if stored == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    # QLoRA (arXiv 2305.14314): the scales of the blocks are stored in 8 bits as well.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
    )


def adapt(base: Any, train: Train, seed: int, start: str | None = None) -> Any:
    """The base with a fresh adapter (PEFT), or with the weights of the adapter in the folder `start`;
    without train.lora the base itself, all of it trainable.

    Raises RftError for targets that are not in it, or an adapter of another shape.
    """
    if train.gradient_checkpointing:
        try:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as fault:
            raise RftError(
                f"train.gradient_checkpointing: {one_line(fault)} Set it to false"
            ) from fault
    if train.lora is None:
        if start is not None:
            raise RftError(
                f"rounds.init: last: {start} is an adapter, and train.lora: null trains all weights of the "
                "base: give the arms the same train.lora, or set rounds.init to base"
            )
        base.requires_grad_(True)
        base.train()
        return base
    model = _with_lora(base, train.lora, seed)
    if start is not None:
        _load_weights(model, train.lora, Path(start))
    model.train()
    return model


def _with_lora(base: Any, lora: Lora, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in base.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )
    named = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    modules = [name for name, _ in base.named_modules()]
    for target in named:
        known = any(name == target or name.endswith(f".{target}") for name in modules)
        if target != "all-linear" and not known:
            raise RftError(
                f"train.lora.targets: no module of this model is called {target}; its linear layers are "
                f"{', '.join(linear)}. Name some of these, or write all-linear"
            )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if lora.targets == "all-linear" else named,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights="pissa" if lora.init == "pissa" else True,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(base, config)
    except ValueError as fault:
        raise RftError(f"train.lora.targets: {lora.targets}: {one_line(fault)}") from fault


def misfit(model: Any, weights: dict[str, torch.Tensor]) -> str:
    """Why an adapter's weights, as they are stored, are none of this model with its adapter: the first
    that is not there, or has another shape; "" if they are. PEFT leaves out what it has no layer for."""
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes = [{name: tuple(w.shape) for name, w in some.items()} for some in (weights, own)]
    if shapes[0] == shapes[1]:
        return ""
    name = min(name for name, _ in shapes[0].items() ^ shapes[1].items())
    found = [some.get(name, "not there") for some in shapes]
    return f"it does not fit: {name} is {found[0]} in it, and in the model {found[1]}"


def _load_weights(model: Any, lora: Lora, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    made_for, why = "", ""
    try:
        told = json.loads((folder / "adapter_config.json").read_text())
        made_for = told.get("base_model_name_or_path") or ""
        wanted = {"r": lora.rank, "lora_alpha": lora.alpha, "use_rslora": lora.rslora}
        other = [f"{k} {told.get(k)}, not {v}" for k, v in wanted.items() if told.get(k) != v]
        weights = load_file(folder / "adapter_model.safetensors")
        why = f"it has {', '.join(other)}" if other else misfit(model, weights)
        if not why:
            set_peft_model_state_dict(model, weights)
    except UNREADABLE as fault:
        why = one_line(fault)
    if why:
        base = model.get_base_model().config._name_or_path
        raise RftError(
            f"rounds.init: last: {folder}: {why}. The adapter to go on from must have been trained on the "
            f"same base (here {base}, its own {made_for or 'unknown'}), with the same train.lora (here rank "
            f"{lora.rank}, alpha {lora.alpha:g}, targets {lora.targets})"
        )


@dataclass(frozen=True)
class Cost:
    """Operations of training (Kaplan et al. 2020, arXiv 2001.08361, section 2.1, without attention): two a
    weight and token forward, two back to the activations, and two more for the gradient of a
    trainable weight."""

    body: int
    """For each token."""
    head: int
    """For each completion token; what others' logits would cost is never computed."""

    @classmethod
    def measure(cls, base: Any) -> "Cost":
        """base: transformers' model, with or without adapters in it."""
        head = base.get_output_embeddings()
        outside = {id(p) for p in (*head.parameters(), *base.get_input_embeddings().parameters())}
        body = 0
        for param in base.parameters():
            if id(param) not in outside:
                # nf4 holds two numbers in an element, and knows their shape.
                state = getattr(param, "quant_state", None)
                size = state.shape.numel() if state is not None else param.numel()
                body += size * (6 if param.requires_grad else 4)
        words, width = head.weight.shape
        return cls(body, words * width * (6 if head.weight.requires_grad else 4))

    def __call__(self, tokens: int, completion_tokens: int) -> int:
        return tokens * self.body + completion_tokens * self.head

    def of(self, group: Group) -> int:
        return self(group.tokens, group.completion_tokens)


def check_rows(base: Any, model: Model, groups: list[Group]) -> None:
    """Raises RftError for rows that this model cannot be trained on."""
    config = base.config.get_text_config()
    vocabulary = base.get_input_embeddings().weight.shape[0]
    limit = getattr(config, "max_position_embeddings", None)
    for group in groups:
        if limit is not None and group.longest > limit:
            raise RftError(
                f"training rows of prompt {group.prompt_id}: prompt and completion have {group.longest} "
                f"tokens, and the max_position_embeddings of {model.base} is {limit}. Lower "
                "sample.max_tokens, or drop long rows with a selector."
            )
        top = max(int(ids.max()) for ids in (group.prompt, *group.completions))
        if top >= vocabulary:
            raise RftError(
                f"training rows of prompt {group.prompt_id} hold token {top}, and {model.base} has "
                f"{vocabulary}: they were made with another tokenizer. Sample again with this one."
            )


def is_served_whole(train: Train) -> bool:
    """Whether what is trained is saved as a model of its own, since no engine serves it as an adapter."""
    return train.lora is None or train.lora.dora


Weights = dict[str, torch.Tensor]
"""Trainable parameters by their names in the model."""


def save(model: Any, stage: Path, train: Train, source: Model, initial: Weights) -> None:
    """Writes the adapter (adapter_model.safetensors, adapter_config.json), or a whole model with its
    tokenizer, into the stage's folder. Every process calls it, and the first one writes. initial: the
    weights before the first step, for an adapter that did not begin at 0.

    Each file is written in full beside it, then renamed into place; the manifest comes after all.
    """
    tmp, main = stage / ".model.tmp", sharding.rank() == 0
    sharded = any(isinstance(param, DTensor) for param in model.parameters())
    if not main and not sharded:
        return
    with disk_errors(stage):
        if main:
            shutil.rmtree(tmp, ignore_errors=True)
        if sharded and train.lora is None:
            sharding.together(
                lambda: save_whole(model, tmp, source, weights=False) if main else None
            )
            stream.write(model, tmp)
        elif is_served_whole(train):
            # Without the adapter: transformers would load it on top of what it is merged into.
            save_whole(model.merge_and_unload() if train.lora else model, tmp, source)
        else:
            named = model.named_parameters()
            weights = {name: sharding.whole(param) for name, param in named if param.requires_grad}
            if main:
                # Embeddings are never trained; without this PEFT asks the hub whether they grew.
                model.save_pretrained(tmp, save_embedding_layers=False, state_dict=weights)
                if train.lora and train.lora.init == "pissa":
                    _since(initial, tmp, train.lora)
        if main:
            _put_in_place(tmp, stage)


def _put_in_place(tmp: Path, stage: Path) -> None:
    for path in sorted(tmp.iterdir()):
        # PEFT writes a model card that says nothing.
        if path.name != "README.md":
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(path, stage / path.name)
    rows.sync_folder(stage)
    with contextlib.suppress(OSError):
        shutil.rmtree(tmp)


def _since(initial: Weights, folder: Path, lora: Lora) -> None:
    """Makes the saved adapter one for the base as it was: B A - B0 A0 is [B, -B0] [A; A0], of twice the
    rank (PiSSA, arXiv 2404.02948, appendix C)."""
    from safetensors.torch import load_file, save_file

    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    weights = load_file(path)
    for name, value in weights.items():
        before = initial[name.replace(".weight", ".default.weight")]
        is_down = "lora_A" in name
        weights[name] = torch.cat([value, before if is_down else -before], dim=0 if is_down else 1)
    save_file(weights, path)
    told = json.loads(config.read_text())
    # The scale is as before.
    more = math.sqrt(2) if lora.rslora else 2
    told |= {"r": 2 * lora.rank, "lora_alpha": more * lora.alpha, "init_lora_weights": True}
    config.write_text(json.dumps(told, indent=2, sort_keys=True))


def save_whole(model: Any, folder: Path, source: Model, weights: bool = True) -> None:
    """Writes a model with the tokenizer of `source`, its base. weights: whether its weights as well."""
    from transformers import AutoTokenizer

    model.config.use_cache = True
    sampling = getattr(model, "generation_config", None)
    if sampling is not None:
        # Many published ones name a temperature without it, which is refused when they are saved.
        sampling.do_sample = True
    model.save_pretrained(folder, **({} if weights else {"state_dict": {}}))
    AutoTokenizer.from_pretrained(
        source.base, revision=source.revision, trust_remote_code=source.trust_remote_code
    ).save_pretrained(folder)
