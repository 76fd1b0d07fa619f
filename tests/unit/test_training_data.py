"""The layout and the steps: what must hold for every set of rows."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft.training.attention import visible
from rft.training.data import Group, Layout, Steps, collate, deal, pack, read_groups, split
from rft.types import RftError, TrainRow


def group(name: str, prompt: int, *completions: int) -> Group:
    """Token ids are all different, so that a lost or doubled one shows."""
    fresh = itertools.count(1)
    ids = [np.array([next(fresh) for _ in range(n)], np.int32) for n in (prompt, *completions)]
    return of(name, ids[0], *ids[1:])


def of(name: str, prompt, *completions, weights=None) -> Group:
    ids = tuple(np.array(c, np.int32) for c in completions)
    return Group(name, np.array(prompt, np.int32), ids, weights or (1.0,) * len(ids))


def many(count: int, seed: int = 0) -> list[Group]:
    draw = random.Random(seed)
    return [
        group(
            f"p{i}", draw.randint(2, 30), *(draw.randint(1, 20) for _ in range(draw.randint(1, 6)))
        )
        for i in range(count)
    ]


def test_the_trees_of_two_groups():
    batch = collate([group("a", 2, 2, 1), group("b", 1, 2)])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 1, 2, 3]]
    # Positions restart at the end of the prompt for each completion.
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2]]
    # The prompt's last token predicts the first token of each of its completions.
    assert batch.predictors.tolist() == [1, 2, 1, 5, 6]
    assert batch.labels.tolist() == [3, 4, 5, 2, 3]
    assert batch.weights.tolist() == [1] * 5
    assert batch.sizes == (5, 3)
    # By hand: rows are queries, columns are keys.
    assert visible(batch.end).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]


def test_completions_that_begin_alike_share_their_beginning():
    tree = of("a", [9], [1, 2, 3], [1, 2, 4, 5], [1, 6], [1, 6], weights=(1, 2, 4, 8))
    assert tree.tokens == 7 and tree.shared == (0, 2, 1, 2)
    batch = collate([tree])
    assert batch.input_ids.tolist() == [[9, 1, 2, 3, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3, 4, 2]]
    # A fork's token predicts the next of each of its branches.
    assert batch.predictors.tolist() == [0, 1, 2, 2, 4, 1]
    assert batch.labels.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.weights.tolist() == [15, 3, 1, 2, 2, 12]
    assert visible(batch.end).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_every_completion_is_a_path_of_its_tree(completions):
    weights = tuple(2.0**i for i in range(len(completions)))
    batch = collate([of("x", [7], [1]), of("a", [8, 9], *sorted(completions), weights=weights)])
    sees, ids = visible(batch.end), batch.input_ids[0]
    found: dict[tuple[int, ...], float] = {}
    for at in batch.predictors.tolist():
        path = ids[sees[at]].tolist()
        assert batch.position_ids[0, sees[at]].tolist() == list(range(len(path)))
    for at, label, weight in zip(batch.predictors.tolist(), batch.labels.tolist(), batch.weights):
        found[(*ids[sees[at]].tolist(), label)] = float(weight)
    expected: dict[tuple[int, ...], float] = {(7, 1): 1.0}
    for completion, weight in zip(sorted(completions), weights):
        for size in range(1, len(completion) + 1):
            prefix = (8, 9, *completion[:size])
            expected[prefix] = expected.get(prefix, 0) + weight
    assert found == expected


def test_rows_are_padded_at_their_ends():
    batch = collate([group("a", 2, 2, 1), group("b", 1, 2)], Layout.ROWS)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [1, 2, 5, 0], [1, 2, 3, 0]]
    assert batch.mask is not None
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert batch.predictors.tolist() == [1, 2, 5, 8, 9]
    assert batch.labels.tolist() == [3, 4, 5, 2, 3]
    assert batch.position_ids is None and batch.end is None


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
    padded = pack(groups, limit, Layout.ROWS)
    assert sum(g.completion_tokens for b in padded for g in b) == sum(
        g.completion_tokens for g in groups
    )
    assert all(len(b) * max(g.tokens for g in b) <= limit or len(b) == 1 for b in padded)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_micro_batches_are_of_like_length_and_as_many_for_each_process(processes):
    groups = many(60)
    packed = pack(groups, 400, processes=processes)
    assert len(packed) % processes == 0
    sizes = [sum(g.tokens for g in row) for row in packed]
    longest = max(g.tokens for g in groups)
    assert max(sizes) - min(sizes) <= longest
    # No more than are needed, but for the last that fills the processes.
    assert len(packed) <= -(-sum(sizes) // 400) + processes


def test_shuffled_rows_of_one_prompt_meet_again_where_they_share_a_step():
    groups = many(30)
    steps = Steps(groups, 100, seed=0, shuffle="rows")
    whole = [g for i in range(steps.per_epoch) for g in steps[i]]
    assert sum(len(g.completions) for g in whole) == sum(len(g.completions) for g in groups)
    for i in range(steps.per_epoch):
        assert len({g.prompt_id for g in steps[i]}) == len(steps[i])
    together = Steps(groups, 10**6, seed=0, shuffle="rows")[0]
    assert sum(g.tokens for g in together) == sum(g.tokens for g in groups)


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
