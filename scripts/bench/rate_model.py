"""Pools whose truth is known, and an engine that is a rate: what `adaptive.py` measures with.

What a sample would be is settled before any rule runs, so all rules see the same pool.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rft import rows
from rft.tallies import KEYS, Board
from rft.types import Candidate, Prompt, ScoreRow, Tally, Verdict

TARGET = 4
DEEP = 1024
"""Samples of each prompt that a pool holds."""
DELAY = 60
"""Ticks from a sample's end to its verdict: about half an answer."""


@dataclass(frozen=True)
class Mix:
    """A pool of problems for one model."""

    prompts: int
    shape: tuple[float, float]
    """Beta(a, b) of the rates."""
    published: tuple[tuple[int, float], ...]
    """pass@k that the shape is fitted to."""
    source: str
    ways: tuple[float, float, float] | None
    """Ways to a right answer: the median and the log-spread over prompts of a Pitman-Yor process's
    strength, and its discount. The data's own solution is its first draw and counts as no new way.
    None: every right answer is a way of its own."""
    tokens: tuple[int, int, int, float]
    """Mean of right answers, of wrong ones, the limit, the share of wrong ones that run into it."""
    prices: tuple[float, ...]
    """Such that about as much is covered as by a uniform n of 30 and of 100."""
    slots: int = 256
    """Sequences that the engine has room for."""


# Single-attempt rates: GSM8K and MATH of LLaMA-2-7B, Li et al. 2024 (arXiv 2403.04706, abstract).
# MATH of Llama-3-8B-Instruct: pass@1 from its model card, pass@100 and pass@10,000 from Brown et
# al. 2024 (arXiv 2407.21787). LLaMA-7B after SFT on GSM8K: Yuan et al. 2023 (arXiv 2308.01825),
# with the left tail of LLaMA-2-7B. SmolLM2-135M on SVAMP was measured for this project.
GSM8K = ((1, 0.495), (256, 0.977))
MATH_2 = ((1, 0.079), (256, 0.72))
MATH_3 = ((1, 0.30), (100, 0.829), (10_000, 0.9844))
SVAMP = ((1, 0.103), (4, 0.197))
PATHS = ((1, 1.17), (3, 1.44), (6, 1.74), (12, 2.20), (25, 2.93), (50, 3.94), (100, 5.25))
"""Distinct reasoning paths of a GSM8K question among k samples, its own solution included, LLaMA-7B
(arXiv 2308.01825)."""


MEASURED = (0.02, 1.0, 0.45)
"""Fitted to `PATHS` with LLaMA-7B's rates: the low end, every second right answer repeats a way."""
SOME = (8.0, 1.0, 0.0)
"""Assumed, between the two ends: of five right answers three or four differ."""

MIXES = {
    "gsm8k": Mix(
        7473, (0.592, 0.604), GSM8K, "GSM8K, LLaMA-2-7B", SOME, (110, 150, 512, 0.05), (22, 66)
    ),
    "math": Mix(
        7500,
        (0.427, 0.997),
        MATH_3,
        "MATH, Llama-3-8B-Instruct",
        SOME,
        (230, 380, 1024, 0.08),
        (26, 80),
    ),
    "math-hard": Mix(
        7500, (0.287, 3.34), MATH_2, "MATH, LLaMA-2-7B", SOME, (200, 320, 1024, 0.08), (33, 100)
    ),
    "svamp": Mix(
        700,
        (0.098, 0.852),
        SVAMP,
        "SVAMP, SmolLM2-135M after 100 solutions",
        SOME,
        (30, 45, 128, 0.2),
        (42, 140),
        slots=64,
    ),
    "gsm8k-paths": Mix(
        7473,
        (0.592, 1.057),
        ((1, 0.359),),
        "GSM8K, LLaMA-7B after SFT; different by their equations",
        MEASURED,
        (110, 150, 512, 0.05),
        (34, 100),
    ),
    "gsm8k-all": Mix(
        7473,
        (0.592, 0.604),
        GSM8K,
        "as gsm8k; every right answer counts as different",
        None,
        (110, 150, 512, 0.05),
        (18, 52),
    ),
    "math-all": Mix(
        7500,
        (0.427, 0.997),
        MATH_3,
        "as math; every right answer counts as different",
        None,
        (230, 380, 1024, 0.08),
        (18, 52),
    ),
}


class World:
    """What every sample of a pool would be, by prompt and index: (P, N)."""

    def __init__(self, right: Any, new: Any, tokens: Any, known: Any = None):
        self.right, self.new, self.tokens = right, new, tokens
        self.known = np.ones(len(right), dtype=bool) if known is None else known
        """Whether a prompt has a worked solution, whose way is no new one: (P,)."""
        zero = np.zeros((len(right), 1), dtype=np.int64)
        self.c = np.hstack([zero, right.cumsum(axis=1)]).astype(np.int16)
        """Right among the first n: (P, N+1)."""
        self.d = np.hstack([zero, new.cumsum(axis=1)]).astype(np.int16)
        """Ways among them, the data's own solution's aside."""
        self.t = np.hstack([zero, tokens.cumsum(axis=1)])
        """Their tokens."""

    @property
    def deep(self) -> int:
        """Samples that there are of each prompt."""
        return self.right.shape[1]

    def outcome(self, n_P: NDArray[Any]) -> tuple[float, int]:
        """Coverage and tokens if prompt i gets n_P[i] samples."""
        rows = np.arange(len(n_P))
        return float(np.minimum(self.d[rows, n_P], TARGET).mean()), int(self.t[rows, n_P].sum())


