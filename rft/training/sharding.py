"""Weights, gradients and optimizer state spread over processes: FSDP2, asked for by the launch config.

A launch config with `distributed_type: FSDP` makes accelerate's launcher say so to its processes; the sharding
itself is torch's `fully_shard`, decoder layer by decoder layer, which runs on CPUs as well and so can be
tested. A checkpoint holds whole tensors, so that a run may go on with another number of processes, sharded
or not.
"""

import os
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from rft.config_train import Precision, Train
from rft.precision import DTYPES
from rft.types import RftError


def is_asked(train: Train, processes: int) -> bool:
    """Whether the launch config says FSDP. Raises RftError for DeepSpeed, and for what can't be sharded."""
    # accelerate has all processes but one load zeros, for FSDP1 to fill; `fully_shard` would not.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise RftError(
            "train.launch: DeepSpeed takes the backward pass and the step over, and with them what a step "
            "is here. Use configs/accelerate/fsdp8.yaml: FSDP2 shards the same things as ZeRO-3"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or processes == 1:
        return False
    what = ""
    if train.lora and train.lora.dora:
        what = "train.lora.dora: it is saved as a merged model, and sharded weights can't be merged"
    elif train.precision.base == "int8":
        what = "train.precision.base: int8: bitsandbytes' weights can't be sharded"
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


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of all processes, on the CPU. Each of them must ask."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu()


@torch.no_grad()
def put(param: torch.Tensor, value: torch.Tensor) -> None:
    """Copies a whole tensor into a parameter, or this process's part of it."""
    if isinstance(param, DTensor):
        value = distribute_tensor(value.to(param.device), param.device_mesh, param.placements)
    param.copy_(value)


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The optimizer's state_dict with whole tensors."""
    told: dict[str, Any] = optimizer.state_dict()
    state = {
        number: {k: whole(v) if torch.is_tensor(v) else v for k, v in one.items()}
        for number, one in told["state"].items()
    }
    return {**told, "state": state}


def load_optimizer_state(optimizer: Any, told: dict[str, Any]) -> None:
    """The other way round."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = {}
    for number, one in told["state"].items():
        param = params[number]
        if isinstance(param, DTensor):
            one = {
                k: distribute_tensor(v.to(param.device), param.device_mesh, param.placements)
                if torch.is_tensor(v) and v.shape == param.shape
                else v
                for k, v in one.items()
            }
        state[number] = one
    groups = [
        # How it steps is this process's matter.
        {**group, **{k: own[k] for k in ("fused", "foreach") if k in own}}
        for group, own in zip(told["param_groups"], optimizer.param_groups)
    ]
    optimizer.load_state_dict({"param_groups": groups, "state": state})
