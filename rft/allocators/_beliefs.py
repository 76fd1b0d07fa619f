"""What a pool's verdicts so far say of a prompt's next draw: whether it is right, whether it is a
new way, and what it costs.

*Right.* A prompt's draws are right with its own unknown probability p. How p varies over prompts is
learnt from the pool (empirical Bayes, Robbins 1956). First a Beta, by maximum marginal likelihood:
it has the power law in the left tail that success rates of language models show, and that decides
what further draws of hard prompts find (Schaeffer et al. 2025, arXiv 2502.17578). Then a few steps
of expectation-maximisation over a grid of p (Laird 1978) mend what no Beta can be, for instance a
share of unsolvable prompts; stopped early, so that where the verdicts say nothing the Beta's shape
stays.

Prompts stop being drawn when their verdicts are good, or hopeless. That does no harm here: whatever
rule chose n from the verdicts, the likelihood of p given c right of n is p^c (1-p)^(n-c) times
something without p (Berger and Wolpert 1988, The Likelihood Principle). It would if `judged`
counted samples in the order in which they finish, since right answers are shorter; it doesn't. What
remains is that a long answer under way is missing, which is a passing fault at the start of a run.

Prompts of which a way is known beforehand have rates apart: a policy was often trained on just these
solutions.

*New.* A right draw is a new way with a probability that depends on c, the right ones before it, and
d, the ways among them. A worked solution that is known counts as one of either: it is as if it had been
drawn first. Any model of species sampling gives such a table (Pitman 1996); it is learnt
as a logistic regression on log(1+c) and log(1+d), and where a cell has been seen often, its own
frequency counts more than the regression. A cell's frequency is unbiased whatever the stopping
rule.

*Tokens.* Right and wrong draws have a mean each, by least squares over what verdicts came with, and
a prompt has a factor upon these: its own tokens against the expected, shrunk to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LOGITS = np.arange(-11.5, 8.1, 0.25)
RATES_G = np.concatenate([[0.0], 1 / (1 + np.exp(-_LOGITS))])
"""The grid of p: 0, and from 1e-5 to 1 - 3e-4 in equal steps of the log odds."""
_SHAPES = np.geomspace(0.05, 8.0, 16)
_MEANS = 1 / (1 + np.exp(-np.linspace(-5, 3.5, 18)))
_UNSOLVABLE = 0.01
"""Weight of p = 0 besides the Beta's own, to begin with."""
_MENDS = 12
"""Steps of expectation-maximisation."""
_PSEUDO = 4.0
"""Prompts that the Beta counts for beside the real ones while it is mended."""
_CELL = 24.0
"""Right draws of a cell after which its own frequency counts as much as the regression."""
_RIDGE = np.array([0.5, 2.0, 2.0])
_USUAL = np.array([1.5, -1.0, 1.0])
"""Where the regression starts from: the first right draw is new in four of five cases, and every
further one less likely so unless those before were new."""


@dataclass(frozen=True)
class Beliefs:
    """What holds for every prompt of a pool that has as many known ways."""

    new: Floats
    """(C, target): probability that a right draw is a new way, by c and d, those known beforehand left
    out of both."""
    right: Floats
    """(N, C): probability that the next draw is right after c right ones of n, by n and c. Where c
    is above n it is that of c = n."""
    right_cost: float = 1.0
    """Tokens of a right draw, as a multiple of an average prompt's average draw."""
    wrong_cost: float = 1.0
    unit: float = 1.0
    """Tokens of that average draw."""


def _posterior(weights_G: Floats, rows: int, columns: int) -> Floats:
    """`Beliefs.right` for n below `rows` and c below `columns`.

    With M(c, m) = sum of weight p^c (1-p)^m, it is M(c+1, m) / M(c, m).
    """
    c, m = np.arange(columns + 1)[:, None], np.arange(rows)[:, None]
    moments_CM = (weights_G * RATES_G**c) @ ((1 - RATES_G) ** m).T
    n, c = np.arange(rows)[:, None], np.arange(columns)[None, :]
    c = np.minimum(c, n)
    below = moments_CM[c, n - c]
    # Deep down both are too small for a float, and c / n says as much.
    plain = (c + 0.5) / (n + 1)
    return np.where(below > 1e-290, moments_CM[c + 1, n - c] / np.maximum(below, 1e-290), plain)


def _likelihood(n: Ints, c: Ints) -> Floats:
    """p^c (1-p)^(n-c) over the grid, scaled so that each row's largest is 1: (N, G)."""
    with np.errstate(divide="ignore"):
        yes, no = np.log(RATES_G), np.log1p(-RATES_G)
    yes[0] = -1e9  # log 0, but 0 times it is 0
    log_NG = np.outer(c, yes) + np.outer(n - c, no)
    log_NG -= log_NG.max(axis=1, keepdims=True)
    return np.exp(log_NG)


def _beta(shape: float, mean: float) -> Floats:
    """A Beta(a, b) with a = shape and that mean, on the grid: (G,).

    In log odds its density is p^a (1-p)^b; what lies below the grid goes to p = 0.
    """
    other = shape * (1 - mean) / mean
    density = np.exp(shape * np.log(RATES_G[1:]) + other * np.log1p(-RATES_G[1:]))
    below = density[0] / shape
    weights = np.concatenate([[below], density * (_LOGITS[1] - _LOGITS[0])])
    return weights / weights.sum()


