"""From rows to optimizer steps: the layout that pays for each token once.

The textbook puts every completion in its own padded row and computes the prompt again for each.
Here a *group*, one prompt and its completions, is one sequence: a tree whose trunk is the prompt and
whose branches are the completions, those that begin alike sharing their beginning. The tree is laid
out depth first; positions count from its root, and a token sees its ancestors only, so its logits are
those of a row of its own. A token that several completions share is predicted once, with their
weights added up. Groups are packed into one row without padding, and do not see each other.

Models whose layers look at neighbours in the row (state-space layers, windows, positions taken from
the place in memory), and training with dropout, whose draws siblings would share, get the textbook's
layout: `Layout.ROWS`, padded rows of similar length.

A step's rows follow from the seed and the epoch alone. How a step is cut into micro-batches, how these
are laid out, and which process computes which, changes speed and memory but not the step: the loss is
the weighted sum of the tokens' losses over the sum of their weights' sizes in the whole step, the number of
completion tokens where all weigh 1.
"""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import pad

from rft.config_train import Loss
from rft.types import RftError, TrainRow

BLOCK = 128
"""Tokens: trees on a GPU are padded to whole blocks of FlexAttention's."""

Ids = np.ndarray
"""Token ids, shape (n,), int32."""


class Layout(StrEnum):
    """How a group's completions lie in memory."""

    TREE = "tree"
    """One sequence, in which what completions have in common is there once."""
    ROWS = "rows"
    """A padded row for each completion."""


@dataclass(frozen=True)
class Group:
    """One prompt and completions of it, in the order of their token ids."""

    prompt_id: str
    prompt: Ids
    completions: tuple[Ids, ...]
    weights: tuple[float, ...]
    """Of a token of each completion; below 0 in those to make less likely."""
    old: tuple[np.ndarray, ...] | None = None
    """Log-probabilities of their tokens as they were sampled, NaN where unknown; None where the loss is
    without them."""

    @property
    def mass(self) -> float:
        """What the group adds to the divisor of its step's loss."""
        return sum(abs(weight) * len(ids) for ids, weight in zip(self.completions, self.weights))

    @cached_property
    def shared(self) -> tuple[int, ...]:
        """How many tokens each completion has in common with the one before, from its beginning."""
        return (0, *map(_in_common, self.completions, self.completions[1:]))

    @cached_property
    def tokens(self) -> int:
        """Length of the tree."""
        return len(self.prompt) + self.completion_tokens - sum(self.shared)

    @property
    def completion_tokens(self) -> int:
        """Of rows of their own."""
        return sum(map(len, self.completions))

    @property
    def separate_tokens(self) -> int:
        """What rows of their own would take without padding: the prompt once a completion."""
        return len(self.prompt) * len(self.completions) + self.completion_tokens

    @property
    def longest(self) -> int:
        """Length of the longest row of its own."""
        return len(self.prompt) + max(map(len, self.completions))

    def singles(self) -> "Iterator[Group]":
        """A group for each completion."""
        return (self.of([number]) for number in range(len(self.completions)))

    def rights(self) -> "Group | None":
        """The group without what is to be made less likely; None where nothing is left."""
        numbers = [number for number, weight in enumerate(self.weights) if weight > 0]
        return self.of(numbers) if numbers else None

    def of(self, numbers: "Iterable[int]") -> "Group":
        """The group with these of its completions, which must be in order."""
        picked = list(numbers)
        return replace(
            self,
            completions=tuple(self.completions[n] for n in picked),
            weights=tuple(self.weights[n] for n in picked),
            old=self.old and tuple(self.old[n] for n in picked),
        )


def _in_common(one: Ids, other: Ids) -> int:
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size


