"""The account of a pool against a plain one that keeps everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft.tallies import KEYS, Board


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 9)), max_size=20),
    st.randoms(use_true_random=False),
)
def test_counts_follow_indices_whatever_order_verdicts_come_in(told, chance) -> None:
    board = Board(["p"], limit=len(told))
    tally = board["p"]
    for _ in told:
        board.take(tally)
    order = list(range(len(told)))
    chance.shuffle(order)
    here: set[int] = set()
    for index in order:
        correct, way, tokens = told[index]
        board.judge("p", index, tokens, way if correct else None)
        here.add(index)
        prefix = next(i for i in range(len(told) + 1) if i not in here)
        known = told[:prefix]
        assert tally.judged == prefix
        assert tally.correct == sum(c for c, _, _ in known)
        assert tally.distinct == len({w for c, w, _ in known if c})
        assert tally.tokens == sum(t for _, _, t in known)
        assert list(board.changed()) == ([tally] if index < prefix else [])
    assert board.changed() == []


def test_samples_that_exist_leave_the_others_to_be_drawn_lowest_first() -> None:
    board = Board(["a", "b"], limit=6)
    assert board.note("a", 1) and board.note("a", 3)
    assert not board.note("a", 3) and not board.note("a", 6) and not board.note("c", 0)
    assert (board["a"].drawn, board.drawn, board.limit) == (2, 2, 12)
    assert [board.take(board["a"]) for _ in range(4)] == [0, 2, 4, 5]
    with pytest.raises(ValueError, match="all 6 samples of prompt a are drawn"):
        board.take(board["a"])
    assert board.lower("b", 2) == 4 and board.lower("b", 9) == 0 and board.limit == 8


def test_way_that_is_trained_on_anyway_is_not_counted() -> None:
    board = Board(["p"], limit=3)
    by_equations = KEYS["equations"]
    board.know("p", by_equations("3 + 4 = 7"))
    for index, text in enumerate(("4 + 3 = 7", "14 / 2 = 7", "14 / 2 = 7 and so 7")):
        board.take(board["p"])
        board.judge("p", index, 5, by_equations(text))
    assert (board["p"].correct, board["p"].distinct) == (3, 1)


@pytest.mark.parametrize(
    "name, one, other, alike",
    [
        ("equations", "We add: 3 + 4 = 7.", "4+3=7", True),
        ("equations", "3 + 4 = 7", "3 + 4 = 7, 7 * 2 = 14", False),
        ("equations", "It is  seven", "It is seven", True),
        ("equations", "It is seven", "It is 7", False),
        ("text", "3 + 4 =  7", "3 + 4 = 7", True),
        ("text", "3 + 4 = 7", "4 + 3 = 7", False),
    ],
)
def test_what_makes_two_answers_one_way(name: str, one: str, other: str, alike: bool) -> None:
    assert (KEYS[name](one) == KEYS[name](other)) is alike


def test_gaps_below_samples_that_exist_are_owed_and_count_as_drawn() -> None:
    board = Board(["a", "b", "c"], limit=9)
    for index in (1, 4):
        board.note("a", index)
    board.note("b", 0)
    assert list(board.gaps()) == [("a", 0), ("a", 2), ("a", 3)]
    assert [t.drawn for t in board] == [5, 1, 0] and board.drawn == 6
    assert list(board.gaps()) == [] and board.take(board["a"]) == 5
