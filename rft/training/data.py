"""From rows to optimizer steps: the layout that pays for each prompt once.

The textbook puts every completion in its own padded row and computes the prompt again for each.
Here a *group*, one prompt and its completions, is one sequence: the prompt's ids, then each
completion's. The positions of every completion restart at the prompt's end, and it attends to its
prompt and to itself only, so its logits are those of a row of its own. Groups are packed into one
row without padding, and do not see each other.

A step's groups follow from the seed and the epoch alone. A prompt's completions stay in one step,
since only then is its prompt computed once; a step therefore holds fewer different prompts than it
would if rows were shuffled one by one. How a step is cut into micro-batches, and which process
computes which, changes speed and memory but not the step: the loss is the sum of the tokens'
losses over the number of completion tokens in the whole step.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from rft.types import RftError, TrainRow

Ids = np.ndarray
"""Token ids, shape (n,), int32."""


@dataclass(frozen=True)
class Group:
    """One prompt and completions of it."""

    prompt_id: str
    prompt: Ids
    completions: tuple[Ids, ...]

    @property
    def tokens(self) -> int:
        """Length of the layout: the prompt once, and all completions."""
        return len(self.prompt) + self.completion_tokens

    @property
    def completion_tokens(self) -> int:
        return sum(map(len, self.completions))

    @property
    def separate_tokens(self) -> int:
        """What rows of their own would take without padding: the prompt once a completion."""
        return len(self.prompt) * len(self.completions) + self.completion_tokens


@dataclass(frozen=True)
class Batch:
    """One row of packed groups, ready for a forward pass. T: layout tokens, C: completion tokens.

    C counts a prompt's last token once for every completion it starts.
    """

    input_ids: torch.Tensor
    """(1, T)"""
    position_ids: torch.Tensor
    """(1, T)"""
    group: torch.Tensor
    """(T,): which group a token is of."""
    branch: torch.Tensor
    """(T,): 0 in prompts, else the number of the completion, counted over the whole row."""
    predictors: torch.Tensor
    """(C,): positions whose logits are needed."""
    labels: torch.Tensor
    """(C,): the token that each of them must predict."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{k: v.to(device, non_blocking=True) for k, v in vars(self).items()})

    def mask(self) -> torch.Tensor:
        """(1, 1, T, T), bool, true where a query (row) may see a key (column).

        Bool and not additive: it fits SDPA in every compute format, at a byte an entry.
        """
        same_group = self.group[:, None] == self.group[None, :]
        visible = (self.branch[None, :] == 0) | (self.branch[:, None] == self.branch[None, :])
        seen = torch.ones_like(same_group).tril_()
        return (same_group & visible & seen)[None, None]


def collate(groups: Iterable[Group]) -> Batch:
    """Lays groups out in one row."""
    ids: list[Ids] = []
    positions, owners, branches, predictors, labels = [], [], [], [], []
    start = branch = 0
    for number, group in enumerate(groups):
        size = len(group.prompt)
        end_of_prompt = start + size - 1
        ids.append(group.prompt)
        positions.append(np.arange(size))
        branches.append(np.zeros(size, np.int64))
        start += size
        for completion in group.completions:
            branch += 1
            length = len(completion)
            ids.append(completion)
            positions.append(np.arange(size, size + length))
            branches.append(np.full(length, branch))
            predictors.append(np.array([end_of_prompt]))
            predictors.append(np.arange(start, start + length - 1))
            labels.append(completion)
            start += length
        owners.append(np.full(group.tokens, number))

    def tensor(parts: list) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Batch(
        input_ids=tensor(ids)[None],
        position_ids=tensor(positions)[None],
        group=tensor(owners),
        branch=tensor(branches),
        predictors=tensor(predictors),
        labels=tensor(labels),
    )


def read_groups(rows: Iterable[TrainRow]) -> list[Group]:
    """Rows by prompt, in the order of their ids, whatever order they come in.

    Raises RftError for no rows, and for a row that has no prompt or no completion.
    """
    # Keyed by the ids as well: prompts rendered in two ways must not share a layout.
    found: dict[tuple[str, bytes], list[tuple[str, Ids]]] = {}
    for row in rows:
        if not row.prompt_token_ids or not row.token_ids:
            raise RftError(
                f"training row {row.id}: its {'completion' if row.prompt_token_ids else 'prompt'} "
                "has no tokens, so there is nothing to learn from it. Drop it with a selector."
            )
        key = (row.prompt_id, np.asarray(row.prompt_token_ids, np.int32).tobytes())
        found.setdefault(key, []).append((row.id, np.asarray(row.token_ids, np.int32)))
    if not found:
        raise RftError(
            "there are no rows to train on. Look at the select stage with `rft show`: loosen a "
            "selector, raise sample.n, or start from a stronger policy."
        )
    return [
        Group(
            prompt_id,
            np.frombuffer(prompt, np.int32),
            tuple(ids for _, ids in sorted(members, key=lambda member: member[0])),
        )
        for (prompt_id, prompt), members in sorted(found.items())
    ]


def split(group: Group, limit: int) -> Iterator[Group]:
    """Cuts a group into ones of at most `limit` tokens, each with the prompt again.

    A single completion that is too long even alone goes alone, over the limit: it is bounded by
    model.max_len already, and a row that costs memory is better than a run that stops.
    """
    part: list[Ids] = []
    size = len(group.prompt)
    for completion in group.completions:
        if part and size + len(completion) > limit:
            yield replace(group, completions=tuple(part))
            part, size = [], len(group.prompt)
        part.append(completion)
        size += len(completion)
    yield replace(group, completions=tuple(part))


class Steps:
    """Which groups each optimizer step holds.

    An epoch has round(tokens / tokens_per_step) steps, at least one, that are cut from its shuffled
    groups at equal token counts, so no epoch ends in a step of a few rows.
    """

    def __init__(self, groups: list[Group], tokens_per_step: int, seed: int):
        self.groups = [part for group in groups for part in split(group, tokens_per_step)]
        self.seed = seed
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
        return steps


def pack(groups: list[Group], limit: int) -> list[list[Group]]:
    """Rows of at most `limit` tokens (first fit, longest first) that hold all the groups."""
    parts = [part for group in groups for part in split(group, limit)]
    parts.sort(key=lambda part: -part.tokens)  # stable, so equal lengths keep the step's order
    rows: list[list[Group]] = []
    room: list[int] = []
    for part in parts:
        number = next((n for n, left in enumerate(room) if part.tokens <= left), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(limit)
        rows[number].append(part)
        room[number] -= part.tokens
    return rows


def deal(rows: list[list[Group]], processes: int, rank: int) -> list[tuple[list[Group], float]]:
    """One process's rows of a step, each with its weight.

    Every process gets equally many, because they meet after each step; where the rows do not
    divide, some compute a row again with weight 0, the shortest one.
    """
    spare = min(rows, key=lambda row: sum(group.tokens for group in row))
    count = -(-len(rows) // processes)
    mine: list[tuple[list[Group], float]] = [(row, 1.0) for row in rows[rank::processes]]
    return mine + [(spare, 0.0)] * (count - len(mine))
