"""Evens out what the training set is made of: easy and hard problems, short and long, topics.

Plain rejection sampling keeps most of what is easy, since easy problems are solved most often. DART
(arXiv 2407.13690) sets a target for each problem instead: as many answers for each (Uniform), or in
proportion to the share of its samples that fail (Prop2Diff). There, sampling goes on until a target
is met; here, what was sampled is cut down to it.
"""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from rft.selectors._common import checked, drawn, length, sampled
from rft.types import Choice, Group, Scored


def _fits(args: dict[str, Any]) -> None:
    even = args.get("target", "even") == "even"
    if not even and args.get("by", "difficulty") != "difficulty":
        raise ValueError(f"target {args['target']} goes by difficulty, not by {args['by']}")
    if not even and args.get("k") is None:
        raise ValueError(f"target {args['target']} needs the argument k")
    others = ("k",) if even else ("bins", "per_bin", "unit")
    wrong = [name for name in others if args.get(name) is not None]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: not with target {args.get('target', 'even')}")


@checked(_fits)
def balance(
    groups: Iterable[Group],
    *,
    by: Literal["difficulty", "length", "kind"] = "difficulty",
    target: Literal["even", "uniform", "prop2diff"] = "even",
    bins: Annotated[int, Field(ge=2)] = 5,
    per_bin: Annotated[int | None, Field(ge=1)] = None,
    k: Annotated[int | None, Field(ge=1)] = None,
    unit: Literal["tokens", "characters"] = "tokens",
    seed: int = 0,
) -> Iterator[Choice]:
    """Keeps sampled candidates so that no bin, or no easy prompt, outweighs the others.

    Difficulty is the share of a prompt's sampled candidates that are not correct, so by difficulty
    this comes instead of `correct`, not after it: it drops what that drops, under the same reasons,
    and raises ValueError if all are correct already. By length or kind it takes what it is given.
    Which candidates stay is chance, by their ids and the seed; the others are dropped as `over_bin`,
    or `over_quota` with DART's targets. References do not count, and stay as `correct` keeps them.
    With `target: even` it goes over the whole set several times; DART's targets hold one prompt.

    by: `difficulty`, `length`, or `kind`, the label of a prompt, for instance its topic.
    target: `even`: as many candidates of each bin. `uniform`: k of each prompt. `prop2diff`: of each
    prompt k times its difficulty, rounded, and one at least.
    bins: with `even`, number of bins of equal width: by difficulty from 0 to 1, by length from the
    shortest to the longest.
    per_bin: with `even`, most candidates to keep of one bin. By default the size of the median bin
    that is not empty, or the lower of two: fuller bins are cut down to it.
    k: with `uniform` the most to keep of one prompt, with `prop2diff` of one that is never solved.
    unit: by length, count `tokens` or `characters`.
    seed: another one gives another choice; by default the experiment's seed.
    """
    if target != "even":
        assert k is not None
        yield from _quotas(groups, target, k, seed)
        return
    if by == "difficulty":
        _require_failures(sum(map(_failed, groups)), groups)
    binned: dict[Hashable, list[str]] = defaultdict(list)
    for row, bin in _bins(groups, by, bins, unit):
        if by != "difficulty" or not row.fault:
            binned[bin].append(row.candidate.id)
    if per_bin is None:
        per_bin = statistics.median_low(map(len, binned.values())) if binned else 1
    chosen = {id for ids in binned.values() for id in drawn(ids, per_bin, seed)}
    for group in groups:
        yield from _choices(group, chosen, by == "difficulty", "over_bin")


def _bins(
    groups: Iterable[Group], by: str, bins: int, unit: str
) -> Iterator[tuple[Scored, Hashable]]:
    """Each sampled row with its bin."""
    least = most = 0
    if by == "length":
        lengths = [length(row, unit) for group in groups for row in sampled(group.rows)]
        least, most = (min(lengths), max(lengths)) if lengths else (0, 0)
    for group in groups:
        rows, failed = sampled(group.rows), _failed(group)
        for row in rows:
            bin: Hashable = group.prompt.kind
            if by == "difficulty":
                # In whole numbers: 0.29 * 100 is not 29.
                bin = min(failed * bins // len(rows), bins - 1)
            elif by == "length":
                bin = (length(row, unit) - least) * bins // (most - least + 1)
            yield row, bin


def _quotas(groups: Iterable[Group], target: str, k: int, seed: int) -> Iterator[Choice]:
    failures = 0
    seen: list[Group] = []
    for group in groups:
        rows, failed = sampled(group.rows), _failed(group)
        failures += failed
        seen = [group] if rows else seen
        # Half rounds up.
        share = (2 * k * failed + len(rows)) // (2 * len(rows)) if rows else 0
        quota = k if target == "uniform" else max(1, share)
        chosen = drawn((r.candidate.id for r in rows if not r.fault), quota, seed)
        yield from _choices(group, chosen, True, "over_quota")
    if target == "prop2diff":
        _require_failures(failures, seen)


def _failed(group: Group) -> int:
    return sum(row.fault is not None for row in sampled(group.rows))


def _require_failures(failures: int, groups: Iterable[Group]) -> None:
    if not failures and any(sampled(group.rows) for group in groups):
        raise ValueError(
            "every candidate is correct, so all prompts look equally easy: put balance in the place "
            "of `correct`, which takes away what difficulty is measured by"
        )


def _choices(group: Group, chosen: set[str], judge: bool, over: str) -> Iterator[Choice]:
    for row in group.rows:
        if row.is_reference or (judge and row.fault):
            yield row, row.fault
        else:
            yield row, None if row.candidate.id in chosen else over