def make(mix: Mix, seed: int, prompts: int | None = None, deep: int = DEEP) -> World:
    rng = np.random.default_rng([seed, 5])
    count = prompts or mix.prompts
    rates_P = rng.beta(*mix.shape, count)
    right_PN = rng.random((count, deep), dtype=np.float32) < rates_P[:, None]
    new_PN = right_PN.copy()
    if mix.ways:
        median, spread, discount = mix.ways
        strength_P = median * np.exp(spread * rng.standard_normal(count))
        c, d = np.ones(count), np.ones(count)
        for i in range(deep):
            chance = (strength_P + discount * d) / (strength_P + c)
            new_PN[:, i] &= rng.random(count) < chance
            c += right_PN[:, i]
            d += new_PN[:, i]
    mean_right, mean_wrong, limit, loops = mix.tokens
    factor_P = np.exp(0.3 * rng.standard_normal(count))[:, None]
    tokens_PN = np.exp(0.35 * rng.standard_normal((count, deep), dtype=np.float32) - 0.06)
    tokens_PN *= np.where(right_PN, mean_right, mean_wrong) * factor_P
    tokens_PN[~right_PN & (rng.random((count, deep), dtype=np.float32) < loops)] = limit
    return World(right_PN, new_PN, np.clip(tokens_PN, 4, limit).astype(np.int16))


def recorded(folder: Path, distinct: str = "equations") -> World:
    """The pool of a run that drew uniformly: a seed's folder of an arm, with 1_prompts, 2_sample and
    3_score."""
    prompts = {prompt.id: prompt for prompt in rows.read(folder / "1_prompts" / "train", Prompt)}
    verdicts = {row.id: row.verdict for row in rows.read(folder / "3_score", ScoreRow)}
    drawn: dict[str, list[Candidate]] = {}
    for row in rows.read(folder / "2_sample", Candidate):
        drawn.setdefault(row.prompt_id, []).append(row)
    deep = min(map(len, drawn.values()))
    right = np.zeros((len(drawn), deep), dtype=bool)
    new, tokens = np.zeros_like(right), np.zeros(right.shape, dtype=np.int16)
    known = np.array([prompts[id].solution is not None for id in drawn])
    for place, (prompt_id, candidates) in enumerate(drawn.items()):
        solution = prompts[prompt_id].solution
        seen = set() if solution is None else {KEYS[distinct](solution)}
        for row in sorted(candidates, key=lambda row: row.index)[:deep]:
            tokens[place, row.index] = len(row.token_ids)
            if verdicts[row.id] is Verdict.CORRECT:
                way = KEYS[distinct](row.text)
                right[place, row.index] = True
                new[place, row.index] = way not in seen
                seen.add(way)
    return World(right, new, tokens, known)


@dataclass(frozen=True)
class Run:
    coverage: float
    tokens: int
    draws: int
    ticks: float
    occupancy: float


def drive(
    world: World, allocator: Callable[..., Iterator[Tally | None]], limit: int, slots: int
) -> Run:
    """Runs an allocator on an engine of so many slots with continuous batching."""
    prompts = len(world.right)
    board = Board(map(str, range(prompts)), limit)
    right, new, tokens = world.right, world.new, world.tokens
    # A way that is not new is the data's own or the first, as good as any other that is there.
    old = np.where(world.known, -1, new.argmax(axis=1)).tolist()
    for place in np.flatnonzero(world.known):
        board.know(str(place), -1)
    choices = allocator(board)
    running: list[tuple[float, int, int]] = []
    verdicts: deque[tuple[float, int, int]] = deque()
    busy: list[tuple[float, int]] = [(0.0, 0)]
    now, ended, draws = 0.0, False, 0
    while True:
        while verdicts and verdicts[0][0] <= now:
            _, place, index = verdicts.popleft()
            way = index if new[place, index] else old[place]
            board.judge(
                str(place), index, int(tokens[place, index]), way if right[place, index] else None
            )
        while not ended and len(running) < slots:
            tally = next(choices, False)
            if tally is False:
                ended = True
                break
            if tally is None:
                assert running or verdicts, "it waits for nothing"
                break
            index = board.take(tally)
            place = int(tally.prompt_id)
            draws += 1
            heapq.heappush(running, (now + float(tokens[place, index]), place, index))
        if busy[-1][1] != len(running):
            busy.append((now, len(running)))
        if running and not (verdicts and len(running) < slots and verdicts[0][0] < running[0][0]):
            now, place, index = heapq.heappop(running)
            board.tokens += int(tokens[place, index])
            verdicts.append((now + DELAY, place, index))
        elif verdicts:
            now = max(now, verdicts[0][0])
        else:
            break
    n_P = np.array([tally.drawn for tally in board])
    coverage, spent = world.outcome(n_P)
    assert spent == board.tokens and draws == n_P.sum()
    finished = busy[-1][0] if busy[-1][1] == 0 else now
    return Run(coverage, spent, draws, finished, _occupancy(busy, 0.98 * finished, slots))


def _occupancy(busy: list[tuple[float, int]], until: float, slots: int) -> float:
    used = 0.0
    for (at, count), (then, _) in zip(busy, [*busy[1:], (math.inf, 0)]):
        used += count * max(0.0, min(then, until) - at)
    return used / (slots * until)
