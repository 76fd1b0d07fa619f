"""One job's training, from its rows to its manifest: set-up, proofs, steps, checkpoints, the end."""

import contextlib
import gc
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

from rft import precision, rows
from rft.config import Model
from rft.config_train import Precision, Train
from rft.process import Progress, say
from rft.rundir import StageDir
from rft.training import checkpoint, layers, selftest, sharding
from rft.training.data import Group, Steps, read_groups
from rft.training.loop import Best, Leap, Run, advice
from rft.training.lora import fuse
from rft.training.model import Cost, Weights, adapt, check_rows, is_served_whole, load_base, save
from rft.training.objective import Fit, Objective, check_layout
from rft.training.stop import StopSignal
from rft.types import RftError, TrainRow

ROLLBACKS = 3
"""Most of them; a run that leaps again has another reason."""


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
    with precision.products(Train(**job["train"]).precision):
        _Job(job, stop).train()


class _Job:
    def __init__(self, job: dict[str, Any], stop: StopSignal):
        self.started = time.monotonic()
        self.job, self.label = job, job["label"]
        self.stage, self.seed = Path(job["folder"]), int(job["seed"])
        self.settings, model = Train(**job["train"]), Model(**job["model"])
        settings = self.settings
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
        precision.check_launched(settings.precision, launched)
        sharded = sharding.is_asked(settings, int(os.environ.get("WORLD_SIZE", "1")))
        # Before a model is loaded, which is far slower.
        self.accelerator = _accelerator(settings, self.stage, self.label)
        self.main = self.accelerator.is_main_process
        every = read_groups(rows.read(Path(job["rows"]), TrainRow), settings.loss)
        self.groups, self.held_out = _divided(every, settings, self.label)
        model, start = _start(model, settings, job.get("start"))
        base = load_base(model, settings)
        check_rows(base, model, every)
        self.model = adapt(base, settings, self.seed, start)
        self.initial: Weights = {}
        if settings.lora and settings.lora.init != "zero":
            self.initial = {name: w.detach().clone() for name, w in _weights(self.model).items()}
        self.model.to(self.accelerator.device)
        # Not in tf32, whose rounding is like a model's that computes branches wrongly.
        with precision.products(Precision()):
            self.fit = check_layout(base, model, every, settings)
        objective: Any = Objective(
            *(self.model, self.fit, precision.autocast_dtype(settings.precision)),
            settings.loss.clip,
        )
        saved = checkpoint.load(self.stage)
        found = [] if saved else selftest.compare_samplers(objective, job, settings.precision)
        self.proofs: dict[str, Any] = saved["proofs"] if saved else {"sampler": found}
        whole_layers = sharding.decoder_layers(base) if settings.compile else []
        self.fused = 0 if whole_layers else fuse(self.model) + layers.replace(base)
        if not saved:
            formats = selftest.compare_formats(objective, self.groups, settings.precision)
            self.proofs |= {"formats": asdict(formats)} if formats else {}
        # After the proofs, whose FP32 is made layer by layer as they are called.
        for layer in whole_layers:
            layer.compile()
        cost = Cost.measure(base)
        if sharded:
            device = self.accelerator.device
            objective = sharding.shard(objective, base, settings.precision, device)
        else:
            objective = self.accelerator.prepare_model(objective)
        is_fused = self.accelerator.device.type in ("cpu", "cuda") and not sharded
        optimizer = _optimizer(self.model, settings, is_fused)
        steps = Steps(self.groups, settings.tokens_per_step, self.seed, settings.shuffle)
        total = _total_steps(job, settings, steps, cost)
        scale = precision.LossScale(self.accelerator.device.type, settings.precision)
        self.run = Run(
            *(self.accelerator, objective, self.fit.layout, optimizer, scale, settings, steps),
            *(cost, total, self.seed, stop),
        )
        self.best = Best(settings.early_stop) if settings.early_stop else None
        self.line: dict[str, Any] | None = None
        """Of the last step, for metrics.jsonl."""
        self.done = 0
        """Steps behind us."""
        self.left_out: set[int] = set()
        """Steps that were rolled back, and are not taken again."""
        self.rollbacks = 0
        if saved:
            self.left_out, self.rollbacks = set(saved["left_out"]), saved["rollbacks"]
            self.started -= saved["seconds"]
            self._restore(saved)
        self.trainable = precision.assert_fp32_masters(self.model, optimizer)
        if self.main:
            checkpoint.drop_after(self.stage, saved["folder"] if saved else None)
            self._tell(saved is not None)

    def _tell(self, resumed: bool) -> None:
        checkpoint.rewind_metrics(self.stage / "metrics.jsonl", self.done)
        if resumed:
            say(f"  {self.label}: going on from step {self.done:,} of {self.run.total:,}")
        if self.fit.why:
            say(f"  {self.label}: a padded row for each completion: {self.fit.why}")

    def train(self) -> None:
        """To the manifest, or to a checkpoint and KeyboardInterrupt."""
        asked = False
        settings, run = self.settings, self.run
        if settings.spikes.action == "rollback" and not self.done:
            self._save()
        with self._lines() as write:
            while self.done < run.total and not asked:
                number = self.done
                if number in self.left_out:
                    self.done += 1
                    continue
                try:
                    self.line, asked = run.step(number)
                except Leap as leap:
                    self._roll_back(number, leap)
                    continue
                self.done += 1
                on = self._look(self.line)
                write(self.line)
                if number == 0:
                    precision.assert_fp32_masters(self.model, run.optimizer)
                if not on:
                    break
                if self.done < run.total and (asked or self.done % settings.checkpoint_every == 0):
                    self._save()
                    if asked:
                        raise KeyboardInterrupt
        if self.done == len(self.left_out):
            raise RftError(
                f"{self.label}: all {self.done} steps were rolled back, so nothing was trained. Lower train.lr, "
                "or train.checkpoint_every, so that less is left out"
            )
        if self.best:
            if not self.best.weights:
                self.best.take(self.done, run.look(self.held_out), _weights(self.model))
            _load(self.model, self.best.weights)
        source = Model(**self.job["model"])
        save(self.model, self.stage, settings, source, self.initial)
        if self.main:
            self._finish()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()
        if asked:
            raise KeyboardInterrupt  # the jobs that follow are not begun

    def _look(self, line: dict[str, Any]) -> bool:
        """Adds the held-out figures to the line, where it is time to; whether to go on."""
        early = self.settings.early_stop
        if self.best is None or early is None:
            return True
        every = early.every or self.run.steps.per_epoch
        if self.done % every and self.done < self.run.total:
            return True
        seen = self.run.look(self.held_out)
        line.update(seen)
        return self.best.take(self.done, seen, _weights(self.model))

    def _roll_back(self, number: int, leap: Leap) -> None:
        rolls_back = self.settings.spikes.action == "rollback"
        # Not to one that a Ctrl-C has written: an undisturbed run has none there.
        every = self.settings.checkpoint_every
        saved = checkpoint.load(self.stage, every) if rolls_back else None
        if saved is None or self.rollbacks == ROLLBACKS:
            raise advice(number, leap, rolls_back)
        self.rollbacks += 1
        # Those before it as well: they led there.
        self.left_out.update(range(saved["step"], number + 1))
        self._restore(saved)
        self.line = None
        self.run.optimizer.zero_grad()
        if self.main:
            checkpoint.drop_after(self.stage, saved["folder"])
            checkpoint.rewind_metrics(self.stage / "metrics.jsonl", self.done)
            say(
                f"  {self.label}: step {number + 1}: {leap}: back to step {self.done}, leaving out the "
                f"{number + 1 - self.done} since"
            )
        self._save()

    def _restore(self, saved: dict[str, Any]) -> None:
        own = _weights(self.model)
        _check_fits(saved, own)
        groups = self.run.optimizer.param_groups
        numbered = dict(enumerate(param for group in groups for param in group["params"]))
        saved = checkpoint.fill(saved, {**own, **numbered})
        _load(self.model, saved["weights"])
        self.run.load_state_dict(saved["run"])
        if self.best:
            self.best.load_state_dict(saved["best"])
        self.done = saved["step"]

    def _save(self) -> None:
        precision.assert_fp32_masters(self.model, self.run.optimizer)
        state = {
            "weights": _weights(self.model),
            "run": self.run.state_dict(),
            "best": self.best.state_dict() if self.best else None,
            "proofs": self.proofs,
            "left_out": sorted(self.left_out),
            "rollbacks": self.rollbacks,
            "seconds": time.monotonic() - self.started,
        }
        if self.main:
            metrics = self.stage / "metrics.jsonl"
            with rows.disk_errors(self.stage), open(metrics, "ab") as file:
                os.fsync(file.fileno())
        checkpoint.save(self.stage, self.done, state, self.settings.checkpoint_every)

    @contextlib.contextmanager
    def _lines(self) -> Iterator[Any]:
        """What writes and shows a step's line, on the main process."""
        if not self.main:
            yield lambda line: None
            return
        progress = Progress(self.label, self.run.total, self.done)
        path = self.stage / "metrics.jsonl"

        def write(line: dict[str, Any]) -> None:
            # A line is on disk before anything counts on its step. Opened anew: a roll-back replaces it.
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")
            if self.settings.trackers:
                self.accelerator.log(line, step=line["step"])
            progress.step(line["step"] - progress.done, note=f"loss {line['loss']:.3f}")

        with rows.disk_errors(self.stage):
            yield write
        progress.close()

    def _finish(self) -> None:
        run, groups, counted = self.run, self.groups, self.run.counted
        seconds = time.monotonic() - self.started
        StageDir(self.stage).commit(
            seconds,
            steps=self.done - len(self.left_out),
            steps_per_epoch=run.steps.per_epoch,
            rows=sum(len(group.completions) for group in groups),
            prompts=len(groups),
            epochs=round(self.done / run.steps.per_epoch, 4),
            tokens=counted["tokens"],
            completion_tokens=counted["completion_tokens"],
            # As trees, whatever the layout, so that `match_by: flops` follows from the rows alone.
            flops=counted["flops"],
            tokens_per_s=round(counted["tokens"] / max(seconds, 1e-9), 1),
            loss=self.line["loss"] if self.line else None,
            layout=_layout_facts(self.fit, counted, self.fused),
            precision={
                "master": "float32",
                **self.settings.precision.model_dump(exclude={"master"}),
                "trainable_parameters": self.trainable,
                **run.scale.facts,
            },
            proofs=self.proofs,
            **self._ends(),
            processes=self.accelerator.num_processes,
            device=str(self.accelerator.device.type),
            memory=precision.memory(self.accelerator.device),
        )
        checkpoint.clear(self.stage)

    def _ends(self) -> dict[str, Any]:
        """What became of the run otherwise than planned."""
        told: dict[str, Any] = {}
        if self.left_out:
            told["left_out_steps"] = len(self.left_out)
        if self.best:
            figure = self.best.value if self.best.early.by == "loss" else -self.best.value
            told["early_stop"] = {
                "best_step": self.best.step,
                self.best.early.by: figure,
                "stopped": self.done < self.run.total,
                "held_out_prompts": len(self.held_out),
            }
        return told


