"""What the two proofs before training let pass, and what they stop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rft import rows
from rft.config import Model
from rft.config_train import Precision, Train
from rft.precision import autocast_dtype
from rft.training import selftest
from rft.training.data import Group
from rft.training.lora import fuse
from rft.training.model import adapt, load_base, save
from rft.training.objective import Objective, check_layout
from rft.types import Candidate, Finish, RftError
from tests.unit.test_training_model import adapted, llama, some_groups

MODEL = Model(base="tiny")


def objective(model: Any, train: Train) -> Objective:
    base = model.get_base_model()
    fit = check_layout(base, MODEL, some_groups(), train)
    return Objective(model, fit, autocast_dtype(train.precision))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "compute, base", [("bf16", "fp32"), ("bf16", "bf16"), ("fp16", "fp32"), ("fp16", "fp16")]
)
def test_a_format_that_rounds_passes(tmp_path: Path, compute, base, fused):
    llama().save_pretrained(tmp_path)
    train = Train(precision=Precision(compute=compute, base=base))
    model = adapted(load_base(Model(base=str(tmp_path)), train))
    if fused:
        fuse(model)
    one = objective(model, train)
    got = selftest.compare_formats(one, some_groups(), train.precision)
    assert got is not None
    assert 0 < got.logit_error < 0.05 and got.gradient_cosine > 0.98
    assert 0 < abs(got.loss / got.loss_fp32 - 1) < 0.01
    # It leaves no trace.
    assert one.compute is autocast_dtype(train.precision) and one.training
    assert all(param.grad is None for param in model.parameters())


def test_in_fp32_there_is_nothing_to_compare():
    one = objective(adapted(llama()), Train())
    assert selftest.compare_formats(one, some_groups(), Precision()) is None


def test_a_format_that_a_model_does_not_bear_stops_the_run():
    """Activations beyond 65504, as some models trained in bf16 have."""
    base = llama()
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight *= 3000.0
        base.model.layers[0].mlp.gate_proj.weight *= 3000.0
    train = Train(precision=Precision(compute="fp16"))
    one = objective(adapted(base), train)
    with pytest.raises(RftError, match=r"train.precision: on a batch .* from fp16 to bf16"):
        selftest.compare_formats(one, some_groups(), train.precision)


def drawn(model: Any, folder: Path, groups: list[Group]) -> Path:
    """Candidates with the log-probabilities that the model itself gives them."""
    found = []
    for i, group in enumerate(groups):
        ids = torch.from_numpy(np.concatenate([group.prompt, group.completions[0]]).astype(int))
        with torch.no_grad():
            told = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        size = len(group.prompt)
        logprob = told[size - 1 : -1].gather(1, ids[size:, None]).sum().item()
        prompt, own = tuple(ids[:size].tolist()), tuple(ids[size:].tolist())
        found.append(
            Candidate(f"c{i}", group.prompt_id, 0, "", prompt, own, Finish.STOP, logprob=logprob)
        )
    rows.write_part(folder, found, Candidate)
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A base, an adapter for it, and what both together have sampled."""
    llama().save_pretrained(tmp_path / "base")
    source = Model(base=str(tmp_path / "base"))
    model = adapted(load_base(source, Train()))
    (tmp_path / "adapter").mkdir()
    save(model, tmp_path / "adapter", Train(), source, {})
    drawn(model.eval(), tmp_path / "sample", some_groups())
    return tmp_path


def compared(policy: Path, adapter: Path | None, train: Train | None = None) -> list[dict]:
    train = train or Train()
    model = adapt(load_base(Model(base=str(policy / "base")), train), train, seed=1)
    job = {
        "label": "train (rft)",
        "drawn": [
            {
                "sample": str(policy / "sample"),
                "adapter": adapter and str(adapter),
                "dtype": "float32",
            }
        ],
    }
    before = {name: param.clone() for name, param in model.named_parameters()}
    found = selftest.compare_samplers(objective(model, train), job, train.precision)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {n for n, p in after.items() if p.requires_grad} == {n for n in after if "lora_" in n}
    return found


def test_the_sampler_is_compared_with_the_adapter_that_it_had(policy: Path):
    (got,) = compared(policy, policy / "adapter")
    assert got["candidates"] == 4 and got["difference"] < 1e-4


def test_another_shape_of_adapter_can_be_compared(policy: Path):
    (got,) = compared(policy, policy / "adapter", Train(lora={"rank": 4, "rslora": True}))
    assert got["difference"] < 1e-4


def test_an_adapter_of_other_layers_is_left_out(policy: Path):
    """PEFT would wrap those layers, and not unwrap them."""
    assert compared(policy, policy / "adapter", Train(lora={"targets": ["q_proj"]})) == []


def test_an_adapter_that_was_not_loaded_is_found(policy: Path):
    with pytest.raises(
        RftError, match=r"train \(rft\): the sampler gave its tokens other log-prob"
    ):
        compared(policy, None)


def test_a_lost_first_token_is_found(policy: Path):
    told = list(rows.read(policy / "sample", Candidate))
    rows.clear(policy / "sample")
    cut = [replace(one, prompt_token_ids=one.prompt_token_ids[1:] or (0,)) for one in told]
    rows.write_part(policy / "sample", cut, Candidate)
    with pytest.raises(RftError, match="chat template"):
        compared(policy, policy / "adapter")


def test_candidates_without_log_probabilities_are_left_out(policy: Path):
    told = [replace(one, logprob=None) for one in rows.read(policy / "sample", Candidate)]
    rows.clear(policy / "sample")
    rows.write_part(policy / "sample", told, Candidate)
    assert compared(policy, policy / "adapter") == []


def test_an_adapter_that_cannot_be_loaded_is_left_out(policy: Path):
    assert compared(policy, policy / "base") == []
