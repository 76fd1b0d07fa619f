"""Keeps what overlaps with an evaluation set out of the training set.

`prompts.leakage` compares whole questions with this experiment's own held-out split. This looks for
any other evaluation set, for parts of its texts, and in the candidates' texts as well: a model may
recite what it saw in pretraining.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rft import prompts
from rft.overlap import WORDS, NGrams, words
from rft.selectors import _minhash
from rft.selectors._common import checked
from rft.types import Choice, Group, digest


def _fits(args: dict[str, Any]) -> None:
    path = str(args.get("against", ""))
    # A bare name is refused, since the plan takes only a path for a file that selecting depends on.
    if "/" not in path or not os.path.isfile(path):
        raise ValueError(f"against: no such file: {path} (beside the YAML: ./file.jsonl)")
    next(_items(Path(path), args.get("columns", ["question"])))
    if "threshold" in args and args.get("method", "ngram") != "minhash":
        raise ValueError("threshold: only with method: minhash")


@checked(_fits)
def decontaminate(
    groups: Iterable[Group],
    *,
    against: str,
    columns: list[str] = ["question"],  # noqa: B006 (never changed; the reference shows it)
    method: Literal["ngram", "minhash"] = "ngram",
    n: Annotated[int | None, Field(ge=1)] = None,
    threshold: Annotated[float, Field(ge=0.3, le=1)] = 0.8,
) -> Iterator[Choice]:
    """Drops candidates whose question or text overlaps with an evaluation set, references too.

    If the question overlaps, all of the prompt's candidates go. The reason is `overlap:` and the
    first 8 digits of the id of what is overlapped with: a hash of its first column, which for
    questions is the prompt's id in a run. Case plays no part, nor does punctuation with `ngram`. A
    question that is the same as a whole counts however short it is.

    against: path of the evaluation set: JSON Lines, or text (`.txt`) with one item a line.
    columns: with JSON Lines, names of the columns to compare with; each is a text of its own.
    method: `ngram`: n words in a row are the same. `minhash`: sets of word n-grams are nearly the
    same, as estimated by MinHash with 128 places, so that changed numbers or names don't hide it.
    n: words in an n-gram; by default 13, and 3 with `minhash`.
    threshold: with `minhash`, the least Jaccard similarity that counts as an overlap.
    """
    overlap = (
        NGrams(n or WORDS)
        if method == "ngram"
        else _Similar(n or 3, threshold)  # one item's id each
    )
    whole: dict[str, str] = {}
    for texts in _items(Path(against), columns):
        id = digest(texts[0])[:8]
        for text in filter(str.strip, texts):
            overlap.add(text, id)
            whole.setdefault(prompts.normalised(text), id)
    for group in groups:
        question = group.prompt.question
        found = whole.get(prompts.normalised(question)) or overlap.find(question)
        for row in group.rows:
            met = found or overlap.find(row.candidate.text)
            yield row, f"overlap:{met}" if met else None


def _items(path: Path, columns: list[str]) -> Iterator[list[str]]:
    """The texts of each item of the evaluation set. Raises ValueError if there is none."""
    empty = True
    if path.suffix == ".txt":
        for line in path.read_text(encoding="utf-8-sig").split("\n"):
            if line.strip():
                empty = False
                yield [line.strip()]
    else:
        for row, where in prompts.json_lines(path):
            texts = [row.get(column) for column in columns]
            missing = [c for c, text in zip(columns, texts, strict=True) if text is None]
            if missing:
                raise ValueError(
                    f"{where}: no column {missing[0]!r} (it has {', '.join(map(repr, row))}): set "
                    "columns"
                )
            empty = False
            yield [str(text) for text in texts]
    if empty:
        raise ValueError(f"{path}: nothing to compare with")


class _Similar:
    """Which item a text is nearly the same as."""

    def __init__(self, n: int, threshold: float):
        self.n = n
        self._index = _minhash.Index(threshold)
        self._ids: list[str] = []

    def add(self, text: str, id: str) -> None:
        self._index.add(_minhash.signature(words(text), self.n))
        self._ids.append(id)

    def find(self, text: str) -> str | None:
        at = self._index.find(_minhash.signature(words(text), self.n))
        return None if at is None else self._ids[at]
