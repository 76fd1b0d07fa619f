"""Number formats: what is stored, what is computed in, and the proof that the masters are FP32.

Peers pass dtype strings through several libraries and hope; here the trainable weights and the
optimizer's state are looked at, tensor by tensor, before the first step, after it, and whenever a
checkpoint is written.
"""

from typing import Any

import torch

from rft.config_train import Precision
from rft.types import RftError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MIXED = {"fp32": "no", "bf16": "bf16"}
"""`train.precision.compute` in the words of accelerate's `mixed_precision`."""


def check_launched(precision: Precision, launched: str | None) -> None:
    """Refuses a launch config that asks for another format than the experiment. Raises RftError.

    launched: `mixed_precision` of the launch config (accelerate's ACCELERATE_MIXED_PRECISION).
    Accelerate fills in "no" where a launch config is silent, so "no" asks for nothing.
    """
    wanted = MIXED[precision.compute]
    if launched not in (None, "", "no", wanted):
        raise RftError(
            f"train.launch: this launch config has mixed_precision: {launched}, but "
            f"train.precision.compute is {precision.compute}. Set the launch config's "
            f"mixed_precision to 'no' (the experiment decides), or change train.precision.compute."
        )


def assert_fp32_masters(model: torch.nn.Module, optimizer: Any) -> int:
    """Checks that every trainable parameter and its optimizer state is float32.

    Returns the number of trainable parameters (elements). Raises RftError naming the first
    tensor that is not float32, or if nothing is trainable.
    """
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
            if isinstance(value, torch.Tensor):
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
