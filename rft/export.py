"""`rft export`: what an arm has learnt, as a model that anything can load, with a card that says how.

An adapter is merged in float32 and the merged model asked whether it still says what the adapter said,
before a file is written: in 16 bits W + B A is rounded, and a scale that is applied twice, or not at
all, looks like a model that has learnt little.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from rft import process, rows
from rft.config import Experiment, Model
from rft.config_train import Train
from rft.loader import dump
from rft.nodes import Node
from rft.plan import Plan
from rft.precision import DTYPES
from rft.report import words
from rft.training.data import Layout, collate, read_groups
from rft.training.model import UNREADABLE, load_base, misfit, one_line, save_whole
from rft.training.objective import logits
from rft.types import RftError, TrainRow

AGREE = 1e-3
"""Most that a logit may change by merging in float32, as a share of the logits' spread; some 1e-6 are
usual."""
ROWS = 8
"""Training rows that are asked about."""


def export(experiment: Experiment, arm: str, to: Path, seed: int | None, dtype: str) -> None:
    """Writes an arm's model, tokenizer and README.md to the folder `to`, which must not exist.

    Raises RftError for an arm that trains nothing or is not trained yet, for a folder that is there, and
    where the merged model does not say what the adapter says.
    """
    plan = Plan(experiment)
    seed = experiment.seeds[0] if seed is None else seed
    node = _trained(plan, arm, seed)
    if to.exists():
        raise RftError(f"{to} exists already: name a folder that does not, or take that one away")
    model, settings = Model(**node.job["model"]), Train(**node.job["train"])
    agreed: float | None = None
    if (node.dir.path / "config.json").is_file():
        whole = load_base(model.model_copy(update={"base": str(node.dir.path)}), Train())
    else:
        whole, agreed = _merged(node, model)
    tmp = to.with_name(f".{to.name}.tmp")
    with rows.disk_errors(to):
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.parent.mkdir(parents=True, exist_ok=True)
        save_whole(whole.to(DTYPES[dtype]), tmp, model)
        card = _card(plan, node, arm, seed, settings, dtype, agreed)
        (tmp / "README.md").write_text(card)
        os.replace(tmp, to)
    process.say(f"{to}: {arm}, seed {seed}, in {dtype}")


def _trained(plan: Plan, arm: str, seed: int) -> Node:
    for row in plan.rows:
        if row.arm == arm and row.seed == seed:
            node = row.links.get("5_train")
            if node is None:
                raise RftError(f"arms.{arm} trains nothing: it has no weights of its own to export")
            if not node.done:
                raise RftError(
                    f"{node.label} is not done: run `rft train {plan.experiment.path}` first"
                )
            return node
    known = ", ".join(dict.fromkeys(row.arm for row in plan.rows if "5_train" in row.links))
    raise RftError(
        f"{plan.experiment.path}: no arm {arm!r} with seed {seed} trains something; there are {known}, "
        f"with seeds {', '.join(map(str, plan.experiment.seeds))}"
    )


def _merged(node: Node, model: Model) -> tuple[Any, float]:
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


def _card(
    plan: Plan, node: Node, arm: str, seed: int, train: Train, dtype: str, agreed: float | None
) -> str:
    """README.md with the front matter that model hubs read."""
    experiment, told = plan.experiment, node.dir.manifest()
    assert told is not None
    own = plan.arms[arm]
    base = node.job["model"]["base"]
    front = {
        "base_model": base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rejection-sampling-fine-tuning"],
    }
    formats = ", ".join(f"{k} {v}" for k, v in train.precision.model_dump().items())
    merged = f" The adapter was merged in float32; logits changed by {agreed:.1g} of their spread."
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {experiment.name}: {arm}, seed {seed}",
        f"{base}, fine-tuned by rejection sampling (rft). Stored in {dtype}."
        + (merged if agreed is not None else ""),
        "## Data",
        f"{told['rows']:,} answers to {told['prompts']:,} prompts of `{own.prompts.use}` "
        f"(split `{own.prompts.train}`). Sampled by `{own.sample.use}`, {own.sample.n} a prompt at "
        f"temperature {own.sample.temperature:g}; scored by "
        f"{', '.join(f'`{one.use}`' for one in own.score)}; selected by "
        f"{', '.join(f'`{one.use}`' for one in own.select)}.",
        "## Training",
        f"{told['steps']:,} steps ({told['epochs']:g} epochs), {told['tokens']:,} tokens, "
        f"{told['flops']:.3g} operations; {_method(train)}; learning rate {train.lr:g}. "
        f"Number formats: {formats}.",
        "```json\n" + json.dumps(told.get("proofs", {}), indent=2) + "\n```",
    ]
    comparison = experiment.folder / "report" / "comparison.json"
    if comparison.is_file():
        parts += ["## Results", words.markdown(json.loads(comparison.read_text())).strip()]
    parts += ["## Configuration", f"```yaml\n{dump(experiment).strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _method(train: Train) -> str:
    if train.lora is None:
        return "all weights trained"
    kinds = [name for name in ("rslora", "dora") if getattr(train.lora, name)]
    kinds += ["PiSSA"] if train.lora.init == "pissa" else []
    return f"LoRA of rank {train.lora.rank}" + (f" ({', '.join(kinds)})" if kinds else "")