def _start(model: Model, train: Train, start: str | None) -> tuple[Model, str | None]:
    """The base to train, and the folder of the adapter to go on from. Raises RftError."""
    if start is None or not (Path(start) / "config.json").is_file():
        return model, start
    if not is_served_whole(train):
        raise RftError(
            f"rounds.init: last: {start} is a model of its own (trained without train.lora, or with dora), "
            "and an adapter that is trained on it would be evaluated on the base: give the arms the same "
            "train.lora, or set rounds.init to base"
        )
    return model.model_copy(update={"base": start, "revision": None}), None


def _optimizer(model: Any, train: Train, fused: bool) -> Any:
    trained = [param for param in model.parameters() if param.requires_grad]
    same: dict[str, Any] = {
        "lr": train.lr,
        "betas": train.betas,
        "weight_decay": train.weight_decay,
    }
    if train.optimizer == "adamw":
        return torch.optim.AdamW(trained, **same, fused=fused)
    import bitsandbytes.optim as ready

    kind = ready.AdamW8bit if train.optimizer == "adamw_8bit" else ready.PagedAdamW8bit
    return kind(trained, **same)


def _layout_facts(fit: Fit, counted: dict[str, int], fused: int) -> dict[str, Any]:
    return {
        "kind": str(fit.layout),
        **({"why": fit.why} if fit.why else {}),
        "gap_nats": fit.gap,
        "fused_head": fit.fused_head,
        "fused_layers": fused,
        "separate_rows_tokens": counted["separate_tokens"],
        # Of what was computed. A GPU's trees end in up to 127 more in a micro-batch.
        "padding_share": round(
            counted["padding"] / max(counted["padding"] + counted["separate_tokens"], 1), 4
        ),
        "sharing_gain": round(counted["separate_tokens"] / max(counted["tokens"], 1), 3),
    }


