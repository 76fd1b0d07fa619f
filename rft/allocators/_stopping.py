"""When to stop drawing a prompt: optimal stopping by dynamic programming.

One more distinct right answer is worth 1; a draw costs its tokens over the price, so that the price
is the most (in average draws) that such an answer may cost. After n draws with c right ones in d
ways, a prompt is worth (Bellman's equation; DeGroot 1970, chapters 12 and 13)

    V(n, c, d) = max(0, -cost(n, c) / price
                        + q [h (1 + V(n+1, c+1, d+1)) + (1-h) V(n+1, c+1, d)]
                        + (1-q) V(n+1, c, d))

with q the probability that the next draw is right given c of n, and h that a right one is a new way
given c and d; V is 0 at the target and at the limit. Draw again where V > 0. Prompts share nothing
but the price, so with beliefs that are true this has the highest expected number of answers among
all rules that cost as many tokens (the price is the Lagrange multiplier of the tokens).

What is decided on is what has been judged, while further draws are under way. The same recursion
gives the probability that a prompt will still want its k-th further draw, so draws can be sent
ahead of the verdicts as long as they will almost certainly be wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rft.allocators._beliefs import Beliefs, Floats, Ints

SURE = (0.95, 0.8, 0.6, 0.4, 0.2)
"""Probabilities of being wanted that a draw ahead of the verdicts is classed by."""
AHEAD = 48
"""Most draws of a prompt that are under way at a time, beside its first ones."""
_RARE = 1e-4


@dataclass(frozen=True)
class Plan:
    """For every state, how many further draws can be under way."""

    depth: bytes
    """At ((n (most+1) + c) target + d) len(SURE) + i: so many draws after the n-th are wanted with
    a probability of at least SURE[i] each. 0: stop."""
    horizon: int
    most: int
    """Right draws without the target after which it stops."""


def plan(
    beliefs: Beliefs, price: float, factor: float, target: int, first: int, horizon: int
) -> Plan:
    """factor: the prompt's tokens as a multiple of an average one's. first: draws that are made
    whatever the verdicts. horizon: most draws."""
    most = _most(beliefs, price / factor, horizon)
    go_N = _stops(beliefs, price, factor, target, first, horizon, most)
    h = beliefs.new[: most + 1]
    # Where a prompt can get to by this plan; elsewhere one draw at a time is enough.
    last = _last(beliefs, go_N, h)
    depth = np.repeat(go_N[..., None], len(SURE), axis=-1).astype(np.uint8)
    ahead = min(max(AHEAD, first), 255, horizon)
    reach = np.zeros((most + 2, target + 1, ahead), dtype=np.float32)
    for n in range(last, -1, -1):
        go = go_N[n]
        q = beliefs.right[n, : most + 1, None]
        before = np.zeros_like(reach)
        before[:-1, :-1, 0] = go
        before[:-1, :-1, 1:] = (
            (go * q * h)[:, :, None] * reach[1:, 1:, :-1]
            + (go * q * (1 - h))[:, :, None] * reach[1:, :-1, :-1]
            + (go * (1 - q))[:, :, None] * reach[:-1, :-1, :-1]
        )
        reach = before
        for i, level in enumerate(SURE):
            depth[n, :, :, i] = (reach[:-1, :-1] >= level - 1e-6).sum(axis=-1)
    return Plan(depth.tobytes(), horizon, most)


def spend(
    beliefs: Beliefs,
    prices_K: Floats,
    target: int,
    first: int,
    horizon: int,
    states: Sequence[Sequence[Ints]],
) -> Floats:
    """Tokens that prompts of average length are still expected to take, at several prices at once.

    states: groups of prompts, each as n, c, d and how many there are. Returns (groups, K).
    """
    most = _most(beliefs, float(prices_K.max()), horizon)
    groups = []
    for n, c, d, times in states:
        open_ = (d < target) & (c <= most) & (n < horizon)
        order = np.flatnonzero(open_)[np.argsort(n[open_], kind="stable")]
        begins = np.searchsorted(n[order], np.arange(horizon + 1))
        groups.append((c[order], d[order], times[order], begins))
    h = beliefs.new[: most + 1]
    value = np.zeros((len(prices_K), most + 2, target + 1))
    further = np.zeros_like(value)
    total_GK = np.zeros((len(states), len(prices_K)))
    for at in range(horizon - 1, -1, -1):
        q = beliefs.right[at, : most + 1, None]
        new, old, no = q * h, q * (1 - h), 1 - q
        cost = _cost(beliefs, q, 1.0)
        worth = new * (1 + value[:, 1:, 1:]) + old * value[:, 1:, :-1] + no * value[:, :-1, :-1]
        worth -= cost / prices_K[:, None, None]
        go = worth > 1e-9 if at >= first else np.ones(worth.shape, dtype=bool)
        value[:, :-1, :-1] = np.where(go, worth, 0.0)
        more = (
            cost + new * further[:, 1:, 1:] + old * further[:, 1:, :-1] + no * further[:, :-1, :-1]
        )
        further[:, :-1, :-1] = np.where(go, more, 0.0)
        for i, (c, d, times, begins) in enumerate(groups):
            here = slice(begins[at], begins[at + 1])
            if here.start < here.stop:
                total_GK[i] += further[:, c[here], d[here]] @ times[here]
    return total_GK * beliefs.unit


def _cost(beliefs: Beliefs, q: Floats, factor: float) -> Floats:
    """Average draws that the next one costs."""
    return factor * (q * beliefs.right_cost + (1 - q) * beliefs.wrong_cost)


def _stops(
    beliefs: Beliefs, price: float, factor: float, target: int, first: int, horizon: int, most: int
) -> NDArray[np.bool_]:
    """Where to draw again, by n, c and d: (horizon+1, most+1, target)."""
    go_N = np.zeros((horizon + 1, most + 1, target), dtype=bool)
    value = np.zeros((most + 2, target + 1))
    h = beliefs.new[: most + 1]
    for n in range(horizon - 1, -1, -1):
        q = beliefs.right[n, : most + 1, None]
        worth = (
            q * (h * (1 + value[1:, 1:]) + (1 - h) * value[1:, :-1])
            + (1 - q) * value[:-1, :-1]
            - _cost(beliefs, q, factor) / price
        )
        go_N[n] = worth > 1e-9 if n >= first else True
        value[:-1, :-1] = np.where(go_N[n], worth, 0.0)
    return go_N


def _last(beliefs: Beliefs, go_N: NDArray[np.bool_], h: Floats) -> int:
    """The last n that a prompt is likely to be drawn at."""
    most, target = go_N.shape[1] - 1, go_N.shape[2]
    mass = np.zeros((most + 2, target + 1))
    mass[0, 0] = 1.0
    for n in range(len(go_N)):
        q = beliefs.right[n, : most + 1, None]
        on = mass[:-1, :-1] * go_N[n]
        if on.sum() < _RARE:
            return n
        mass = np.zeros_like(mass)
        mass[:-1, :-1] += on * (1 - q)
        mass[1:, :-1] += on * q * (1 - h)
        mass[1:, 1:] += on * q * h
    return len(go_N) - 1


def _most(beliefs: Beliefs, price: float, horizon: int) -> int:
    """Right draws after which no state without the target is worth a draw, or likely at all."""
    new = beliefs.new
    rows = min(len(new) - 1, horizon)
    worth = np.max(new[: rows + 1], axis=1) * price >= beliefs.right_cost
    ways = np.zeros(new.shape[1] + 1)
    ways[0] = 1.0
    for c in range(rows + 1):
        if not worth[c:].any() or ways[:-1].sum() < _RARE:
            return max(c, 1)
        up = ways[:-1] * new[c]
        ways[:-1] -= up
        ways[1:] += up
    return max(rows, 1)
