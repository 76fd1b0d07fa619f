"""The account of a pool while its samples are drawn: what allocators read, and resuming rests on.

A prompt's samples are told apart by their indices alone, so which ones are drawn already is one whole
number for each prompt (bit i for index i): ten million samples take tens of megabytes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from rft.equations import equations
from rft.types import Tally

Key = Callable[[str], int]


def by_equations(text: str) -> int:
    """Hash of the set of a text's equations; of its words, where it has none."""
    return hash(frozenset(equations(text)) or " ".join(text.split()))


def by_text(text: str) -> int:
    """Hash of a text, spaces aside."""
    return hash(" ".join(text.split()))


_numbers = itertools.count()


def by_itself(text: str) -> int:
    """Another number for every answer."""
    return next(_numbers)


KEYS: dict[str, Key] = {"equations": by_equations, "text": by_text, "any": by_itself}
"""What makes two right answers different ways (`sample.distinct`)."""


class _Entry(Tally):
    """A tally with what it is kept by."""

    __slots__ = ("early", "taken", "ways")

    def __init__(self, prompt_id: str, limit: int):
        super().__init__(prompt_id, limit)
        self.taken = 0
        """Bit i: the sample of index i is drawn or under way."""
        self.ways: set[int] | None = None
        """Keys of the right answers, and of a worked solution that is trained on anyway."""
        self.early: dict[int, tuple[int, int | None]] | None = None
        """Verdicts whose turn has not come: tokens and key by index."""


class Board:
    """`Tallies` as the sample stage keeps them."""

    def __init__(self, prompt_ids: Iterable[str], limit: int):
        self.tokens = 0
        self.drawn = 0
        self._entries = {id: _Entry(id, limit) for id in prompt_ids}
        self._changed: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Tally]:
        return iter(self._entries.values())

    def __getitem__(self, prompt_id: str) -> Tally:
        return self._entries[prompt_id]

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self._entries

    def changed(self) -> Sequence[Tally]:
        found = list(self._changed.values())
        self._changed.clear()
        return found

    @property
    def limit(self) -> int:
        """Most samples of all prompts together."""
        return sum(entry.limit for entry in self._entries.values())

    def lower(self, prompt_id: str, limit: int) -> int:
        """Fewer samples than `n` may be had of a prompt; how many fewer."""
        entry = self._entries[prompt_id]
        before, entry.limit = entry.limit, min(entry.limit, limit)
        return before - entry.limit

    def take(self, tally: Tally) -> int:
        """The lowest index of a prompt that is not drawn yet; it is from now on.

        Raises ValueError where the limit is reached.
        """
        entry = self._entries[tally.prompt_id]
        index = (~entry.taken & (entry.taken + 1)).bit_length() - 1
        if index >= entry.limit:
            raise ValueError(f"all {entry.limit} samples of prompt {entry.prompt_id} are drawn")
        entry.taken |= 1 << index
        entry.drawn += 1
        self.drawn += 1
        return index

    def lacks(self, prompt_id: str, index: int) -> bool:
        """Whether a sample is wanted and not there."""
        entry = self._entries.get(prompt_id)
        return entry is not None and index < entry.limit and not entry.taken >> index & 1

    def note(self, prompt_id: str, index: int) -> bool:
        """A sample that exists; whether it is wanted and was not known."""
        if not self.lacks(prompt_id, index):
            return False
        entry = self._entries[prompt_id]
        entry.taken |= 1 << index
        entry.drawn += 1
        self.drawn += 1
        return True

    def gaps(self) -> Iterator[tuple[str, int]]:
        """Takes the indices below others that exist: an interrupted run was drawing them. (prompt id,
        index) of each. Until they are judged no later sample of their prompt counts."""
        for entry in self._entries.values():
            top = entry.taken.bit_length()
            missing = ~entry.taken & ((1 << top) - 1)
            if missing:
                entry.taken = (1 << top) - 1
                self.drawn += top - entry.drawn
                entry.drawn = top
                yield from ((entry.prompt_id, i) for i in range(top) if missing >> i & 1)

    def know(self, prompt_id: str, way: int) -> None:
        """A way that is not to be counted as distinct."""
        entry = self._entries[prompt_id]
        entry.ways = {*(entry.ways or ()), way}
        entry.known = len(entry.ways)

    def judge(self, prompt_id: str, index: int, tokens: int, way: int | None) -> None:
        """A verdict has come. way: key of a correct answer, None for any other."""
        entry = self._entries[prompt_id]
        if index != entry.judged:
            if entry.early is None:
                entry.early = {}
            entry.early[index] = tokens, way
            return
        self._count(entry, tokens, way)
        while entry.early and (told := entry.early.pop(entry.judged, None)) is not None:
            self._count(entry, *told)
        self._changed[prompt_id] = entry

    def _count(self, entry: _Entry, tokens: int, way: int | None) -> None:
        entry.judged += 1
        entry.tokens += tokens
        if way is None:
            return
        entry.correct += 1
        if entry.ways is None:
            entry.ways = set()
        if way not in entry.ways:
            entry.ways.add(way)
            entry.distinct += 1