def _divided(groups: list[Group], train: Train, label: str) -> tuple[list[Group], list[Group]]:
    """Groups to train on, and those that early stopping looks at."""
    early = train.early_stop
    if early is None:
        return groups, []
    out = [group for group in groups if early.keeps(group.prompt_id)]
    # Wrong answers' cross-entropy is not to fall.
    out = [right for group in out if (right := group.rights())]
    own = [group for group in groups if not early.keeps(group.prompt_id)]
    if not out or not own:
        raise RftError(
            f"{label}: train.early_stop.hold_out: {early.hold_out:g} of {len(groups)} prompts leaves "
            f"{len(own)} to train on and {len(out)} to look at. Raise it, or leave early_stop out"
        )
    return own, out


def _accelerator(train: Train, stage: Path, label: str) -> Accelerator:
    AcceleratorState._reset_state()  # the job before may have had another format
    handlers = []
    if train.precision.reduce == "bf16":
        handlers.append(DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.BF16))
    accelerator = Accelerator(
        # Without being told, accelerate takes several processes without a GPU for unrelated ones.
        cpu=not torch.accelerator.is_available()
        or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true",
        # Casting is `Objective`'s: accelerate calls fp32 on a CPU fp16.
        mixed_precision="no",
        kwargs_handlers=handlers,
        log_with=list(train.trackers) or None,
        project_dir=stage / "trackers" if train.trackers else None,
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RftError(
            f"train.launch: {launched} processes were started, and accelerate sees "
            f"{accelerator.num_processes}: they would train apart and overwrite each other. Check "
            "distributed_type and num_processes in the launch config."
        )
    precision.check_hardware(train, accelerator.device)
    if accelerator.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores)))
    if train.trackers:
        have = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
        for name in train.trackers:
            if name not in have:
                raise RftError(f"train.trackers: {name} is not installed: pip install {name}")
        plain = {k: v for k, v in train.model_dump().items() if isinstance(v, (int, float, str))}
        accelerator.init_trackers("rft", plain, {"wandb": {"name": label}})
    return accelerator


