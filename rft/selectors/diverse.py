"""Keeps answers that differ from one another: the RFT paper's choice, and farthest points.

The paper (arXiv 2308.01825, and `collect_rejection_sampling.py` of OFA-Sys/gsm8k-ScRel) goes through
a prompt's correct paths one by one. A path with a new list of equations is selected. One whose list
is there already takes the place of the path that has it, if the sum of its Levenshtein distances to
the other selected paths is larger. The choice here is the same for the same order, which is that of
the samples' indices. It is made faster by keeping the distances between selected paths, where the
paper's code computes both sums anew for every path, and by rapidfuzz's bit-parallel distance.

Apart from the paper: a text without equations is compared by its words, where the paper takes all
such texts for one; and nothing is dropped for an equation that does not hold, which is a scorer's
business.
"""

from collections.abc import Hashable, Iterable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from rft.equations import equations
from rft.selectors._common import checked, in_order
from rft.types import Choice, Group


def _fits(args: dict[str, Any]) -> None:
    if args.get("by") == "edit" and args.get("k") is None:
        raise ValueError("by edit needs the argument k: every text is as far as it is")
    if args.get("by") == "edit" and "commutative" in args:
        raise ValueError("commutative: only by equations")


@checked(_fits)
def diverse(
    groups: Iterable[Group],
    *,
    by: Literal["equations", "edit"] = "equations",
    k: Annotated[int | None, Field(ge=1)] = None,
    commutative: bool = False,
) -> Iterator[Choice]:
    """Keeps sampled candidates of each prompt that are far from one another; references stay.

    By equations it keeps one candidate for each list of equations, of those with the same list the
    one with the largest sum of edit distances to the others kept: the RFT paper's selection. It
    drops the others as `same_equations`. References play no part in that, as in the paper.

    With `k` it then keeps the farthest k, and drops the others as `not_far`: one after the other the
    candidate with the largest sum of edit distances to those already kept, references included; the
    first, where there is no reference, is the first sample. Ties go to the earlier sample.

    by: `equations`, or `edit` for the farthest k whatever their equations.
    k: most sampled candidates to keep of one prompt; null keeps one for each list of equations.
    commutative: count 3 + 4 = 7 and 4 + 3 = 7 as the same equation, which the paper does not.
    """
    for group in groups:
        rows = in_order(group.rows)
        texts = [row.candidate.text for row in rows]
        reference = [i for i, row in enumerate(rows) if row.is_reference]
        left = [i for i, row in enumerate(rows) if not row.is_reference]
        if by == "equations":
            keys = [_key(texts[i], commutative) for i in left]
            left = [left[i] for i in representatives([texts[i] for i in left], keys)]
        kept = set(left)
        if k is not None and len(left) > k:
            fixed = [texts[i] for i in reference]
            kept = {left[i] for i in farthest([texts[i] for i in left], k, fixed)}
        distinct = set(left)
        for i, row in enumerate(rows):
            if row.is_reference or i in kept:
                yield row, None
            else:
                yield row, "not_far" if i in distinct else "same_equations"


def _key(text: str, commutative: bool) -> Hashable:
    return equations(text, commutative) or " ".join(text.split())


def _distances(text: str, others: list[str]) -> Any:
    """int64 [len(others)] edit distances in characters."""
    return cdist([text], others, scorer=Levenshtein.distance, dtype=np.int64)[0]


def representatives(texts: list[str], keys: list[Hashable]) -> list[int]:
    """Positions of one text for each key, as the paper selects them, in ascending order."""
    slots: dict[Hashable, int] = {}
    chosen: list[int] = []
    between = np.zeros((len(set(keys)),) * 2, dtype=np.int64)
    for i, key in enumerate(keys):
        slot = slots.get(key)
        # With nothing else selected both sums are 0, and for the same text they are equal.
        if slot is not None and (len(chosen) == 1 or texts[i] == texts[chosen[slot]]):
            continue
        away = _distances(texts[i], [texts[j] for j in chosen]) if chosen else between[0, :0]
        if slot is None:
            slot = slots[key] = len(chosen)
            chosen.append(i)
        else:
            away[slot] = 0
            if away.sum() <= between[slot].sum():
                continue
            chosen[slot] = i
        between[slot, : len(away)] = between[: len(away), slot] = away
    return sorted(chosen)


def farthest(texts: list[str], k: int, fixed: list[str]) -> list[int]:
    """Positions of k texts, each the farthest in sum from `fixed` and from those before it."""
    chosen: list[int] = []
    sums = np.zeros(len(texts), dtype=np.int64)
    for text in fixed:
        sums += _distances(text, texts)
    while len(chosen) < min(k, len(texts)):
        open_ = np.ones(len(texts), dtype=bool)
        open_[chosen] = False
        # argmax takes the first of equals, so without `fixed` it begins with the first text.
        chosen.append(int(np.where(open_, sums, -1).argmax()))
        sums += _distances(texts[chosen[-1]], texts)
    return chosen
