"""Draws each prompt until it has enough different right answers, or more are not worth their
tokens.

A uniform n spends most of its tokens on prompts that have long been solved and on those that never
will be. Here a prompt stops at its target, and is given up when what its verdicts say of it (and
the pool's say of prompts like it) no longer promises another answer for the price: see
rft/allocators/_stopping.py for the rule, `_beliefs.py` for what it believes, `_queue.py` for the
order of draws.
"""

from collections.abc import Iterator

from rft.allocators._pool import CLASSES, Pool, check
from rft.allocators._queue import draw
from rft.types import RftError, Tallies, Tally


def adaptive(
    tallies: Tallies, *, target: int = 4, price: float = 32.0, first: int = 4
) -> Iterator[Tally | None]:
    """target: distinct right answers (`sample.distinct`) after which a prompt is done.

    price: a prompt is given up when one more right answer is expected to cost more than this. The
    unit is the cost of an average draw in this pool. Most answers cost less; only the last ones
    cost about the price. In simulated pools
    (scripts/bench/adaptive.py) a price of r covered as much as a uniform n of 0.7 r to 1.8 r.

    first: draws that every prompt gets whatever their verdicts. The first `first` indices of all
    prompts are then a sample like a uniform one, and pass@k can be told from them for k <= first
    (`rft.stats.first_pass_at_k`), but not from the rest.

    `sample.n` bounds the draws of a prompt, at 4,096 at most: give it several times the n that you
    would draw of every prompt, since hard prompts get what easy ones save.
    """
    check(target, first)
    if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 < price < 1e6:
        raise RftError(
            f"sample.allocate.args.price: {price!r} is not a number of draws between 0 and a "
            "million; 32 is usual"
        )
    return draw(tallies, Pool(tallies, target, first, float(price)), CLASSES)
