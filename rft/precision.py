"""Number formats: what is stored, what is computed in, and the proof that the masters are FP32.

Peers pass dtype strings through several libraries and hope; here the trainable weights and the
optimizer's state are looked at, tensor by tensor, before the first step, after it, and whenever a
checkpoint is written.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from rft.config_train import Precision, Train
from rft.types import RftError

HAS_TRITON = importlib.util.find_spec("triton") is not None

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

QUANTISED = ("int8", "nf4")
"""Of `train.precision.base`: stored by bitsandbytes."""


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """What autocast computes in; None where nothing is cast."""
    return DTYPES[precision.compute] if precision.compute in ("bf16", "fp16") else None


def check_launched(precision: Precision, launched: str | None) -> None:
    """Refuses a launch config that asks for another format than the experiment. Raises RftError.

    launched: `mixed_precision` of the launch config (accelerate's ACCELERATE_MIXED_PRECISION).
    Accelerate fills in "no" where a launch config is silent, so "no" asks for nothing.
    """
    if launched not in (None, "", "no", precision.compute):
        raise RftError(
            f"train.launch: this launch config has mixed_precision: {launched}, but "
            f"train.precision.compute is {precision.compute}. Set the launch config's "
            f"mixed_precision to 'no' (the experiment decides), or change train.precision.compute."
        )


def check_hardware(train: Train, device: torch.device) -> None:
    """Refuses formats and ways that this machine does not have. Raises RftError naming one that it has."""
    precision, what, fix = train.precision, "", "fp32"
    if precision.compute == "tf32" and device.type != "cuda":
        what = f"train.precision.compute: tf32: there is none on a {device.type.upper()}"
    elif precision.compute == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
        what = f"train.precision.compute: tf32: {torch.cuda.get_device_name(device)} has none"
    elif (
        precision.compute == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        what = f"train.precision.compute: bf16: {torch.cuda.get_device_name(device)} has none"
        fix = "fp16"
    if precision.reduce == "bf16" and device.type == "cpu":
        # torch's hook for it needs NCCL.
        raise RftError("train.precision.reduce: bf16: only GPUs add up in it. Set it to fp32")
    if what:
        stored = precision.base in ("bf16", "fp16") and precision.base != fix
        raise RftError(f"{what}. Set it to {fix}" + (", and base as well" if stored else ""))
    if importlib.util.find_spec("bitsandbytes") is None:
        for name, value in (("optimizer", train.optimizer), ("precision.base", precision.base)):
            if value in (*QUANTISED, "adamw_8bit", "paged_adamw_8bit"):
                raise RftError(
                    f"train.{name}: {value} needs bitsandbytes: pip install 'rft[quant]'"
                )
    if device.type == "cpu" and train.optimizer == "paged_adamw_8bit":
        raise RftError(
            "train.optimizer: paged_adamw_8bit moves the moments out of a GPU, and there is none. Set it to "
            "adamw_8bit"
        )
    if train.compile and not (device.type == "cuda" and HAS_TRITON):
        raise RftError(
            "train.compile: only a GPU's kernels are compiled, by Triton. Set it to false"
        )


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Has float32 products computed as `compute` says: in TF32 or not, whatever was set before."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow = precision.compute == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740), for fp16 alone.

    A gradient below 2^-25 is 0 in fp16. So the loss is multiplied by a scale, and the float32
    gradients of the masters are divided by it; where one of them is not finite the step is left out
    and the scale halved. torch's GradScaler does that; here it is counted, and a scale that has become
    useless stops the run.
    """

    LEAST = 1.0

    def __init__(self, device: str, precision: Precision):
        self.enabled = precision.compute == "fp16"
        # RFT runs are short: torch's 2,000 steps between two doublings are often all there are.
        self._new = partial(torch.amp.GradScaler, device, enabled=self.enabled, growth_interval=200)
        self._scaler = self._new()
        self.skipped = 0
        """Steps left out so far, because a gradient was not finite."""

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        got: torch.Tensor = self._scaler.scale(loss)
        return got

    def unscale(self, optimizer: Any) -> None:
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Any) -> bool:
        """Takes the optimizer's step unless a gradient is not finite; whether it did. Raises RftError."""
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        after = self._scaler.get_scale()
        if after >= before:
            return True
        self.skipped += 1
        if after < self.LEAST:
            raise RftError(
                f"fp16: the loss scale has fallen to {after:g}: gradients overflow at any scale. Set "
                "train.precision.compute to bf16 (the range of fp32) or fp32, or lower train.lr"
            )
        return False

    @property
    def facts(self) -> dict[str, float]:
        """For metrics.jsonl; empty where nothing is scaled."""
        if not self.enabled:
            return {}
        return {"loss_scale": self._scaler.get_scale(), "skipped_steps": self.skipped}

    def state_dict(self) -> dict[str, Any]:
        return {"scaler": self._scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # One that has divided a step's gradients already would refuse to do so again.
        self._scaler = self._new()
        self._scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]


def zero_share(parameters: list[torch.Tensor]) -> float:
    """Share of the gradients' elements that are 0: underflown ones, and those that are 0 in truth."""
    grads = [param.grad for param in parameters if param.grad is not None]
    zeros = sum(int((grad == 0).sum()) for grad in grads)
    return zeros / max(sum(grad.numel() for grad in grads), 1)


def assert_fp32_masters(model: torch.nn.Module, optimizer: Any) -> int:
    """Checks that every trainable parameter and its optimizer state is float32, but for the moments that
    bitsandbytes' optimizers hold in 8 bits.

    Returns the number of trainable parameters (elements). Raises RftError naming the first
    tensor that is not float32, or if nothing is trainable.
    """
    in_8_bits = type(optimizer).__name__.endswith("AdamW8bit")
    trainable = 0
    names: dict[int, str] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            _assert_float32(f"trainable parameter {name}", param)
            names[id(param)] = name
            trainable += param.numel()
    if not trainable:
        raise RftError("train.lora: no parameter is trainable. Check train.lora.targets.")
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for param_id, name in names.items():
        if param_id not in held:
            raise RftError(f"trainable parameter {name} is not in the optimizer: please report it")
    for param, state in optimizer.state.items():
        name = names.get(id(param), "?")
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and not (in_8_bits and value.dtype is torch.uint8):
                _assert_float32(f"optimizer state {key} of {name}", value)
    return trainable


def _assert_float32(what: str, tensor: torch.Tensor) -> None:
    if tensor.dtype is not torch.float32:
        raise RftError(
            f"{what} is {tensor.dtype}, and masters must be float32: small updates would be "
            "rounded away. Something cast the adapter after it was made: keep it float32."
        )


def memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process: `peak_gpu_gb` on a GPU (torch's allocator), and `peak_rss_gb`
    (getrusage), both in GiB."""
    import resource

    facts = {"peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
    if device.type == "cuda":
        facts["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return facts
