"""The layout and the steps: what must hold for every set of rows."""

import itertools
import random

import numpy as np
import pytest
import torch

from rft.training.data import Group, Steps, collate, deal, pack, read_groups, split
from rft.types import RftError, TrainRow


def group(name: str, prompt: int, *completions: int) -> Group:
    """Token ids are all different, so that a lost or doubled one shows."""
    fresh = itertools.count(1)
    ids = [np.array([next(fresh) for _ in range(n)], np.int32) for n in (prompt, *completions)]
    return Group(name, ids[0], tuple(ids[1:]))


def many(count: int, seed: int = 0) -> list[Group]:
    draw = random.Random(seed)
    return [
        group(
            f"p{i}", draw.randint(2, 30), *(draw.randint(1, 20) for _ in range(draw.randint(1, 6)))
        )
        for i in range(count)
    ]


def test_the_layout_of_two_groups():
    batch = collate([group("a", 2, 2, 1), group("b", 1, 2)])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 1, 2, 3]]
    # Positions restart at the end of the prompt for each completion.
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2]]
    # The prompt's last token predicts the first token of each of its completions.
    assert batch.predictors.tolist() == [1, 2, 1, 5, 6]
    assert batch.labels.tolist() == [3, 4, 5, 2, 3]
    # By hand: rows are queries, columns are keys.
    assert batch.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert batch.mask().dtype is torch.bool


def test_a_split_repeats_the_prompt_and_loses_no_completion():
    whole = group("a", 10, 5, 6, 30, 2, 2)
    parts = list(split(whole, 21))
    assert [part.tokens for part in parts] == [21, 40, 14]  # 30 is too long even alone: it is alone
    assert all(part.prompt is whole.prompt for part in parts)
    again = [ids for part in parts for ids in part.completions]
    assert [ids.tolist() for ids in again] == [ids.tolist() for ids in whole.completions]
    assert list(split(whole, 1000)) == [whole]


@pytest.mark.parametrize("tokens_per_step", [40, 200, 1000, 10**6])
def test_every_epoch_holds_every_group_once_in_steps_of_about_equal_size(tokens_per_step):
    groups = many(60)
    steps = Steps(groups, tokens_per_step, seed=3)
    size = steps.tokens / steps.per_epoch
    largest = max(part.tokens for part in steps.groups)
    orders = []
    for epoch in range(3):
        held = [steps[epoch * steps.per_epoch + i] for i in range(steps.per_epoch)]
        assert all(held)
        got = [part for step in held for part in step]
        assert sorted(map(id, got)) == sorted(map(id, steps.groups))
        assert all(abs(sum(p.tokens for p in step) - size) <= largest for step in held)
        orders.append([part.prompt_id for part in got])
    assert orders[0] != orders[1] != orders[2]
    assert steps.per_epoch == 1 or size == pytest.approx(tokens_per_step, rel=0.5)


def test_steps_follow_from_seed_and_epoch_alone():
    groups = many(40)
    forward, late = Steps(groups, 100, seed=1), Steps(groups, 100, seed=1)
    number = 2 * forward.per_epoch + 1
    for i in range(number):
        forward[i]
    assert forward[number] == late[number]
    other = Steps(groups, 100, seed=2)
    assert [g.prompt_id for g in other[0]] != [g.prompt_id for g in late[0]]


@pytest.mark.parametrize("limit", [25, 60, 300])
def test_packing_loses_nothing_and_keeps_the_limit(limit):
    groups = many(30)
    packed = pack(groups, limit)
    held = [g for row in packed for g in row]
    assert sum(g.completion_tokens for g in held) == sum(g.completion_tokens for g in groups)
    for row in packed:
        assert sum(g.tokens for g in row) <= limit or len(row[0].completions) == len(row) == 1


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_dealt_rows_cover_the_step_once_and_every_process_gets_as_many(processes):
    packed = pack(many(30), 100)
    hands = [deal(packed, processes, rank) for rank in range(processes)]
    assert len({len(hand) for hand in hands}) == 1
    counted = [id(row) for hand in hands for row, weight in hand if weight == 1]
    assert sorted(counted) == sorted(map(id, packed))
    assert {weight for hand in hands for _, weight in hand} <= {0.0, 1.0}


def row(name: str, prompt_id: str = "p", prompt=(1, 2), ids=(3, 4)) -> TrainRow:
    return TrainRow(name, prompt_id, prompt, ids, False)


def test_groups_do_not_depend_on_the_order_of_rows():
    rows = [row(f"c{i}", f"p{i % 3}", ids=(i, i + 1)) for i in range(9)]
    forward, back = read_groups(rows), read_groups(reversed(rows))
    assert [g.prompt_id for g in forward] == ["p0", "p1", "p2"]
    for a, b in zip(forward, back, strict=True):
        assert [c.tolist() for c in a.completions] == [c.tolist() for c in b.completions]


def test_a_prompt_rendered_in_two_ways_is_two_groups():
    got = read_groups([row("a"), row("b", prompt=(1, 9)), row("c")])
    assert [(g.prompt.tolist(), len(g.completions)) for g in got] == [([1, 2], 2), ([1, 9], 1)]


@pytest.mark.parametrize(
    "rows, told",
    [
        ([], "no rows to train on"),
        ([row("a"), row("bad", ids=())], "training row bad: its completion has no tokens"),
        ([row("bad", prompt=())], "training row bad: its prompt has no tokens"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(rows, told):
    with pytest.raises(RftError, match=told):
        read_groups(rows)
