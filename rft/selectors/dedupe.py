"""Drops repeated answers of one prompt, word for word or nearly so."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from rft.overlap import words
from rft.prompts import normalised
from rft.selectors import _embedding, _minhash
from rft.selectors._common import checked, in_order
from rft.types import Choice, Group, Scored

MINHASH, EMBEDDING = 0.8, 0.97
"""Thresholds, where none is given."""


def _fits(args: dict[str, Any]) -> None:
    method = args.get("method", "normalised")
    for name, methods in (
        ("threshold", ("minhash", "embedding")),
        ("n", ("minhash",)),
        ("model", ("embedding",)),
    ):
        if args.get(name) is not None and method not in methods:
            raise ValueError(f"{name}: only with method: {' or '.join(methods)}")
    if method == "embedding":
        if not args.get("model"):
            raise ValueError(
                "method: embedding needs a model, for instance "
                "model: sentence-transformers/all-MiniLM-L6-v2, or a folder"
            )
        _embedding.check_name(args["model"])


@checked(_fits)
def dedupe(
    groups: Iterable[Group],
    *,
    method: Literal["exact", "normalised", "minhash", "embedding"] = "normalised",
    threshold: Annotated[float, Field(ge=0.3, le=1)] | None = None,
    n: Annotated[int, Field(ge=1)] = 3,
    model: str | None = None,
) -> Iterator[Choice]:
    """Drops a candidate that repeats an earlier one of its prompt.

    Drops it as `duplicate`, or as `near_duplicate` with `minhash` and `embedding`. References come
    first, so a sample that repeats the reference is dropped. An embedding hears what a text is about
    more than which numbers it holds: for solutions that differ in their arithmetic,
    `distinct_equations` is the better judge.

    method: `exact`: the same text. `normalised`: case, spaces, punctuation and accent forms aside;
    numbers and operators count. `minhash`: sets of word n-grams that are nearly the same, as
    estimated by MinHash with 128 places. `embedding`: vectors of a language model that point in
    nearly the same direction.
    threshold: with `minhash`, the least Jaccard similarity of near duplicates (default 0.8); with
    `embedding`, the least cosine (default 0.97; no two models share a scale).
    n: with `minhash`, words in an n-gram.
    model: with `embedding`, folder (`./model`, or absolute) or hub name of any transformer; those made
    for sentences do best.
    """
    for group in groups:
        rows = in_order(group.rows)
        if method == "minhash":
            yield from _near(rows, MINHASH if threshold is None else threshold, n)
        elif method == "embedding":
            assert model
            yield from _alike(rows, EMBEDDING if threshold is None else threshold, model)
        else:
            seen: set[str] = set()
            for row in rows:
                text = row.candidate.text
                key = normalised(text) if method == "normalised" else text
                yield row, "duplicate" if key in seen else None
                seen.add(key)


def _near(rows: list[Scored], threshold: float, n: int) -> Iterator[Choice]:
    seen: set[str] = set()
    index = _minhash.Index(threshold)
    for row in rows:
        text = row.candidate.text
        one = None if text in seen else _minhash.signature(words(text), n)
        seen.add(text)
        if one is None or index.find(one) is not None:
            yield row, "near_duplicate"
        else:
            index.add(one)
            yield row, None


def _alike(rows: list[Scored], threshold: float, model: str) -> Iterator[Choice]:
    texts = list(dict.fromkeys(row.candidate.text for row in rows))
    vectors = dict(zip(texts, _embedding.encoder(model).embed(texts)))
    kept: list[Any] = []
    seen: set[str] = set()
    for row in rows:
        text = row.candidate.text
        one = vectors[text]
        # Rounding must not tell a text from itself where the threshold is 1.
        if text in seen or any(float(one @ other) >= threshold - 1e-6 for other in kept):
            yield row, "near_duplicate"
        else:
            kept.append(one)
            yield row, None
        seen.add(text)
