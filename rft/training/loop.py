"""The training loop: accelerate moves and wraps; what a step is, is decided here.

The textbook averages the loss in each micro-batch, lets DDP average over processes, and seeds once.
Here the step's loss is one weighted sum over its completion tokens, divided by the sum of their weights' sizes,
so packing, accumulation and the number of processes do not change what is learnt; and each step seeds itself
from (seed, step, process), so a resumed run repeats an uninterrupted one to the last bit.
"""

import contextlib
import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from rft.config_train import EarlyStop, Train
from rft.precision import LossScale, zero_share
from rft.training import sharding
from rft.training.data import Group, Layout, Steps, collate, deal, pack
from rft.training.model import Cost
from rft.training.stop import StopSignal
from rft.types import RftError, digest

WINDOW = 32
"""Steps whose median loss a leap is measured from."""


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


class Leap(Exception):
    """The loss has leapt, or is no number; the message says how."""


@dataclass
class Run:
    """One job's training: what `step` needs, and what it has counted so far."""

    accelerator: Accelerator
    objective: Any
    layout: Layout
    optimizer: Any
    scale: LossScale
    train: Train
    steps: Steps
    cost: Cost
    total: int
    """Optimizer steps of the whole run."""
    seed: int
    stop: StopSignal
    counted: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("tokens", "completion_tokens", "separate_tokens", "padding", "flops"), 0
        )
    )
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Losses of the steps before."""

    def step(self, number: int) -> tuple[dict[str, Any], bool]:
        """Trains one step; its line for metrics.jsonl, and whether any process should stop. Raises Leap
        before it changes a weight."""
        began = time.perf_counter()
        groups = self.steps[number]
        packed = self._packed(groups)
        tokens = sum(group.tokens for row in packed for group in row)
        targets = sum(group.completion_tokens for group in groups)
        lr = learning_rate(number, self.total, self.train)
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = lr
        # For dropout; 63 bits of a hash, so that neighbouring seeds share nothing.
        rank = self.accelerator.process_index
        torch.manual_seed(int(digest(self.seed, number, rank)[:15], 16))
        loss, asked = self._gradients(packed, sum(group.mass for group in groups))
        self.scale.unscale(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        zeros = {"zero_gradients": round(zero_share(parameters), 6)} if self.scale.enabled else {}
        limit = self.train.max_grad_norm
        norm = float(sharding.whole(torch.nn.utils.clip_grad_norm_(parameters, limit)))
        self._watch(loss, norm)
        self.scale.step(self.optimizer)
        self.optimizer.zero_grad()
        self.counted["tokens"] += tokens
        self.counted["completion_tokens"] += targets
        self.counted["separate_tokens"] += sum(group.separate_tokens for group in groups)
        self.counted["padding"] += sum(map(self._padding, packed))
        self.counted["flops"] += sum(map(self.cost.of, groups))
        seconds = time.perf_counter() - began
        return {
            "step": number + 1,
            "epoch": round((number + 1) / self.steps.per_epoch, 4),
            "loss": loss,
            "lr": lr,
            # Of a step that fp16 has left out there is none.
            "grad_norm": norm if math.isfinite(norm) else None,
            **self.scale.facts,
            **zeros,
            "tokens": tokens,
            "completion_tokens": targets,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(tokens / seconds, 1),
        }, asked

    def _packed(self, groups: list[Group]) -> list[list[Group]]:
        limit, processes = self.train.tokens_per_batch, self.accelerator.num_processes
        return pack(groups, limit, self.layout, processes)

    def _padding(self, row: list[Group]) -> int:
        """Places in a micro-batch that hold no token."""
        if self.layout is Layout.TREE:
            return 0
        sizes = [single.tokens for group in row for single in group.singles()]
        return max(sizes) * len(sizes) - sum(sizes)

    def _gradients(self, packed: list[list[Group]], mass: float) -> tuple[float, bool]:
        """Leaves the step's gradients in the parameters; its loss, over all processes, and whether
        any of them was asked to stop. mass: of all groups of the step."""
        accelerator = self.accelerator
        mine = deal(packed, accelerator.num_processes, accelerator.process_index)
        total = torch.zeros(2, device=accelerator.device)
        for place, (row, weight) in enumerate(mine, 1):
            last = place == len(mine)
            with self._in_step(last):
                batch = collate(row, self.layout).to(accelerator.device)
                loss = self.objective(batch) * weight
                # DDP will divide the sum of the gradients by the number of processes.
                self.scale.scaled(loss * (accelerator.num_processes / mass)).backward()
            total[0] += loss.detach()
        total[1] = float(self.stop.asked)
        total = accelerator.reduce(total, reduction="sum")
        return float(total[0]) / mass, bool(total[1] > 0)

    def _in_step(self, last: bool) -> Any:
        """Has gradients added up between processes after a step's last micro-batch only."""
        # Sharded ones are added up each time: whole ones are what there is no memory for.
        last = last or hasattr(self.objective, "reshard")
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective)

    def _watch(self, loss: float, norm: float) -> None:
        # In fp16 a gradient that is not finite only costs its step: the scale takes care of it.
        if not math.isfinite(loss) or not (self.scale.enabled or math.isfinite(norm)):
            raise Leap(f"the loss is {loss} and the gradient norm {norm}")
        usual = statistics.median(self.recent) if len(self.recent) >= WINDOW // 2 else math.inf
        if self.train.spikes.action != "ignore" and loss > usual + self.train.spikes.nats:
            raise Leap(f"the loss is {loss:.3f}, and was {usual:.3f} in the steps before")
        self.recent.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scale": self.scale.state_dict(),
            "counted": dict(self.counted),
            "recent": list(self.recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        sharding.load_optimizer_state(self.optimizer, state["optimizer"])
        self.scale.load_state_dict(state["scale"])
        self.counted |= state["counted"]
        self.recent = deque(state["recent"], maxlen=WINDOW)

    @torch.no_grad()
    def look(self, groups: list[Group]) -> dict[str, float]:
        """The held-out loss and accuracy of a completion token, over all processes; weighted as in
        training, and cross-entropy whatever training's loss."""
        accelerator, objective = self.accelerator, self.objective
        packed = self._packed(groups)
        total = torch.zeros(2, device=accelerator.device)
        objective.eval()
        for row, weight in deal(packed, accelerator.num_processes, accelerator.process_index):
            batch = collate(row, self.layout).to(accelerator.device)
            total += torch.stack(objective(batch, score=True)) * weight
        objective.train()
        if hasattr(objective, "reshard"):
            # As it would be after a backward pass, or the parameters have other names for the optimizer.
            objective.reshard()
        total = accelerator.reduce(total, reduction="sum")
        mass = sum(group.mass for group in groups)
        return {
            "held_out_loss": float(total[0]) / mass,
            "held_out_accuracy": float(total[1]) / mass,
        }


@dataclass
class Best:
    """Early stopping: the best figure so far, its step and its weights."""

    early: EarlyStop
    value: float = math.inf
    step: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    worse: int = 0
    """Looks since then."""

    def take(self, step: int, seen: dict[str, float], weights: dict[str, torch.Tensor]) -> bool:
        """Takes a look at the held-out prompts into account; whether training should go on."""
        value = seen["held_out_loss"] if self.early.by == "loss" else -seen["held_out_accuracy"]
        if value < self.value:
            self.value, self.step, self.worse = value, step, 0
            self.weights = {n: w.detach().to("cpu", copy=True) for n, w in weights.items()}
        else:
            self.worse += 1
        return self.worse < self.early.patience

    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "early"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def advice(number: int, leap: Leap, rolls_back: bool) -> RftError:
    """What a run says that a leap has stopped."""
    more = "" if rolls_back else ", set train.spikes.action to rollback"
    return RftError(
        f"step {number + 1}: {leap}. Lower train.lr, raise train.warmup_ratio{more}, or set "
        "train.precision.compute and base to fp32; the last checkpoint is kept."
    )
