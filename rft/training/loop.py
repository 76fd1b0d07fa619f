"""The training loop: accelerate moves, wraps and casts; what a step is, is decided here.

The textbook averages the loss in each micro-batch, lets DDP average over processes, and seeds once.
Here the step's loss is one sum over its completion tokens, divided by their number, so packing,
accumulation and the number of processes do not change what is learnt; and each step seeds itself
from (seed, step, process), so a resumed run repeats an uninterrupted one to the last bit.
"""

import contextlib
import gc
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rft import precision, rows
from rft.config import Model
from rft.config_train import Train
from rft.precision import DTYPES
from rft.process import Progress, say
from rft.rundir import StageDir
from rft.training import checkpoint
from rft.training.data import Layout, Steps, collate, deal, pack, read_groups
from rft.training.lora import fuse
from rft.training.model import (
    Objective,
    add_lora,
    check_layout,
    check_rows,
    load_base,
    save_adapter,
)
from rft.training.stop import StopSignal
from rft.types import RftError, TrainRow, digest


def learning_rate(step: int, steps: int, train: Train) -> float:
    """Learning rate of a step, counted from 0, in a run of `steps`.

    Rises linearly over round(warmup_ratio * steps) steps (the first of them is not wasted on 0), is at
    its peak in the step after them, and then falls by half a cosine or a line that would reach 0
    just after the last step, or stays.
    """
    warm = round(train.warmup_ratio * steps)
    if step < warm:
        return train.lr * (step + 1) / (warm + 1)
    done = (step - warm) / max(steps - warm, 1)
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * done))
    if train.schedule == "linear":
        return train.lr * (1 - done)
    return train.lr


