"""Allocators against pools whose truth is known, on an engine that finishes short samples first."""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft import stats
from rft.allocators.adaptive import adaptive
from rft.allocators.budget import budget
from rft.allocators.prop2diff import prop2diff
from rft.allocators.uniform import uniform
from rft.tallies import Board
from rft.types import RftError, Tally

Make = Callable[[Board], Iterator[Tally | None]]


@dataclass
class Pool:
    """Prompts with a rate each. Sample i of a prompt is the same whenever it is drawn."""

    rates: list[float]
    seed: int = 0
    ways: int = 1000
    """Right answers are one of so many ways, all as likely."""
    right_tokens: int = 20
    wrong_tokens: int = 60
    made: dict[int, list[tuple[int, int | None]]] = field(default_factory=dict)

    def sample(self, place: int, index: int) -> tuple[int, int | None]:
        """Tokens, and the way of a right answer."""
        if place not in self.made:
            dice = np.random.default_rng([self.seed, place])
            right = dice.random(400) < self.rates[place]
            mean = np.where(right, self.right_tokens, self.wrong_tokens)
            tokens = (1 + dice.random(400) * 2 * mean).astype(int).tolist()
            ways = dice.integers(self.ways, size=400).tolist()
            self.made[place] = [(t, w if r else None) for t, w, r in zip(tokens, ways, right)]
        return self.made[place][index]


def run(
    pool: Pool, make: Make, limit: int, slots: int = 8, delay: int = 5, stop_after: float = math.inf
) -> tuple[Board, list[tuple[int, int]]]:
    """Draws with continuous batching; the board at the end, and (prompt, index) in order of
    drawing.

    stop_after: samples after which the run is cut off, as if killed.
    """
    board = Board((str(i) for i in range(len(pool.rates))), limit)
    return board, proceed(board, pool, make, slots, delay, stop_after)


def proceed(
    board: Board,
    pool: Pool,
    make: Make,
    slots: int = 8,
    delay: int = 5,
    stop_after: float = math.inf,
) -> list[tuple[int, int]]:
    choices = make(board)
    running: list[tuple[int, int, int]] = []
    unjudged: list[tuple[int, int, int]] = []
    order: list[tuple[int, int]] = []
    now, ended = 0, False
    while len(order) < stop_after:
        while unjudged and unjudged[0][0] <= now:
            _, place, index = heapq.heappop(unjudged)
            board.judge(str(place), index, *pool.sample(place, index))
        while not ended and len(running) < slots:
            tally = next(choices, "ended")
            if tally == "ended":
                ended = True
            elif tally is None:
                assert running or unjudged, "it waits for nothing"
                break
            else:
                assert isinstance(tally, Tally) and tally.drawn < tally.limit
                index, place = board.take(tally), int(tally.prompt_id)
                order.append((place, index))
                heapq.heappush(running, (now + pool.sample(place, index)[0], place, index))
        if running:
            now, place, index = heapq.heappop(running)
            board.tokens += pool.sample(place, index)[0]
            heapq.heappush(unjudged, (now + delay, place, index))
        elif unjudged:
            now = unjudged[0][0]
        else:
            break
    return order


def drawn(board: Board) -> list[int]:
    return [tally.drawn for tally in board]


def coverage(board: Board, target: int = 4) -> float:
    return sum(min(tally.distinct, target) for tally in board) / len(board)


def beta(a: float, b: float, count: int, seed: int = 1) -> list[float]:
    return np.random.default_rng(seed).beta(a, b, count).tolist()


RULES: dict[str, Make] = {
    "uniform": uniform,
    "adaptive": adaptive,
    "cheap": partial(adaptive, target=2, price=3, first=1),
    "dear": partial(adaptive, target=3, price=400, first=6),
    "budget": partial(budget, tokens=4000),
    "prop2diff": prop2diff,
    "quota": partial(prop2diff, target=3, first=0),
    "distinct quota": partial(prop2diff, target=3, first=2, count="distinct"),
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(RULES)),
    rates=st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]), max_size=12),
    limit=st.integers(1, 30),
    slots=st.sampled_from([1, 3, 16]),
    delay=st.sampled_from([0, 5, 300]),
    stop_after=st.integers(0, 120),
    seed=st.integers(0, 99),
)
def test_every_rule_ends_and_resumes(
    name: str,
    rates: list[float],
    limit: int,
    slots: int,
    delay: int,
    stop_after: int,
    seed: int,
) -> None:
    """It waits only while something is under way, keeps to limits, goes on where it was cut off."""
    pool = Pool(rates, seed, ways=4)
    _, before = run(pool, RULES[name], limit, slots, delay, stop_after)
    again = Board((str(i) for i in range(len(rates))), limit)
    # What had finished is on disk; what was under way is lost.
    kept = [(place, index) for place, index in before if random.Random(seed).random() < 0.9]
    for place, index in kept:
        assert again.note(str(place), index)
        again.tokens += pool.sample(place, index)[0]
        again.judge(str(place), index, *pool.sample(place, index))
    after = proceed(again, pool, RULES[name], slots, delay)
    assert not set(kept) & set(after)
    assert len(set(after)) == len(after)
    for tally in again:
        assert tally.judged == tally.drawn <= limit
    if name == "uniform":
        assert drawn(again) == [limit] * len(rates)
    if name in ("adaptive", "dear"):
        first = 4 if name == "adaptive" else 6
        assert min(drawn(again), default=first) >= min(first, limit)