def _candidates() -> tuple[Floats, Floats]:
    """Betas to choose from, (B, G), and in logs how likely each is beforehand: (B,)."""
    weights, log_prior = [], []
    for shape in _SHAPES:
        for mean in _MEANS:
            weights.append(_beta(shape, mean))
            away = math.log(mean / (1 - mean)) + 0.7
            log_prior.append(-0.5 * math.log(shape / 0.5) ** 2 - 0.5 * (away / 1.5) ** 2)
    return np.array(weights), np.array(log_prior)


_BETAS_BG, _LOG_PRIOR_B = _candidates()


def fit_rates(n: Ints, c: Ints, times: Ints, rng: np.random.Generator | None = None) -> Floats:
    """How p is spread over prompts, on the grid: (G,).

    n, c, times: (N,), so many prompts have c right of n. rng: take one Beta by its chance, for
    simulations that must not be surer than the verdicts make them, instead of averaging over all.
    """
    like_NG = _likelihood(n, c)
    marginal_BN = np.maximum(_BETAS_BG @ like_NG.T, 1e-300)
    log_B = np.log(marginal_BN) @ times + _LOG_PRIOR_B
    # Averaged over the likely ones, so that few verdicts don't make it sure of one shape.
    chance_B = np.exp(log_B - log_B.max())
    chance_B /= chance_B.sum()
    if rng is not None:
        chance_B = np.eye(len(chance_B))[rng.choice(len(chance_B), p=chance_B)]
    start_G = chance_B @ _BETAS_BG
    start_G = (1 - _UNSOLVABLE) * start_G
    start_G[0] += _UNSOLVABLE
    weights_G = start_G
    prompts = float(times.sum())
    for _ in range(_MENDS if prompts else 0):
        joint_NG = like_NG * weights_G
        share_NG = joint_NG / np.maximum(joint_NG.sum(axis=1, keepdims=True), 1e-300)
        weights_G = (times @ share_NG + _PSEUDO * start_G) / (prompts + _PSEUDO)
    return weights_G


def fit_new(seen: Floats, new: Floats) -> Floats:
    """Probability that a right draw is a new way, by c and d, known ones in both: (C, D).

    seen, new: (C, D), right draws at c and d, and how many of them were new.
    """
    c, d = np.meshgrid(np.arange(seen.shape[0]), np.arange(seen.shape[1]), indexing="ij")
    x_C3 = np.stack([np.ones(c.shape), np.log1p(c), np.log1p(d)], axis=-1)
    there = seen > 0
    there[0, 0] = False
    x, trials, hits = x_C3[there], seen[there], new[there]
    b = _USUAL.copy()
    for _ in range(25):  # Newton's method; the ridge makes it converge
        h = 1 / (1 + np.exp(-(x @ b)))
        gradient = x.T @ (hits - trials * h) - _RIDGE * (b - _USUAL)
        curvature = (x * (trials * h * (1 - h))[:, None]).T @ x + np.diag(_RIDGE)
        step = np.linalg.solve(curvature, gradient)
        b = b + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    smooth = 1 / (1 + np.exp(-(x_C3 @ b)))
    table = (new + _CELL * smooth) / (seen + _CELL)
    table[0, 0] = 1.0  # nothing was there that it could repeat
    return table


def fit_tokens(moments: Floats, weights_G: Floats) -> tuple[float, float, float]:
    """Tokens of a right draw, of a wrong one, and of an average prompt's average draw.

    moments: (5,), sums over verdicts that came together: right^2, right x wrong, wrong^2,
    right x tokens, wrong x tokens.
    """
    rr, rw, ww, rt, wt = moments
    if rr + rw + ww == 0:
        return 1.0, 1.0, 1.0
    mean = (rt + wt) / (rr + 2 * rw + ww)
    # A few verdicts at the mean, so that the system has a solution where all were of one kind.
    left = np.array([[rr + 4, rw], [rw, ww + 4]])
    right, wrong = np.linalg.solve(left, np.array([rt + 4 * mean, wt + 4 * mean]))
    right, wrong = max(right, mean / 20, 1e-9), max(wrong, mean / 20, 1e-9)
    rate = float(weights_G @ RATES_G)
    return float(right), float(wrong), float(rate * right + (1 - rate) * wrong)


def believe(
    horizon: int,
    target: int,
    groups: Sequence[Sequence[Ints]],
    seen: Floats,
    new: Floats,
    moments: Floats,
) -> list[Beliefs]:
    """All of the above, for up to `horizon` draws, of prompts without a known way, with one, and so on.
    Nothing seen gives what is usual.

    groups: of each n, c and times as in `fit_rates`. seen, new: as in `fit_new`, (C, D) with D at
    least target plus the most known ways.
    """
    weights = [fit_rates(n, c, times) for n, c, times in groups]
    shares = [float(times.sum()) for _, _, times in groups]
    all_G = np.average(weights, axis=0, weights=shares if sum(shares) else None)
    right, wrong, unit = fit_tokens(moments, all_G)
    table = fit_new(seen, new)
    return [
        Beliefs(
            table[known:, known : known + target],
            _posterior(weights_G, horizon + 1, len(table) - known),
            right / unit,
            wrong / unit,
            unit,
        )
        for known, weights_G in enumerate(weights)
    ]