@dataclass(frozen=True)
class Batch:
    """What a forward pass takes. B: rows, T: tokens of a row, C: tokens to be predicted."""

    input_ids: torch.Tensor
    """(B, T); B is 1 in trees."""
    predictors: torch.Tensor
    """(C,): positions, among all B * T, whose logits are needed."""
    labels: torch.Tensor
    """(C,): the token that each of them must predict."""
    weights: torch.Tensor
    """(C,), float32: of their losses; added up where completions share a token."""
    advantages: torch.Tensor | None = None
    """(C, M), float32: the weights of the completions that share a token one by one, M at most, for losses
    in which they do not add up; 0 where there are fewer."""
    old: torch.Tensor | None = None
    """(C, M), float32: their log-probabilities as sampled, NaN where unknown."""
    position_ids: torch.Tensor | None = None
    """(1, T) in trees; rows count from 0."""
    end: torch.Tensor | None = None
    """(T,) in trees: where the last descendant of each token ends. A query at q sees a key at k if
    k <= q < end[k]."""
    sizes: tuple[int, ...] = ()
    """In trees: lengths of the groups."""
    mask: torch.Tensor | None = None
    """(B, T) in rows: 0 where a row is padded, at its end."""

    def to(self, device: torch.device) -> "Batch":
        """Moves all tensors; trees on a GPU are padded."""
        whole = self._padded() if device.type == "cuda" and self.end is not None else self
        own = {field.name: getattr(whole, field.name) for field in fields(whole)}
        return Batch(
            **{
                name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
                for name, value in own.items()
            }
        )

    def _padded(self) -> "Batch":
        """Trees with tokens behind them, to whole blocks, that see themselves only."""
        assert self.end is not None and self.position_ids is not None
        size = len(self.end)
        more = -size % BLOCK
        return replace(
            self,
            input_ids=pad(self.input_ids, (0, more)),
            position_ids=pad(self.position_ids, (0, more)),
            end=torch.cat([self.end, torch.arange(size, size + more) + 1]),
        )


def collate(groups: Iterable[Group], layout: Layout = Layout.TREE) -> Batch:
    """Lays groups out."""
    return _tree(groups) if layout is Layout.TREE else _rows(groups)


def _tree(groups: Iterable[Group]) -> Batch:
    ids: list[Ids] = []
    positions, predictors, labels, ends, sizes = [], [], [], [], list[int]()
    weights: list[np.ndarray] = []
    terms = _Terms()
    start = targets = 0
    for group in groups:
        size = len(group.prompt)
        end = np.zeros(group.tokens, np.int64)
        # Where the tokens of the latest completion lie, behind the prompt's last.
        path = np.array([size - 1])
        at = size
        ids.append(group.prompt)
        positions.append(np.arange(size))
        owned = np.zeros(group.tokens)
        for number, (completion, weight, shared) in enumerate(
            zip(group.completions, group.weights, group.shared)
        ):
            new = len(completion) - shared
            # Those behind the fork have no more descendants.
            end[path[shared + 1 :]] = at
            path = np.concatenate([path[: shared + 1], np.arange(at, at + new)])
            owned[path[1:]] += weight
            if group.old is not None:
                terms.add(path[1:] + (targets - size), weight, group.old[number])
            ids.append(completion[shared:])
            positions.append(np.arange(size + shared, size + len(completion)))
            predictors.append(start + path[shared:-1])
            labels.append(completion[shared:])
            at += new
        end[path[1:]] = end[:size] = at
        weights.append(owned[size:])
        ends.append(start + end)
        sizes.append(at)
        start += at
        targets += at - size
    advantages, old = terms.tensors(targets)
    return Batch(
        input_ids=_tensor(ids)[None],
        predictors=_tensor(predictors),
        labels=_tensor(labels),
        weights=torch.from_numpy(np.concatenate(weights).astype(np.float32)),
        advantages=advantages,
        old=old,
        position_ids=_tensor(positions)[None],
        end=_tensor(ends),
        sizes=tuple(sizes),
    )


def _rows(groups: Iterable[Group]) -> Batch:
    singles = [single for group in groups for single in group.singles()]
    width = max(single.tokens for single in singles)
    ids = np.zeros((len(singles), width), np.int64)
    mask = np.zeros((len(singles), width), np.int64)
    predictors, labels, weights = [], [], []
    terms, targets = _Terms(), 0
    for number, single in enumerate(singles):
        (completion,), (weight,) = single.completions, single.weights
        ids[number, : single.tokens] = np.concatenate([single.prompt, completion])
        mask[number, : single.tokens] = 1
        first = number * width + len(single.prompt) - 1
        predictors.append(np.arange(first, first + len(completion)))
        labels.append(completion)
        weights.append(np.full(len(completion), weight, np.float32))
        if single.old is not None:
            terms.add(np.arange(targets, targets + len(completion)), weight, single.old[0])
        targets += len(completion)
    advantages, old = terms.tensors(targets)
    return Batch(
        input_ids=torch.from_numpy(ids),
        predictors=_tensor(predictors),
        labels=_tensor(labels),
        weights=torch.from_numpy(np.concatenate(weights)),
        advantages=advantages,
        old=old,
        mask=torch.from_numpy(mask),
    )


