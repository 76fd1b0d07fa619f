"""The grouped layout computes what padded rows compute, and masters are FP32 or it stops."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rft.config import Model
from rft.config_train import Lora, Precision, Train
from rft.precision import DTYPES, assert_fp32_masters, autocast_dtype, check_launched
from rft.training import attention, layers
from rft.training.data import Group, Layout, collate, pack
from rft.training.lora import fuse
from rft.training.model import adapt, check_rows, load_base, save
from rft.training.objective import Fit, Objective, check_layout
from rft.types import RftError

MODEL = Model(base="tiny")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes}))


def some_groups() -> list[Group]:
    draw = np.random.default_rng(0)
    return [
        Group(f"p{i}", draw.integers(0, 64, size, np.int32), tuple(completions), (1.0,) * (i + 1))
        for i, size in enumerate([5, 12, 1, 9])
        for completions in [_forked([draw.integers(0, 64, n) for n in draw.integers(1, 9, i + 1)])]
    ]


def _forked(drawn: list[np.ndarray]) -> list[np.ndarray]:
    """In order, some of them beginning alike."""
    same = [np.concatenate([drawn[0][:2], ids]) if i % 2 else ids for i, ids in enumerate(drawn)]
    return [np.array(ids, np.int32) for ids in sorted(ids.tolist() for ids in same)]


def padded_loss(model, groups: list[Group]) -> torch.Tensor:
    """The textbook: a padded row for each completion, an attention mask, all logits."""
    rows = [(g.prompt, c) for g in groups for c in g.completions]
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    seen = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for i, (prompt, completion) in enumerate(rows):
        both = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
        ids[i, : len(both)], seen[i, : len(both)] = both, 1
        labels[i, len(prompt) : len(both)] = both[len(prompt) :]
    logits = model(input_ids=ids, attention_mask=seen).logits[:, :-1].flatten(0, 1)
    return cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.double() for n, p in model.named_parameters() if p.requires_grad}


TREES, ROWS = Fit(Layout.TREE), Fit(Layout.ROWS)


def adapted(base: Any, **train: Any) -> Any:
    """With LoRA whose B is not 0, where half of the gradients would vanish."""
    model = adapt(base, Train(**train), seed=0)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.1)
    return model


def trained(
    model: Any, fit: Fit, groups: list[Group], limit: int = 1000, clip: float | None = None
) -> float:
    """Leaves the gradients of all groups in the model; the loss."""
    if fit.layout is Layout.TREE:
        model.get_base_model().set_attn_implementation(attention.NAME)
    total = 0.0
    for some in pack(groups, limit, fit.layout):
        loss = Objective(model, fit, None, clip)(collate(some, fit.layout))
        loss.backward()
        total += float(loss.detach())
    return total


@pytest.mark.parametrize("fused_lora", [False, True])
@pytest.mark.parametrize("fused_head", [False, True])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("limit", [1000, 40, 1])
@pytest.mark.parametrize("shortest", [0, attention.SHORTEST])
def test_loss_and_gradients_equal_those_of_plain_rows(
    shortest, limit, layout, fused_head, fused_lora, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "SHORTEST", shortest)
    groups = some_groups()
    model = adapted(llama())
    expected = padded_loss(model, groups)
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    if fused_lora:
        assert fuse(model) == 2 * 7
    total = trained(model, Fit(layout, fused_head=fused_head), groups, limit)
    assert total == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, got in gradients(model).items():
        assert float((got - wanted[name]).norm() / wanted[name].norm()) < 5e-6, name


def test_gradient_checkpointing_changes_no_gradient():
    found = []
    for recompute in (False, True):
        model = adapted(llama(), gradient_checkpointing=recompute)
        fuse(model)
        trained(model, TREES, some_groups())
        found.append(gradients(model))
    assert all(torch.allclose(found[0][n], found[1][n], rtol=1e-5, atol=1e-7) for n in found[0])
    assert any(float(g.norm()) > 0 for g in found[1].values())
    assert model.get_base_model().is_gradient_checkpointing


def gpt2(**changes) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128, **changes)
    return GPT2LMHeadModel(config)


def mistral(**changes) -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize(
    "make",
    [
        llama,
        mistral,
        lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
        # Learned positions.
        lambda: gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    ],
)
def test_models_that_compute_trees_are_given_trees(make):
    model = make()
    fit = check_layout(model, MODEL, some_groups(), Train())
    assert fit.layout is Layout.TREE and fit.fused_head and fit.gap < 1e-4
    assert model.config._attn_implementation == attention.NAME


def mamba() -> MambaForCausalLM:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
    return MambaForCausalLM(config)


def bloom() -> BloomForCausalLM:
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


@pytest.mark.parametrize(
    "make, train, why",
    [
        (bloom, {}, "BloomForCausalLM has an attention of its own"),
        (mamba, {}, "its attention does not compute branches as it computes rows"),
        (lambda: mistral(sliding_window=8), {}, "and its attention a window of 8"),
        (llama, {"lora": {"dropout": 0.1}}, "dropout would be drawn once"),
        (gpt2, {}, "dropout would be drawn once"),
        (llama, {"layout": "rows"}, "as train.layout says"),
    ],
)
def test_other_models_are_trained_on_plain_rows_and_say_why(make, train, why):
    groups, model = some_groups(), make()
    before = model.config._attn_implementation
    fit = check_layout(model, MODEL, groups, Train(**train))
    assert fit.layout is Layout.ROWS and why in fit.why
    assert model.config._attn_implementation == before
    model.eval()
    total = sum(
        Objective(model, fit, None)(collate(some, fit.layout)).item()
        for some in pack(groups, 40, fit.layout)
    )
    assert total == pytest.approx(padded_loss(model, groups).item(), rel=1e-5)


def test_rounding_to_bf16_is_not_taken_for_branches_that_see_each_other(monkeypatch):
    # Logits far apart, of which a rare one is off by a nat.
    fit = check_layout(llama(initializer_range=0.7).bfloat16(), MODEL, some_groups(), Train())
    assert fit.layout is Layout.TREE and 0 < fit.gap < 0.5

    def seeing(batch):
        return attention.trees(replace(batch, end=torch.full_like(batch.end, batch.end.max())))

    monkeypatch.setattr(
        "rft.training.objective.attention", SimpleNamespace(trees=seeing, NAME=attention.NAME)
    )
    fit = check_layout(llama(initializer_range=0.7).bfloat16(), MODEL, some_groups(), Train())
    assert fit.layout is Layout.ROWS and "computes rows" in fit.why


def test_a_model_that_scales_its_logits_keeps_its_own_head():
    model = CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.5))
    fit = check_layout(model, MODEL, some_groups(), Train())
    assert fit.layout is Layout.TREE and not fit.fused_head
    assert Objective(model, fit, None)(collate(some_groups())).item() == pytest.approx(
        padded_loss(model, some_groups()).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: llama(max_position_embeddings=8), "max_position_embeddings of tiny is 8"),
        (lambda: llama(vocab_size=10), "tiny has 10: they were made with another tokenizer"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_named(make, told):
    with pytest.raises(RftError, match=f"training rows of prompt p.*{told}"):
        check_rows(make(), MODEL, some_groups())


def test_the_adapter_depends_on_the_seed_alone():
    base = llama()
    first = adapt(copy.deepcopy(base), Train(), seed=1).state_dict()
    torch.randn(100)
    again = adapt(copy.deepcopy(base), Train(), seed=1).state_dict()
    other = adapt(copy.deepcopy(base), Train(), seed=2).state_dict()
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_all_linear_adapts_every_layer_and_not_the_head():
    model = adapt(llama(), Train(), seed=0)
    adapted = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(adapted) == 2 * 2 * 7
    assert not any("lm_head" in n or "embed" in n for n in adapted)


def test_unknown_targets_are_named():
    with pytest.raises(
        RftError,
        match=r"targets: no module .* called nothing; its linear layers are down_proj, gate_proj",
    ):
        adapt(llama(), Train(lora=Lora(targets=["nothing"])), seed=0)


def start_from(folder: Path, **lora: Any) -> Any:
    """A model that goes on from an adapter of rank 16 and alpha 32."""
    source = Model(base=str(folder / "base"))
    llama().save_pretrained(folder / "base")
    first = adapted(load_base(source, Train()))
    (folder / "first").mkdir()
    save(first, folder / "first", Train(), source, {})
    train = Train(lora=lora if lora else {})
    return first, adapt(load_base(source, train), train, 1, str(folder / "first"))


def test_training_goes_on_from_an_adapter(tmp_path: Path):
    batch = collate(some_groups(), Layout.ROWS)
    losses = [Objective(model, ROWS, None)(batch).item() for model in start_from(tmp_path)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize(
    "lora, told",
    [
        ({"alpha": 16}, "lora_alpha 32.*, not 16"),
        ({"rank": 8}, "r 16, not 8"),
        ({"rslora": True}, "use_rslora False, not True"),
        (
            {"targets": ["q_proj"]},
            r"does not fit: .*lora_A.weight is \(16, .* and in the model not there",
        ),
    ],
)
def test_an_adapter_of_another_shape_or_scale_is_refused(tmp_path: Path, lora, told):
    with pytest.raises(RftError, match=f"rounds.init: last: .*{told}"):
        start_from(tmp_path, **lora)


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"hidden_size": 16},
            r"down_proj.lora_B.weight is \(32, 16\) in it, and in the model \(16, 16\)",
        ),
        ({"num_hidden_layers": 1}, r"layers.1.* and in the model not there"),
        ({"num_hidden_layers": 3}, r"layers.2.* is not there in it"),
    ],
)
def test_an_adapter_of_another_base_is_refused_with_both_names(tmp_path: Path, changes, told):
    start_from(tmp_path)
    llama(**changes).save_pretrained(tmp_path / "other")
    base = load_base(Model(base=str(tmp_path / "other")), Train())
    with pytest.raises(RftError, match=told) as fault:
        adapt(base, Train(), 1, str(tmp_path / "first"))
    assert f"same base (here {tmp_path / 'other'}, its own {tmp_path / 'base'})" in str(fault.value)
    assert "\n" not in str(fault.value)


def test_all_weights_cannot_go_on_from_an_adapter():
    with pytest.raises(RftError, match="train.lora: null trains all weights"):
        adapt(llama(), Train(lora=None), 0, "some/adapter")


def test_a_torn_model_is_named(tmp_path: Path):
    llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RftError, match="model.base: .*cannot be loaded for training"):
        load_base(Model(base=str(tmp_path)), Train())


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(RftError, match=r"model.base: .*nowhere: cannot be loaded for training"):
        load_base(Model(base=str(tmp_path / "nowhere")), Train())


@pytest.mark.parametrize(
    "compute, stored",
    [("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "int8"), ("bf16", "int8"), ("fp32", "nf4")],
)
def test_masters_are_float32_over_any_base_and_learn(tmp_path: Path, compute, stored):
    llama(hidden_size=64).save_pretrained(tmp_path)
    train = Train(precision=Precision(compute=compute, base=stored))
    base = load_base(Model(base=str(tmp_path)), train)
    kept = base.model.layers[0].mlp.up_proj.weight.dtype
    assert kept is {"int8": torch.int8, "nf4": torch.uint8}.get(stored, DTYPES.get(stored))
    model = adapt(base, train, seed=0)
    fit = check_layout(base, MODEL, some_groups(), train)
    fuse(model)
    layers.replace(base)
    objective = Objective(model, fit, autocast_dtype(train.precision))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = objective(collate(some_groups(), fit.layout))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert assert_fp32_masters(model, optimizer) > 0
    assert losses[-1] < 0.9 * losses[0]


def stepped():
    model = adapt(llama(), Train(), seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    trained(model, ROWS, some_groups())
    optimizer.step()
    return model, optimizer


def test_masters_count_the_trainable_parameters():
    model, optimizer = stepped()
    assert assert_fp32_masters(model, optimizer) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_a_cast_master_is_named():
    model, optimizer = stepped()
    name, param = next((n, p) for n, p in model.named_parameters() if "lora_B" in n)
    param.data = param.data.bfloat16()
    with pytest.raises(RftError, match=f"trainable parameter {name} is torch.bfloat16"):
        assert_fp32_masters(model, optimizer)


def test_a_cast_optimizer_state_is_named():
    model, optimizer = stepped()
    state = next(iter(optimizer.state.values()))
    state["exp_avg_sq"] = state["exp_avg_sq"].half()
    with pytest.raises(RftError, match=r"optimizer state exp_avg_sq of .*lora.* is torch.float16"):
        assert_fp32_masters(model, optimizer)


def test_a_trainable_parameter_outside_the_optimizer_is_named():
    model, _ = stepped()
    some = [p for p in model.parameters() if p.requires_grad][1:]
    with pytest.raises(RftError, match="is not in the optimizer"):
        assert_fp32_masters(model, torch.optim.AdamW(some))


@pytest.mark.parametrize(
    "compute, base, launched, told",
    [
        ("fp32", "fp32", None, None),
        ("fp32", "fp32", "no", None),
        ("bf16", "bf16", "no", None),
        ("bf16", "fp32", "bf16", None),
        ("fp32", "fp32", "bf16", "mixed_precision: bf16, but train.precision.compute is fp32"),
        ("fp32", "fp32", "fp16", "mixed_precision: fp16, but"),
        ("bf16", "bf16", "fp16", "mixed_precision: fp16, but train.precision.compute is bf16"),
    ],
)
def test_launch_configs_of_another_format(compute, base, launched, told):
    precision = Precision(compute=compute, base=base)
    if told is None:
        check_launched(precision, launched)
    else:
        with pytest.raises(RftError, match=told):
            check_launched(precision, launched)


def test_the_saved_adapter_gives_the_same_loss(tmp_path: Path):
    from peft import PeftModel

    llama().save_pretrained(tmp_path / "base")
    tuned = adapted(load_base(Model(base=str(tmp_path / "base")), Train()))
    stage = tmp_path / "stage"
    stage.mkdir()
    source = Model(base=str(tmp_path / "base"))
    save(tuned, stage, Train(), source, {})
    assert sorted(p.name for p in stage.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((stage / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    loaded = PeftModel.from_pretrained(
        load_base(Model(base=str(tmp_path / "base")), Train()), stage
    )
    batch = collate(some_groups(), Layout.ROWS)
    expected = Objective(tuned, ROWS, None)(batch).item()
    assert Objective(loaded, ROWS, None)(batch).item() == pytest.approx(expected, rel=1e-6)
    assert Objective(llama(), ROWS, None)(batch).item() != pytest.approx(expected, rel=1e-3)


def test_the_block_mask_of_trees_is_that_of_every_pair_of_tokens():
    from torch.nn.attention.flex_attention import create_block_mask

    draw = np.random.default_rng(0)
    made = []
    for number in range(6):
        start = draw.integers(0, 64, draw.integers(1, 200), np.int32)
        ids = [draw.integers(0, 64, size, np.int32) for size in draw.integers(1, 300, 4)]
        ids[1] = np.concatenate([ids[0][:150], ids[1]])
        ids = [np.array(some, np.int32) for some in sorted(some.tolist() for some in ids)]
        made.append(Group(f"p{number}", start, tuple(ids), (1.0,) * 4))
    batch = collate(made)._padded()
    end, size = batch.end, len(batch.end)
    assert size % 128 == 0
    assert batch.input_ids.shape == batch.position_ids.shape == (1, size)
    got = attention.block_mask(end)

    def sees(_b, _h, q, k):
        return (k <= q) & (q < end[k])

    wanted = create_block_mask(sees, None, None, size, size, device="cpu")
    assert torch.equal(got.to_dense(), wanted.to_dense())
    full = torch.zeros(size // 128, size // 128, dtype=torch.bool)
    for query, (count, order) in enumerate(
        zip(got.full_kv_num_blocks[0, 0], got.full_kv_indices[0, 0])
    ):
        full[query, order[:count].long()] = True
    assert full.any()
    pairs = attention.visible(end).view(size // 128, 128, size // 128, 128)
    assert torch.equal(full, pairs.all(dim=3).all(dim=1))
