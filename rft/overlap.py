"""Words that texts have in common: what tells a training question from a held-out one.

Thirteen words in a row is what GPT-3 (arXiv 2005.14165, appendix C) and many since take for an
overlap that is no accident. Problems made from templates share more than that by their making.
"""

import re
import unicodedata
from collections.abc import Iterator

WORDS = 13
"""Words in a row that count as an overlap."""

# Chinese and Japanese have no spaces between words: each character counts as one.
_CJK = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words, numbers and single signs in lower case: `3 - 4` and `3 + 4` are not the same."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class NGrams:
    """Which item n words in a row stand in. Punctuation plays no part."""

    def __init__(self, n: int = WORDS):
        self.n = n
        self._held: dict[str, str] = {}

    def _grams(self, text: str) -> Iterator[str]:
        found = [w for w in words(text) if w[0].isalnum()]
        return (" ".join(found[i : i + self.n]) for i in range(len(found) - self.n + 1))

    def add(self, text: str, id: str) -> None:
        for gram in self._grams(text):
            self._held.setdefault(gram, id)

    def find(self, text: str) -> str | None:
        """Id of the first item that shares n words in a row with a text."""
        return next((self._held[g] for g in self._grams(text) if g in self._held), None)
