"""When a model is sharded, what can't be, and faults that all processes hear of."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rft.config_train import Train
from rft.training.sharding import is_asked, load_optimizer_state, together
from rft.types import RftError


@pytest.mark.parametrize(
    "env, processes, expected",
    [("true", 2, True), ("true", 1, False), ("false", 2, False), (None, 2, False)],
)
def test_sharding_is_the_launch_configs_to_ask_for(monkeypatch, env, processes, expected):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if env:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", env)
    assert is_asked(Train(), processes) is expected


@pytest.mark.parametrize(
    "train, told",
    [
        ({"lora": {"dora": True}}, "train.lora.dora: it is saved as a merged model"),
        ({"precision": {"compute": "bf16", "base": "int8"}}, "train.precision.base: int8"),
        ({"precision": {"compute": "bf16", "base": "nf4"}}, "train.precision.base: nf4"),
        ({"optimizer": "adamw_8bit"}, "train.optimizer: adamw_8bit"),
    ],
)
def test_what_cannot_be_sharded_is_named(monkeypatch, train, told):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RftError, match=f"{told}.*: set train.launch to a config without FSDP"):
        is_asked(Train(**train), 2)


def test_deepspeed_is_refused_however_it_was_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RftError, match="train.launch: DeepSpeed .*fsdp8.yaml: FSDP2"):
        is_asked(Train(), 2)


@pytest.mark.parametrize("kind", ["AdamW8bit", "PagedAdamW8bit"])
def test_moments_in_8_bits_are_taken_over(kind, monkeypatch):
    """On a CPU nothing is paged; a stand-in counts what would be."""
    import bitsandbytes.optim as ready

    def made() -> tuple[torch.nn.Parameter, Any]:
        param = torch.nn.Parameter(torch.linspace(-1, 1, 8192).view(64, 128))
        return param, getattr(ready, kind)([param], lr=1e-2)

    def step(param: torch.nn.Parameter, optimizer: Any) -> None:
        param.grad = param.detach().sin()
        optimizer.step()

    param, optimizer = made()
    step(param, optimizer)
    other, again = made()
    paged = []
    own = again.get_state_buffer
    monkeypatch.setattr(
        again, "get_state_buffer", lambda p, dtype: paged.append(p) or own(p, dtype=dtype)
    )
    load_optimizer_state(again, copy.deepcopy(optimizer.state_dict()))
    assert len(paged) == (2 if kind == "PagedAdamW8bit" else 0)
    assert again.state[other]["state1"].dtype is torch.uint8
    other.data.copy_(param.data)
    step(param, optimizer)
    step(other, again)
    assert torch.equal(param, other)


def test_one_process_is_all_there_are():
    assert together(lambda: 3) == [3]
    with pytest.raises(FileNotFoundError):
        together(Path("/nowhere/at/all").read_bytes)
