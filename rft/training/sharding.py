"""Weights, gradients and optimizer state spread over processes: FSDP2, asked for by the launch config.

A launch config with `distributed_type: FSDP` makes accelerate's launcher say so to its processes; the sharding
itself is torch's `fully_shard`, decoder layer by decoder layer, which runs on CPUs as well and so can be
tested.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from rft.config_train import NO_DEEPSPEED, Precision, Train
from rft.precision import DTYPES, QUANTISED
from rft.types import RftError


def is_asked(train: Train, processes: int) -> bool:
    """Whether the launch config says FSDP. Raises RftError for DeepSpeed, and for what can't be sharded."""
    # accelerate has all processes but one load zeros, for FSDP1 to fill; `fully_shard` would not.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise RftError(f"train.launch: {NO_DEEPSPEED}")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or processes == 1:
        return False
    what = ""
    if train.lora and train.lora.dora:
        what = "train.lora.dora: it is saved as a merged model, and sharded weights can't be merged"
    elif train.precision.base in QUANTISED:
        what = (
            f"train.precision.base: {train.precision.base}: bitsandbytes' weights can't be sharded"
        )
    elif train.optimizer != "adamw":
        what = f"train.optimizer: {train.optimizer}: bitsandbytes knows whole weights only"
    if what:
        raise RftError(f"{what}: set train.launch to a config without FSDP")
    return True


def shard(objective: Any, base: Any, precision: Precision, device: torch.device) -> Any:
    """Shards each decoder layer, and what is left as one more. base: transformers' model in it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=DTYPES[precision.reduce], cast_forward_inputs=False)
    for layer in decoder_layers(base):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(objective, mesh=mesh, mp_policy=policy)


def decoder_layers(base: Any) -> list[torch.nn.Module]:
    """Those of transformers' model, by its own word."""
    kinds = tuple(getattr(base, "_no_split_modules", None) or ())
    return [module for module in base.modules() if type(module).__name__ in kinds]


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


T = TypeVar("T")


def together(work: Callable[[], T]) -> list[T]:
    """What `work` gives in each process, for all of them. Where it fails in one it fails in all, so that
    none is left waiting for it. Raises OSError or RftError."""
    mine: tuple[T | None, Exception | None]
    try:
        mine = (work(), None)
    except (OSError, RftError) as fault:
        mine = (None, fault)
    told: list[Any] = [mine]
    if world() > 1:
        told = [None] * world()
        torch.distributed.all_gather_object(told, mine)
    for _, failed in told:
        if failed is not None:
            raise failed
    return [got for got, _ in told]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of all processes, on the CPU. Each of them must ask."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu()


def part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of it."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def load_optimizer_state(optimizer: Any, told: dict[str, Any]) -> None:
    """Takes over a state_dict, but not how it steps: that is this process's matter."""
    groups = [
        {**group, **{k: own[k] for k in ("fused", "foreach") if k in own}}
        for group, own in zip(told["param_groups"], optimizer.param_groups)
    ]
    optimizer.load_state_dict({**told, "param_groups": groups})
    if getattr(optimizer, "is_paged", False):
        # bitsandbytes has put them into the GPU's memory.
        for param, state in optimizer.state.items():
            for name in state.keys() & {"state1", "state2"}:
                paged = optimizer.get_state_buffer(param, dtype=state[name].dtype)
                state[name] = paged.copy_(state[name])