def test_uniform_draws_siblings_together() -> None:
    board, order = run(Pool([0.5] * 3), uniform, 4)
    assert order == [(p, i) for p in range(3) for i in range(4)]
    assert coverage(board) > 0


def test_adaptive_stops_at_the_target_and_gives_up() -> None:
    easy, hopeless, hard = [0.9] * 40, [0.0] * 40, [0.15] * 40
    board, _ = run(Pool(easy + hopeless + hard), adaptive, 400)
    n = drawn(board)
    assert all(tally.distinct >= 4 for tally in list(board)[:40])
    # At least 4 and one in nine is wrong; what was under way comes on top.
    assert np.mean(n[:40]) < 7
    assert max(n[40:80]) < 120
    assert np.mean([t.distinct >= 4 for t in list(board)[80:]]) > 0.6
    assert np.mean(n[80:]) > np.mean(n[40:80])


def test_a_higher_price_buys_more() -> None:
    pool = Pool(beta(0.4, 1.0, 150))
    found = [run(pool, partial(adaptive, price=price), 400)[0] for price in (4, 16, 64)]
    covers, spent = [coverage(b) for b in found], [b.tokens for b in found]
    assert covers == sorted(covers) and spent == sorted(spent)
    assert covers[0] + 0.2 < covers[2]


@pytest.mark.parametrize(("ways", "share"), [(3, 0.6), (1000, 0.45)])
def test_adaptive_takes_fewer_tokens_for_the_same_coverage(ways: int, share: float) -> None:
    """Held against uniform at the n that covers as much, between whole numbers on a line."""
    pool = Pool(beta(0.6, 0.6, 300), ways=ways)
    target = 3
    board, _ = run(pool, partial(adaptive, target=target, price=40), 300, slots=32)
    covers, tokens = [0.0], [0.0]
    found: list[set[int]] = [set() for _ in pool.rates]
    for index in range(200):
        spent = 0
        for place, ways_of in enumerate(found):
            took, way = pool.sample(place, index)
            spent += took
            if way is not None:
                ways_of.add(way)
        covers.append(float(np.mean([min(len(x), target) for x in found])))
        tokens.append(tokens[-1] + spent)
    assert covers[-1] > coverage(board, target)
    assert board.tokens < share * np.interp(coverage(board, target), covers, tokens)


def test_certain_draws_come_in_the_order_of_the_data() -> None:
    """Each prompt's first draws in a row, so that their prefix is shared."""
    _, order = run(Pool(beta(0.5, 1.0, 60)), partial(adaptive, first=4), 100, slots=8)
    first_seen = list(dict.fromkeys(place for place, _ in order))
    assert first_seen == list(range(60))
    for place in range(60):
        at = order.index((place, 0))
        assert order[at : at + 4] == [(place, i) for i in range(4)]


def test_little_is_drawn_ahead_of_the_verdicts_for_nothing() -> None:
    """With verdicts that come late, few more draws than with verdicts at once."""
    pool = Pool(beta(0.5, 0.8, 400))
    late, _ = run(pool, adaptive, 200, slots=48, delay=60)
    at_once, _ = run(pool, adaptive, 200, slots=1, delay=0)
    assert coverage(late) == pytest.approx(coverage(at_once), abs=0.05)
    assert late.tokens < 1.1 * at_once.tokens


@pytest.mark.parametrize("tokens", [500, 20_000, 60_000])
def test_budget_is_spent_and_kept(tokens: int) -> None:
    slots = 16
    pool = Pool(beta(0.4, 1.0, 200))
    board, order = run(pool, partial(budget, tokens=tokens), 400, slots=slots)
    longest = 2 * pool.wrong_tokens
    assert tokens - longest <= board.tokens <= tokens + slots * longest
    if tokens == 20_000:
        # All have had their first draws before any has more.
        counts: Counter[int] = Counter()
        for place, _ in order:
            counts[place] += 1
            assert counts[place] <= 4 or len(counts) == 200


def test_budget_finds_as_much_as_the_price_that_spends_it() -> None:
    pool = Pool(beta(0.4, 1.0, 400))
    priced, _ = run(pool, partial(adaptive, price=24), 400, slots=16)
    given_, _ = run(pool, partial(budget, tokens=priced.tokens), 400, slots=16)
    assert given_.tokens <= 1.02 * priced.tokens
    assert coverage(given_) > coverage(priced) - 0.06


def test_budget_ends_when_nothing_is_left_to_find() -> None:
    board, _ = run(Pool([1.0] * 20), partial(budget, tokens=10**6), 50)
    assert all(tally.distinct >= 4 for tally in board)
    assert max(drawn(board)) <= 12


