"""An arm's weights as a model of its own.

An adapter is merged in float32 and the merged model asked whether it still says what the adapter said,
before a file is written: in 16 bits W + B A is rounded, and a scale that is applied twice, or not at
all, looks like a model that has learnt little.
"""

from pathlib import Path
from typing import Any

import torch

from rft import rows
from rft.config import Model
from rft.config_train import Train
from rft.nodes import Node
from rft.precision import DTYPES
from rft.training.data import Layout, collate, read_groups
from rft.training.model import UNREADABLE, load_base, misfit, one_line, save_whole
from rft.training.objective import logits
from rft.types import RftError, TrainRow

AGREE = 1e-3
"""Most that a logit may change by merging in float32, as a share of the logits' spread; some 1e-6 are
usual."""
ROWS = 8
"""Training rows that are asked about."""


def write(node: Node, folder: Path, dtype: str) -> float | None:
    """Writes the model of a training stage with its tokenizer; returns how far merging has moved its logits,
    None where there was no adapter. Raises RftError where the merged model does not say what the adapter
    says."""
    model = Model(**node.job["model"])
    agreed: float | None = None
    if (node.dir.path / "config.json").is_file():
        whole = load_base(model.model_copy(update={"base": str(node.dir.path)}), Train())
    else:
        whole, agreed = merged(node, model)
    save_whole(whole.to(DTYPES[dtype]), folder, model)
    return agreed


def merged(node: Node, model: Model) -> tuple[Any, float]:
    """The base with the stage's adapter in its weights, and how far that has moved the logits."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    base = load_base(model, Train())
    path = node.dir.path
    try:
        adapted = get_peft_model(base, PeftConfig.from_pretrained(path)).eval()
        weights = load_file(path / "adapter_model.safetensors")
        fault = misfit(adapted, weights)
    except UNREADABLE as told:
        fault = one_line(told)
    if fault:
        raise RftError(
            f"{path}: this adapter does not fit {model.base}: {fault}. Restore the base that it was trained "
            "on, or remove the folder and train again"
        )
    set_peft_model_state_dict(adapted, weights)
    groups = read_groups(rows.read(Path(node.job["rows"]), TrainRow))[:ROWS]
    batch = collate([next(group.singles()) for group in groups], Layout.ROWS)
    with torch.no_grad():
        before = logits(adapted, batch)
        merged = adapted.merge_and_unload()
        after = logits(merged, batch)
    off = float((after - before).abs().max() / before.std())
    if not off < AGREE:
        raise RftError(
            f"{node.dir.path}: merged into {model.base}, the adapter's logits differ by {off:.2g} of their "
            "spread from those before. Is this the base that it was trained on?"
        )
    return merged, off