@dataclass
class Run:
    """One job's training: what `step` needs, and what it has counted so far."""

    accelerator: Accelerator
    objective: Any
    layout: Layout
    optimizer: Any
    train: Train
    steps: Steps
    total: int
    """Optimizer steps of the whole run."""
    seed: int
    stop: StopSignal
    counted: dict[str, int] = field(
        default_factory=lambda: {"tokens": 0, "completion_tokens": 0, "separate_tokens": 0}
    )

    def step(self, number: int) -> tuple[dict[str, Any], bool]:
        """Trains one step; its line for metrics.jsonl, and whether any process should stop."""
        began = time.perf_counter()
        accelerator, device = self.accelerator, self.accelerator.device
        groups = self.steps[number]
        packed = pack(groups, self.train.tokens_per_batch, self.layout)
        tokens = sum(group.tokens for row in packed for group in row)
        targets = sum(group.completion_tokens for group in groups)
        lr = learning_rate(number, self.total, self.train)
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = lr
        # For dropout; 63 bits of a hash, so that neighbouring seeds share nothing.
        torch.manual_seed(int(digest(self.seed, number, accelerator.process_index)[:15], 16))
        mine = deal(packed, accelerator.num_processes, accelerator.process_index)
        total = torch.zeros(2, device=device)
        for place, (row, weight) in enumerate(mine, 1):
            last = place == len(mine)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.objective):
                loss = self.objective(collate(row, self.layout).to(device)) * weight
                # DDP will divide the sum of the gradients by the number of processes.
                accelerator.backward(loss * (accelerator.num_processes / targets))
            total[0] += loss.detach()
        total[1] = float(self.stop.asked)
        total = accelerator.reduce(total, reduction="sum")
        loss_value, asked = float(total[0]) / targets, bool(total[1] > 0)
        norm = float(
            accelerator.clip_grad_norm_(self.objective.parameters(), self.train.max_grad_norm)
        )
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise RftError(
                f"step {number + 1}: the loss is {loss_value} and the gradient norm {norm}. Lower "
                "train.lr, raise train.warmup_ratio, or set train.precision.compute to fp32; the last "
                "checkpoint is kept."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.counted["tokens"] += tokens
        self.counted["completion_tokens"] += targets
        self.counted["separate_tokens"] += sum(group.separate_tokens for group in groups)
        seconds = time.perf_counter() - began
        return {
            "step": number + 1,
            "epoch": round((number + 1) / self.steps.per_epoch, 4),
            "loss": loss_value,
            "lr": lr,
            "grad_norm": norm,
            "tokens": tokens,
            "completion_tokens": targets,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(tokens / seconds, 1),
        }, asked


def free_memory() -> None:
    """Gives a finished job's model back before the next one is loaded: accelerate's wrappers hold it
    in reference cycles, which Python would only break at some later time."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def train_job(job: dict[str, Any], stop: StopSignal) -> None:
    """Trains one job (see rft.stages.train) to its manifest.

    Raises RftError, and KeyboardInterrupt after a stop was asked for and a checkpoint written.
    """
    started = time.monotonic()
    stage, seed = Path(job["folder"]), int(job["seed"])
    settings, model_settings = Train(**job["train"]), Model(**job["model"])
    precision.check_launched(settings.precision, os.environ.get("ACCELERATE_MIXED_PRECISION"))
    groups = read_groups(rows.read(Path(job["rows"]), TrainRow))
    base = load_base(model_settings, settings)
    check_rows(base, model_settings, groups)
    model = add_lora(base, settings, seed, job.get("start"))

    accelerator = _accelerator(settings)
    if accelerator.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores)))
    model.to(accelerator.device)
    fit = check_layout(base, model_settings, groups, settings.lora.dropout > 0)
    fuse(model)
    saved = checkpoint.load(stage)
    if saved:
        _load_adapter(model, saved["adapter"])
    trainable = [param for param in model.parameters() if param.requires_grad]
    optimizer: Any = torch.optim.AdamW(
        trainable,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=accelerator.device.type in ("cpu", "cuda"),
    )
    adapter = model
    computed = settings.precision.compute
    objective: Any = Objective(model, fit, None if computed == "fp32" else DTYPES[computed])
    objective, optimizer = accelerator.prepare(objective, optimizer)
    steps = Steps(groups, settings.tokens_per_step, seed)
    total = _total_steps(job, settings, steps)
    run = Run(accelerator, objective, fit.layout, optimizer, settings, steps, total, seed, stop)
    done = 0
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        done, run.counted = saved["step"], saved["counted"]
        started -= saved["seconds"]
    main = accelerator.is_main_process
    trainable_count = precision.assert_fp32_masters(adapter, optimizer)
    if main:
        checkpoint.drop_damaged(stage, done)
        checkpoint.rewind_metrics(stage / "metrics.jsonl", done)
        if saved:
            say(f"  {job['label']}: going on from step {done:,} of {total:,}")
        if fit.why:
            say(f"  {job['label']}: a padded row for each completion: {fit.why}")

    def save(step: int) -> None:
        precision.assert_fp32_masters(adapter, optimizer)
        if main:
            with rows.disk_errors(stage), open(stage / "metrics.jsonl", "rb") as file:
                os.fsync(file.fileno())
            state = {
                "adapter": _adapter_weights(adapter),
                "optimizer": optimizer.state_dict(),
                "counted": run.counted,
                "seconds": time.time() - started,
            }
            checkpoint.save(stage, step, state)

    line, asked = None, False
    for line, asked in _lines(run, done, stage, job["label"] if main else None):
        number = line["step"]
        if number == done + 1:
            precision.assert_fp32_masters(adapter, optimizer)
        if number < total and (asked or number % settings.checkpoint_every == 0):
            save(number)
            if asked:
                raise KeyboardInterrupt
    if main:
        save_adapter(adapter, stage)
        counted = run.counted
        seconds = time.monotonic() - started
        StageDir(stage).commit(
            seconds,
            steps=total,
            steps_per_epoch=steps.per_epoch,
            rows=sum(len(group.completions) for group in groups),
            prompts=len(groups),
            epochs=round(total / steps.per_epoch, 4),
            tokens=counted["tokens"],
            completion_tokens=counted["completion_tokens"],
            tokens_per_s=round(counted["tokens"] / max(seconds, 1e-9), 1),
            loss=line["loss"] if line else None,
            layout={
                "padding_tokens": 0,
                "separate_rows_tokens": counted["separate_tokens"],
                "sharing_gain": round(counted["separate_tokens"] / max(counted["tokens"], 1), 3),
            },
            precision={
                "master": "float32",
                "compute": settings.precision.compute,
                "base": settings.precision.base,
                "trainable_parameters": trainable_count,
            },
            processes=accelerator.num_processes,
            device=str(accelerator.device.type),
            memory=precision.memory(accelerator.device),
        )
        checkpoint.clear(stage)
    accelerator.wait_for_everyone()
    if asked:
        raise KeyboardInterrupt  # the jobs that follow are not begun


def _lines(
    run: Run, done: int, stage: Path, label: str | None
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Trains the steps that are left; the main process (with a label) writes and shows them."""
    progress = Progress(label, run.total, done) if label else None
    with contextlib.ExitStack() as stack:
        if label:
            stack.enter_context(rows.disk_errors(stage))
            file = stack.enter_context(open(stage / "metrics.jsonl", "a"))
        for number in range(done, run.total):
            line, asked = run.step(number)
            if progress:
                # A line is on disk before anything counts on its step.
                file.write(json.dumps(line) + "\n")
                file.flush()
                progress.step(note=f"loss {line['loss']:.3f}")
            yield line, asked
    if progress:
        progress.close()


def _accelerator(train: Train) -> Accelerator:
    AcceleratorState._reset_state()  # the job before may have had another format
    accelerator = Accelerator(
        # Without being told, accelerate takes several processes without a GPU for unrelated ones.
        cpu=not torch.accelerator.is_available()
        or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true",
        mixed_precision="no",
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RftError(
            f"train.launch: {launched} processes were started, and accelerate sees "
            f"{accelerator.num_processes}: they would train apart and overwrite each other. Check "
            "distributed_type and num_processes in the launch config."
        )
    return accelerator


def _total_steps(job: dict[str, Any], train: Train, steps: Steps) -> int:
    if not job.get("match"):
        return max(1, round(train.epochs * steps.per_epoch))
    manifest = StageDir(Path(job["match"])).manifest()
    if not manifest or "steps" not in manifest:
        raise RftError(
            f"{job['label']}: train.match_steps: {job['match']} is not a finished training stage. "
            "Run the arm that it names first."
        )
    return int(manifest["steps"])


def _adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name: param.detach().cpu() for name, param in named if param.requires_grad}


def _load_adapter(model: Any, weights: dict[str, torch.Tensor]) -> None:
    own = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if own.keys() != weights.keys():
        raise RftError(
            "the checkpoint is of another adapter. Remove the stage's .checkpoints folder to train "
            "anew."
        )
    with torch.no_grad():
        for name, param in own.items():
            param.copy_(weights[name])
