"""Drops repeated answers of one prompt, word for word or nearly so."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from rft.prompts import normalised
from rft.selectors import _minhash
from rft.selectors._common import checked, in_order
from rft.types import Choice, Group


def _fits(args: dict[str, Any]) -> None:
    others = [name for name in ("threshold", "n") if name in args]
    if others and args.get("method", "normalised") != "minhash":
        raise ValueError(f"{', '.join(others)}: only with method: minhash")


@checked(_fits)
def dedupe(
    groups: Iterable[Group],
    *,
    method: Literal["exact", "normalised", "minhash"] = "normalised",
    threshold: Annotated[float, Field(ge=0.3, le=1)] = 0.8,
    n: Annotated[int, Field(ge=1)] = 3,
) -> Iterator[Choice]:
    """Drops a candidate that repeats an earlier one of its prompt.

    Drops it as `duplicate`, or as `near_duplicate` with `minhash`. References come first, so a
    sample that repeats the reference is dropped. Likeness in meaning (embeddings) is not looked at:
    that takes a model, and a threshold that no two models share.

    method: `exact`: the same text. `normalised`: case, spaces, punctuation and accent forms aside;
    numbers and operators count. `minhash`: sets of word n-grams that are nearly the same, as
    estimated by MinHash with 128 places.
    threshold: with `minhash`, the least Jaccard similarity of near duplicates.
    n: with `minhash`, words in an n-gram.
    """
    for group in groups:
        seen: set[str] = set()
        index = _minhash.Index(threshold)
        for row in in_order(group.rows):
            text = row.candidate.text
            key = normalised(text) if method == "normalised" else text
            if key in seen:
                yield row, "near_duplicate" if method == "minhash" else "duplicate"
                continue
            seen.add(key)
            if method == "minhash":
                one = _minhash.signature(_minhash.words(text), n)
                if index.find(one) is not None:
                    yield row, "near_duplicate"
                    continue
                index.add(one)
            yield row, None