def test_quota_of_dart() -> None:
    rates = [1.0] * 20 + [0.5] * 20 + [0.0] * 20
    board, _ = run(Pool(rates), partial(prop2diff, target=6, first=0), 40, slots=4)
    n, right = drawn(board), [tally.correct for tally in board]
    assert min(right[:40]) >= 6 and n[:20] == [6] * 20 and n[40:] == [40] * 20

    board, _ = run(Pool(rates), partial(prop2diff, target=16, first=8), 80, slots=4)
    for tally in list(board)[:40]:
        wrong_share = (tally.judged - tally.correct) / tally.judged
        assert tally.correct >= max(1, round(16 * wrong_share)) - 1
    n = drawn(board)
    assert n[:20] == [8] * 20 and n[40:] == [80] * 20
    assert np.mean(n[20:40]) > 10


def test_distinct_quota_counts_ways() -> None:
    board, _ = run(
        Pool([0.8] * 10, ways=3), partial(prop2diff, target=3, first=0, count="distinct"), 60
    )
    assert all(tally.distinct == 3 for tally in board)
    assert np.mean([tally.correct for tally in board]) > 4


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (partial(adaptive, target=0), "target"),
        (partial(adaptive, target=2.5), "target"),
        (partial(adaptive, price=0), "price"),
        (partial(adaptive, price="dear"), "price"),
        (partial(adaptive, first=0), "first"),
        (partial(budget, tokens=0), "tokens"),
        (partial(budget, tokens="all"), "tokens"),
        (partial(prop2diff, first=-1), "first"),
        (partial(prop2diff, count="wrong"), "count"),
    ],
)
def test_bad_arguments_are_named_at_once(make: Any, word: str) -> None:
    with pytest.raises(RftError, match=f"sample.allocate.args.{word}: .* is not|can't"):
        make(Board(["a"], 4))


def test_long_answers_are_dearer() -> None:
    """Of prompts that are equally hard those with long answers are given up earlier."""
    rates = [0.04] * 200

    class Uneven(Pool):
        def sample(self, place: int, index: int) -> tuple[int, int | None]:
            tokens, way = super().sample(place, index)
            return tokens * (6 if place % 2 else 1), way

    board, _ = run(Uneven(rates, right_tokens=60), partial(adaptive, price=30), 400, slots=8)
    n = drawn(board)
    assert np.mean(n[1::2]) < 0.8 * np.mean(n[::2])


def test_pass_at_k_of_adaptive_pools() -> None:
    """Unbiased from the first indices; the usual estimates are not, whichever samples they take."""
    first, k = 2, 2
    ours, by_share, by_all, by_finish, truth = [], [], [], [], []
    for seed in range(40):
        rates = beta(0.5, 0.9, 60, seed)
        pool = Pool(rates, seed, right_tokens=10, wrong_tokens=60)
        board, _ = run(pool, partial(adaptive, target=1, price=15, first=first), 100, slots=6)
        hits = [
            [pool.sample(place, i)[1] is not None for i in range(tally.drawn)]
            for place, tally in enumerate(board)
        ]
        told = stats.first_pass_at_k(hits, first, [1, k, first + 1])
        one, both = told[1], told[k]
        assert one is not None and both is not None and told[first + 1] is None
        ours.append((one.value, both.value))
        by_share.append(np.mean([np.mean(row) for row in hits]))
        n, c = [len(row) for row in hits], [sum(row) for row in hits]
        by_all.append(stats.pass_at_k(n, c, k).mean())
        # The first to finish of what is under way at once: the short ones.
        soon = []
        for place, row in enumerate(hits):
            tokens = [pool.sample(place, i)[0] for i in range(len(row))]
            soon.append(np.mean([row[i] for i in np.argsort(tokens, kind="stable")[:first]]))
        by_finish.append(np.mean(soon))
        truth.append((np.mean(rates), np.mean(1 - (1 - np.array(rates)) ** k)))

    def off(estimates: Any, which: int) -> tuple[float, float]:
        """Mean error, and its standard error."""
        errors = np.asarray(estimates) - np.array(truth)[:, which]
        return float(errors.mean()), float(errors.std(ddof=1) / math.sqrt(len(errors)))

    for which in (0, 1):
        error, spread = off([pair[which] for pair in ours], which)
        assert abs(error) < 3 * spread
        assert spread < 0.015
    for estimates, which in ((by_share, 0), (by_all, 1), (by_finish, 0)):
        error, spread = off(estimates, which)
        assert abs(error) > 4 * spread, (error, spread)


def test_pass_at_k_where_some_have_fewer_samples() -> None:
    told = stats.first_pass_at_k([[True, False, False], [False, True]], 3, [1, 2, 3])
    assert told[1] is not None and told[1].value == pytest.approx(0.5)
    assert told[2] is not None and told[2].value == pytest.approx(1.0)
    assert told[3] is None
    assert stats.first_pass_at_k([], 4, [1]) == {1: None}
