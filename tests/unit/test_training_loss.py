"""Each loss by hand on tiny tensors, and against autograd; layouts and cuts change none of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from rft.config_train import Loss
from rft.training import head as head_module
from rft.training.data import Group, Layout, Steps, collate, pack, read_groups
from rft.training.head import head_loss
from rft.training.objective import Fit, Objective
from rft.training.surrogate import clipped
from rft.types import TrainRow
from tests.unit.test_training_model import adapted, gradients, llama, trained

LOG = math.log
NAN = math.nan


@pytest.mark.parametrize(
    "advantage, ratio, gain, pull",
    [
        # min(s A, clip(s, 0.8, 1.2) A) and its derivative by log s, by hand.
        (1, 1.0, 1.0, 1.0),
        (1, 1.1, 1.1, 1.1),
        (1, 1.5, 1.2, 0.0),
        (1, 0.5, 0.5, 0.5),
        (2, 1.5, 2.4, 0.0),
        (2, 0.25, 0.5, 0.5),
        (-1, 1.0, -1.0, -1.0),
        (-1, 0.5, -0.8, 0.0),
        (-1, 1.5, -1.5, -1.5),
        (-2, 0.9, -1.8, -1.8),
        # Beyond 3 the dual clip.
        (-1, 4.0, -3.0, 0.0),
    ],
)
def test_the_clipped_surrogate_by_hand(advantage, ratio, gain, pull):
    old = -0.7
    got = clipped(
        torch.tensor([old + LOG(ratio)]), torch.tensor([[advantage]]), torch.tensor([[old]]), 0.2
    )
    assert [float(x) for x in got] == pytest.approx([gain, pull], abs=1e-6)


def test_without_the_sampled_probability_it_is_cross_entropy():
    logp = torch.tensor([-2.0, -0.5])
    got = clipped(logp, torch.tensor([[1.0], [3.0]]), torch.full((2, 1), NAN), 0.2)
    assert got[0].tolist() == [-2.0, -1.5]
    assert got[1].tolist() == [1.0, 3.0]


def test_completions_that_share_a_token_keep_their_own_ratios_and_signs():
    """s = 1.5 with A = 1 is clipped at 1.2, s = 1.5 with A = -1 is not, s = 0.75 with A = 2 is not."""
    logp, old = -1.0, [-1 - LOG(1.5), -1 - LOG(1.5), -1 - LOG(0.75), NAN]
    gain, pull = clipped(
        torch.tensor([logp]), torch.tensor([[1.0, -1.0, 2.0, 0.0]]), torch.tensor([old]), 0.2
    )
    assert float(gain) == pytest.approx(1.2 - 1.5 + 1.5)
    assert float(pull) == pytest.approx(0 - 1.5 + 1.5)


def surrogate_by_autograd(logp, advantages, old, eps):
    """As the papers write it, term by term."""
    total = logp.new_zeros(())
    for c in range(len(logp)):
        for a, o in zip(advantages[c].tolist(), old[c].tolist()):
            if math.isnan(o):
                total = total - a * logp[c]
                continue
            s = (logp[c] - o).exp()
            gain = torch.minimum(s * a, s.clamp(1 - eps, 1 + eps) * a)
            total = total - (gain.clamp(min=3 * a) if a < 0 else gain)
    return total


@pytest.mark.parametrize("trained_head", [False, True])
def test_the_head_in_chunks_has_the_surrogates_gradient(monkeypatch, trained_head):
    monkeypatch.setattr(head_module, "CHUNK", 20 * 50)
    torch.manual_seed(0)
    hidden = torch.randn(77, 12, requires_grad=True)
    head = torch.randn(50, 12, requires_grad=trained_head)
    bias = torch.randn(50, requires_grad=True)
    labels = torch.randint(50, (77,))
    made = hidden @ head.T + bias
    logp = log_softmax(made, -1).gather(1, labels[:, None])[:, 0]
    advantages = torch.randn(77, 3)
    old = logp.detach()[:, None] + torch.randn(77, 3) * 0.5
    old[::7] = NAN
    advantages[:, 2][::2] = 0
    expected = surrogate_by_autograd(logp, advantages, old, 0.2) * 3
    leaves = [x for x in (hidden, head, bias) if x.requires_grad]
    wanted = torch.autograd.grad(expected, leaves)
    got = head_loss(hidden, head, bias, labels, torch.ones(77), advantages, old, 0.2) * 3
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)
    for a, b in zip(torch.autograd.grad(got, leaves), wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def row(name, prompt_id, ids, weight=1.0, logprobs=()) -> TrainRow:
    return TrainRow(name, prompt_id, (1, 2), tuple(ids), False, "", weight, tuple(logprobs))


ROWS = [
    row("a", "p", [3] * 2),
    row("b", "p", [4] * 6),
    row("c", "q", [5] * 4),
]
"""Prompt p has completions of 2 and 6 tokens, q one of 4. Their losses a token: 1, 2 and 4 nats."""


@pytest.mark.parametrize(
    "weigh, expected",
    [
        ("tokens", (2 * 1 + 6 * 2 + 4 * 4) / 12),
        ("completions", (1 + 2 + 4) / 3),
        ("prompts", ((1 + 2) / 2 + 4) / 2),
    ],
)
def test_what_weighs_the_same_by_hand(weigh, expected):
    groups = read_groups(ROWS, Loss(weigh=weigh))
    nats = {3: 1.0, 4: 2.0, 5: 4.0}
    total = sum(
        weight * len(ids) * nats[int(ids[0])]
        for group in groups
        for ids, weight in zip(group.completions, group.weights)
    )
    mass = sum(group.mass for group in groups)
    assert total / mass == pytest.approx(expected)
    # A token weighs 1 on average, whatever the rule.
    assert mass == pytest.approx(12)


@pytest.mark.parametrize(
    "weigh, expected",
    [
        # Weights 0.5, -1 and 2, which sizes 0.5, 1 and 2 divide.
        ("tokens", (0.5 * 2 * 1 - 6 * 2 + 2 * 4 * 4) / (0.5 * 2 + 6 + 2 * 4)),
        ("completions", (0.5 * 1 - 2 + 2 * 4) / 3.5),
        ("prompts", ((0.5 * 1 - 2) / 1.5 + 4) / 2),
    ],
)
def test_rows_weights_multiply_those(weigh, expected):
    rows = [replace(r, weight=w) for r, w in zip(ROWS, (0.5, -1.0, 2.0))]
    groups = read_groups([*rows, row("d", "q", [9], weight=0.0)], Loss(weigh=weigh))
    nats = {3: 1.0, 4: 2.0, 5: 4.0}
    total = sum(
        weight * len(ids) * nats[int(ids[0])]
        for group in groups
        for ids, weight in zip(group.completions, group.weights)
    )
    assert total / sum(group.mass for group in groups) == pytest.approx(expected)


def test_plain_weights_are_exactly_one():
    for group in read_groups(ROWS):
        assert set(group.weights) == {1.0} and group.old is None
        assert collate([group]).old is None and collate([group], Layout.ROWS).old is None


def test_a_prompts_weight_is_kept_where_its_completions_are_learnt_apart():
    groups = read_groups(ROWS, Loss(weigh="prompts"))
    apart = Steps(groups, 6, seed=0, shuffle="rows").groups
    by_prompt: dict[str, float] = {}
    for group in apart:
        by_prompt[group.prompt_id] = by_prompt.get(group.prompt_id, 0) + group.mass
    assert by_prompt == pytest.approx({"p": 6, "q": 6})


def test_the_batch_of_shared_tokens():
    groups = read_groups(
        [
            row("a", "p", [3, 4], 1.0, [-1, -2]),
            row("b", "p", [3, 5], -1.0, [-1.5]),
            row("c", "q", [6], 1.0),
        ],
        Loss(clip=0.2),
    )
    batch = collate(groups)
    assert batch.labels.tolist() == [3, 4, 5, 6]
    # The last of b is not what was sampled, and only a ratio would bound what unlearning makes of it.
    assert batch.advantages.tolist() == [[1, -1], [1, 0], [0, 0], [1, 0]]
    assert torch.equal(
        batch.old,
        torch.tensor([[-1, -1.5], [-2, NAN], [NAN, NAN], [NAN, NAN]]),
    ) or torch.allclose(
        batch.old,
        torch.tensor([[-1, -1.5], [-2, NAN], [NAN, NAN], [NAN, NAN]]),
        equal_nan=True,
    )
    alone = collate(groups, Layout.ROWS)
    assert alone.labels.tolist() == [3, 4, 3, 5, 6]
    assert alone.advantages.tolist() == [[1], [1], [-1], [0], [1]]


def sampled_groups(weigh="tokens") -> list[Group]:
    """Completions of a policy that is near the model, some of them wrong; many begin alike."""
    draw = np.random.default_rng(0)
    model, rows = llama(), []
    for p, size in enumerate([5, 12, 1, 9]):
        prompt = tuple(int(x) for x in draw.integers(0, 64, size))
        start = tuple(int(x) for x in draw.integers(0, 64, 3))
        for k in range(p + 1):
            ids = (*start[: draw.integers(4)], *(int(x) for x in draw.integers(0, 64, 5)))
            with torch.no_grad():
                made = model(torch.tensor([prompt + ids])).logits[0, size - 1 : -1]
            logp = -cross_entropy(made, torch.tensor(ids), reduction="none")
            # Shared tokens too differ a little, as they do from batch to batch.
            told = logp.numpy() + draw.normal(size=len(ids)) * 0.3
            told = told[: len(ids) - (k == 1)] if k != 2 else []
            rows.append(
                TrainRow(
                    f"{p}.{k}", f"p{p}", prompt, ids, False, "", 1 if k % 2 == 0 else -0.5,
                    tuple(float(x) for x in told),
                )
            )  # fmt: skip
    return read_groups(rows, Loss(weigh=weigh, clip=0.2))


def autograd_reference(model, groups, eps):
    total = 0.0
    for group in groups:
        for ids, weight, old in zip(group.completions, group.weights, group.old):
            both = torch.from_numpy(np.concatenate([group.prompt, ids]).astype(np.int64))
            made = model(input_ids=both[None]).logits[0, len(group.prompt) - 1 : -1]
            logp = -cross_entropy(made, both[len(group.prompt) :], reduction="none")
            a = np.where(np.isnan(old), max(weight, 0), weight)[:, None]
            total = total + surrogate_by_autograd(
                logp, torch.from_numpy(a).float(), torch.from_numpy(old)[:, None], eps
            )
    return total


@pytest.mark.parametrize("weigh", ["tokens", "prompts"])
@pytest.mark.parametrize("fused_head", [True, False])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("limit", [1000, 30, 1])
def test_clipping_is_exact_in_trees_rows_and_micro_batches(limit, layout, fused_head, weigh):
    groups = sampled_groups(weigh)
    assert any(any(group.shared) for group in groups)
    model = adapted(llama())
    expected = autograd_reference(model, groups, 0.2)
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    total = trained(model, Fit(layout, fused_head=fused_head), groups, limit, clip=0.2)
    assert total == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-4)
    for name, got in gradients(model).items():
        assert float((got - wanted[name]).norm() / wanted[name].norm()) < 1e-4, name


def test_a_look_at_held_out_rows_is_their_cross_entropy():
    groups = [right for g in sampled_groups() if (right := g.rights())]
    assert all(weight > 0 for group in groups for weight in group.weights)
    model = llama()
    loss, _ = Objective(model, Fit(Layout.ROWS), None, 0.2)(
        collate(groups, Layout.ROWS), score=True
    )
    plain = [replace(group, old=None) for group in groups]
    assert float(loss) == pytest.approx(
        float(Objective(model, Fit(Layout.ROWS), None)(collate(plain, Layout.ROWS))), rel=1e-5
    )


def test_micro_batches_share_the_divisor():
    """The parts of a step add up to its mass, however it is cut."""
    groups = sampled_groups("prompts")
    whole = sum(group.mass for group in groups)
    for layout in Layout:
        for limit in (1000, 30, 1):
            parts = pack(groups, limit, layout)
            assert sum(g.mass for part in parts for g in part) == pytest.approx(whole)