def _total_steps(job: dict[str, Any], train: Train, steps: Steps, cost: Cost) -> int:
    if not job.get("match"):
        return max(1, round(train.epochs * steps.per_epoch))
    manifest = StageDir(Path(job["match"])).manifest()
    if not manifest or "steps" not in manifest:
        raise RftError(
            f"{job['label']}: train.match: {job['match']} is not a finished training stage. "
            "Run the arm that it names first."
        )
    of_an_epoch = {
        "steps": steps.per_epoch,
        "tokens": sum(group.separate_tokens for group in steps.groups),
        # With what meets in a step: `steps.groups` may be single rows.
        "flops": sum(cost.of(g) for number in range(steps.per_epoch) for g in steps[number]),
    }[train.match_by]
    wanted = {
        "steps": manifest["steps"],
        "tokens": manifest["layout"]["separate_rows_tokens"],
        "flops": manifest["flops"],
    }[train.match_by]
    return max(1, round(wanted / of_an_epoch * steps.per_epoch))


def _weights(model: Any) -> Weights:
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def _check_fits(saved: dict[str, Any], own: Weights) -> None:
    """Raises RftError for a checkpoint of other weights."""
    theirs = saved["weights"]
    other = next((n for n in {**own, **theirs} if n not in own or n not in theirs), None)
    other = other or next((n for n in own if own[n].shape != theirs[n].shape), None)
    if other:
        shapes = [
            str(tuple(some[other].shape)) if other in some else "none" for some in (theirs, own)
        ]
        raise RftError(
            f"{saved['folder']}: the checkpoint is of another model or adapter: its {other} is {shapes[0]}, and "
            f"this run's {shapes[1]}. Remove {saved['folder'].parent} to train anew"
        )


@torch.no_grad()
def _load(model: Any, weights: Weights) -> None:
    for name, param in _weights(model).items():
        sharding.part(param).copy_(sharding.part(weights[name]))
