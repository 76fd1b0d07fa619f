"""Whether a round's samples have lost their variety: what expert iteration does when it goes wrong.

Training on one's own right answers sharpens: entropy falls, right answers look alike, and pass@1
rises at the cost of pass@k, until there is nothing left to select (RAFT's entropy collapse: Xiong et
al. 2025, arXiv 2504.11343). The figures of each round are compared with the first round's. The
limits below are where a look is due, not laws.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rft.stats import Interval, mean_interval, pass_at_k
from rft.tallies import Key
from rft.types import CUT_OFF, Group, Verdict

MOST_K = 8
"""Largest k of the pass@k that is looked at."""

HALF, LONGER, CUT = 0.5, 1.5, 0.1
"""Entropy or variety below half of the first round's, answers 1.5 times as long or as short, a tenth
more of them cut off."""


@dataclass(frozen=True)
class Variety:
    """Figures of one round's samples."""

    samples: int
    entropy: float
    """Mean surprise of the sampled tokens, nats a token: the policy's entropy per token where it was
    sampled at temperature 1, and in any case comparable between rounds."""
    differ: float | None
    """Chance that two right answers to one prompt go different ways; None where no prompt has two.
    Unlike a count of ways it does not depend on how many samples there are."""
    k: int
    """As many samples as every prompt has, at most `MOST_K`."""
    pass_1: Interval
    """From the first k samples of each prompt, which no allocator's choice has touched."""
    pass_k: Interval
    tokens: float
    """Mean completion length."""
    cut: float
    """Share that was cut off, or stopped in a loop."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(groups: Iterable[Group], way: Key) -> Variety | None:
    """The figures of all samples in `groups`; None where there are none.

    way: key of a text by which two answers are alike.
    """
    samples = tokens = cut = 0
    nats = 0.0
    pairs = alike = 0.0
    hits: list[list[bool]] = []
    for group in groups:
        sampled = [row for row in group.rows if not row.is_reference]
        if not sampled:
            continue
        samples += len(sampled)
        tokens += sum(row.tokens for row in sampled)
        nats -= sum(row.candidate.logprob or 0.0 for row in sampled)
        cut += sum(row.candidate.finish in CUT_OFF for row in sampled)
        hits.append([row.score.verdict is Verdict.CORRECT for row in sampled])
        right = [row for row in sampled if row.score.verdict is Verdict.CORRECT]
        if len(right) > 1:
            ways = Counter(way(row.candidate.text) for row in right)
            # Each prompt counts once, or easy prompts with many right answers would be all of it.
            pairs += 1
            alike += sum(n * (n - 1) for n in ways.values()) / (len(right) * (len(right) - 1))
    if not samples:
        return None
    k = min(MOST_K, min(map(len, hits)))
    correct = [sum(row[:k]) for row in hits]
    return Variety(
        samples=samples,
        entropy=nats / max(tokens, 1),
        differ=1 - alike / pairs if pairs else None,
        k=k,
        pass_1=mean_interval(pass_at_k(k, correct, 1)),
        pass_k=mean_interval(pass_at_k(k, correct, k)),
        tokens=tokens / samples,
        cut=cut / samples,
    )


def signs(first: Variety, now: Variety) -> list[str]:
    """What has collapsed since the first round, in words; empty if nothing has."""
    found = []
    if now.entropy < HALF * first.entropy:
        found.append(f"entropy {first.entropy:.2f} -> {now.entropy:.2f} nats a token")
    if first.differ and now.differ is not None and now.differ < HALF * first.differ:
        found.append(
            f"two right answers differ in {first.differ:.0%} -> {now.differ:.0%} of the prompts' pairs"
        )
    if now.k == first.k and now.pass_k.high < first.pass_k.low:
        found.append(
            f"pass@{now.k} {first.pass_k.value:.1%} -> {now.pass_k.value:.1%} (pass@1 "
            f"{first.pass_1.value:.1%} -> {now.pass_1.value:.1%})"
        )
    if not 1 / LONGER < now.tokens / max(first.tokens, 1e-9) < LONGER:
        found.append(f"length {first.tokens:.0f} -> {now.tokens:.0f} tokens")
    if now.cut > first.cut + CUT:
        found.append(f"cut off {first.cut:.0%} -> {now.cut:.0%}")
    return found
