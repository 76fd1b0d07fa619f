"""The clipped surrogate of RAFT++ and Reinforce-Rej (Xiong et al. 2025, arXiv 2504.11343).

Of a token with advantage A, and ratio s of its probability to the one that it was sampled with:

    gain = min(s A, clip(s, 1 - eps, 1 + eps) A),   loss = -gain
    d gain / d logp = s A where s A is the smaller, 0 where it is clipped

Beyond the paper, a negative advantage's gain is at least 3 A (dual clip, Ye et al. 2020, arXiv
1912.09729): a token that has become much likelier than when it was sampled would outweigh a step.
A token without the probability that it was sampled with has its cross-entropy, gain = A logp, whose
gradient is that of s = 1.
"""

import torch

DUAL = 3.0
"""Largest ratio at which a negative advantage still counts."""


def clipped(
    logp: torch.Tensor, advantages: torch.Tensor, old: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token's gain and its derivative by the token's log-probability, (C,) each, no gradients.

    logp (C,); advantages, old (C, M): of the completions that share a token, M at most, 0 where there are
    fewer. old: log-probabilities as sampled, NaN where unknown.
    """
    now = logp.detach()[:, None].expand_as(old)
    known = ~old.isnan()
    ratio = torch.where(known, now - old, 0).exp()
    whole = ratio * advantages
    least = torch.minimum(whole, ratio.clamp(1 - eps, 1 + eps) * advantages)
    floored = (advantages < 0) & (ratio > DUAL)
    gain = torch.where(floored, DUAL * advantages, least)
    pull = torch.where(gain == whole, whole, 0)
    gain = torch.where(known, gain, now * advantages)
    return gain.sum(-1), torch.where(known, pull, advantages).sum(-1)
