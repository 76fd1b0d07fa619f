"""When a model is sharded, what can't be, and faults that all processes hear of."""

from pathlib import Path

import pytest

from rft.config_train import Train
from rft.training.sharding import is_asked, together
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


def test_one_process_is_all_there_are():
    assert together(lambda: 3) == [3]
    with pytest.raises(FileNotFoundError):
        together(Path("/nowhere/at/all").read_bytes)