class _Terms:
    """A batch's `advantages` and `old`, completion by completion."""

    def __init__(self) -> None:
        self.owners, self.weights, self.old = list[Ids](), list[Ids](), list[Ids]()

    def add(self, owners: Ids, weight: float, old: np.ndarray) -> None:
        """owners: which of the batch's tokens to be predicted are the completion's."""
        self.owners.append(owners)
        # What bounds an unlikely token's loss is its ratio.
        self.weights.append(np.where(np.isnan(old), max(weight, 0.0), weight))
        self.old.append(old)

    def tensors(self, targets: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.owners:
            return None, None
        owner = np.concatenate(self.owners)
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        # The how manieth each is of its token's.
        slot = np.arange(len(owner)) - np.searchsorted(owner, owner)
        advantages = np.zeros((targets, int(slot.max()) + 1), np.float32)
        old = np.full_like(advantages, np.nan)
        advantages[owner, slot] = np.concatenate(self.weights)[order]
        old[owner, slot] = np.concatenate(self.old)[order]
        return torch.from_numpy(advantages), torch.from_numpy(old)


def _tensor(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


_Member = tuple[tuple[int, ...], float, tuple[float, ...]]
"""Tokens, weight and log-probabilities of a row."""


_PLAIN = Loss()


def read_groups(rows: Iterable[TrainRow], loss: Loss = _PLAIN) -> list[Group]:
    """Rows by prompt, in the order of their tokens, whatever order they come in. Those of weight 0, from
    which nothing is learnt, are left out. Weights are scaled so that a token's is 1 on average.

    Raises RftError for no rows, and for a row that has no prompt or no completion.
    """
    # Keyed by the ids as well: prompts rendered in two ways must not share a layout.
    found: dict[tuple[str, bytes], list[_Member]] = {}
    sizes: dict[str, float] = {}
    for row in rows:
        if not row.prompt_token_ids or not row.token_ids:
            raise RftError(
                f"training row {row.id}: its {'completion' if row.prompt_token_ids else 'prompt'} "
                "has no tokens, so there is nothing to learn from it. Drop it with a selector."
            )
        if not row.weight:
            continue
        key = (row.prompt_id, np.asarray(row.prompt_token_ids, np.int32).tobytes())
        told = () if loss.clip is None else tuple(row.logprobs)
        found.setdefault(key, []).append((tuple(row.token_ids), row.weight, told))
        sizes[row.prompt_id] = sizes.get(row.prompt_id, 0.0) + abs(row.weight)
    if not found:
        raise RftError(
            "there are no rows to train on. Look at the select stage with `rft show`: loosen a "
            "selector, raise sample.n, or start from a stronger policy."
        )
    groups = []
    for (prompt_id, prompt), members in sorted(found.items()):
        # Those that begin alike come together.
        members.sort()
        completions = tuple(np.asarray(ids, np.int32) for ids, _, _ in members)
        whole = sizes[prompt_id] if loss.weigh == "prompts" else 1.0
        weights = tuple(
            weight if loss.weigh == "tokens" else weight / (whole * len(ids))
            for ids, weight, _ in members
        )
        old = None if loss.clip is None else tuple(_old(ids, told) for ids, _, told in members)
        groups.append(Group(prompt_id, np.frombuffer(prompt, np.int32), completions, weights, old))
    # The loss is the same with any scale; fp16's gradients of a thousandth of a token would vanish.
    scale = sum(g.completion_tokens for g in groups) / sum(g.mass for g in groups)
    return [replace(g, weights=tuple(w * scale for w in g.weights)) for g in groups]


def _old(ids: tuple[int, ...], told: tuple[float, ...]) -> np.ndarray:
    old = np.full(len(ids), np.nan, np.float32)
    old[: len(told)] = told
    return old


def split(group: Group, limit: int) -> Iterator[Group]:
    """Cuts a group into ones of at most `limit` tokens, each with the prompt again.

    A single completion that is too long even alone goes alone, over the limit: it is bounded by
    model.max_len already, and a row that costs memory is better than a run that stops.
    """
    first, size = 0, len(group.prompt)
    for number, (completion, shared) in enumerate(zip(group.completions, group.shared)):
        if number > first and size + len(completion) - shared > limit:
            yield group.of(range(first, number))
            first, size, shared = number, len(group.prompt), 0
        size += len(completion) - shared
    yield group if first == 0 else group.of(range(first, len(group.completions)))


class Steps:
    """Which groups each optimizer step holds.

    An epoch has round(tokens / tokens_per_step) steps, at least one, that are cut from its shuffled
    groups at equal token counts (of trees, whatever the layout), so no epoch ends in a step of a few
    rows. shuffle: by `prompts`, whose completions stay in one step, since only then is what they
    share computed once, so that a step holds fewer different prompts than if `rows` were shuffled one
    by one.
    """

    def __init__(
        self,
        groups: list[Group],
        tokens_per_step: int,
        seed: int,
        shuffle: Literal["prompts", "rows"] = "prompts",
    ):
        if shuffle == "rows":
            groups = [single for group in groups for single in group.singles()]
        self.groups = [part for group in groups for part in split(group, tokens_per_step)]
        self.seed, self.shuffle = seed, shuffle
        self.tokens = sum(group.tokens for group in self.groups)
        self.per_epoch = min(max(1, round(self.tokens / tokens_per_step)), len(self.groups))
        self._epoch: tuple[int, list[list[Group]]] = (-1, [])

    def __getitem__(self, step: int) -> list[Group]:
        """Groups of the step, counted from 0 over all epochs."""
        epoch, number = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._cut(epoch))
        return self._epoch[1][number]

    def _cut(self, epoch: int) -> list[list[Group]]:
        order = list(self.groups)
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        steps: list[list[Group]] = [[]]
        done = 0
        for number, group in enumerate(order):
            owed = self.per_epoch - len(steps)
            full = done + group.tokens / 2 > len(steps) * self.tokens / self.per_epoch
            if steps[-1] and owed and (full or len(order) - number <= owed):
                steps.append([])
            steps[-1].append(group)
            done += group.tokens
        return [_reunited(step) for step in steps] if self.shuffle == "rows" else steps


def _reunited(groups: list[Group]) -> list[Group]:
    """Groups of one prompt as one."""
    found: dict[tuple[str, bytes], list[Group]] = {}
    for group in groups:
        found.setdefault((group.prompt_id, group.prompt.tobytes()), []).append(group)
    return [_joined(some) if len(some) > 1 else some[0] for some in found.values()]


def _joined(groups: list[Group]) -> Group:
    """groups: one completion each."""
    groups = sorted(groups, key=lambda one: (one.completions[0].tolist(), one.weights))
    return replace(
        groups[0],
        completions=tuple(one.completions[0] for one in groups),
        weights=tuple(one.weights[0] for one in groups),
        old=groups[0].old and tuple(one.old[0] for one in groups if one.old),
    )


def pack(
    groups: list[Group], limit: int, layout: Layout = Layout.TREE, processes: int = 1
) -> list[list[Group]]:
    """Micro-batches of at most `limit` tokens, the padding of rows included, that hold all the groups."""
    return (
        _pack_rows(groups, limit)
        if layout is Layout.ROWS
        else _pack_trees(groups, limit, processes)
    )


def _pack_trees(groups: list[Group], limit: int, processes: int) -> list[list[Group]]:
    """As few as there is room in, as many for each process, and of like length: a short one is computed
    no faster than its weights are read, and processes wait for the longest."""
    parts = [part for group in groups for part in split(group, limit)]
    parts.sort(key=lambda part: -part.tokens)  # stable, so equal lengths keep the step's order
    count = max(
        -(-sum(part.tokens for part in parts) // limit),
        sum(2 * part.tokens > limit for part in parts),  # no two of these fit together
    )
    while True:
        count = -(-count // processes) * processes
        packed = _spread(parts, count)
        if all(sum(part.tokens for part in row) <= limit or len(row) == 1 for row in packed):
            return packed
        count += max(1, count // 64)


def _spread(parts: list[Group], count: int) -> list[list[Group]]:
    """Each part, longest first, to the micro-batch that has fewest tokens (Graham 1969, LPT)."""
    packed: list[list[Group]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for part in parts:
        load, number = loads[0]
        packed[number].append(part)
        heapq.heapreplace(loads, (load + part.tokens, number))
    return [row for row in packed if row]


def _pack_rows(groups: list[Group], limit: int) -> list[list[Group]]:
    """Rows of similar length come together."""
    singles = [single for group in groups for single in group.singles()]
    singles.sort(key=lambda single: -single.tokens)
    packed: list[list[Group]] = []
    for single in singles:
        if not packed or (len(packed[-1]) + 1) * packed[-1][0].tokens > limit:
            packed.append([])
        packed[-1].append(single)
    return packed


def deal(packed: list[list[Group]], processes: int, rank: int) -> list[tuple[list[Group], float]]:
    """One process's micro-batches of a step, each with its weight.

    Every process gets equally many, because they meet after each step; where they do not divide,
    some compute one again with weight 0, the shortest.
    """
    spare = min(packed, key=lambda groups: sum(group.tokens for group in groups))
    count = -(-len(packed) // processes)
    mine: list[tuple[list[Group], float]] = [(groups, 1.0) for groups in packed[rank::processes]]
    return mine + [(spare, 0.0)] * (count - len(mine))
