"""Keeps one candidate for each distinct way of calculating.

The RFT paper (arXiv 2308.01825, section 3.2) keeps a sampled path only if its list of equations is
new, and finds that the number of distinct paths, not of samples, carries the gain. Here the key is
the set of a text's equations in canonical form, so that 3 + 4 = 7 and 4 + 3 = 7 are one way unless
`commutative: false` says otherwise. `diverse` is the paper's own choice among those that are alike.
"""

from collections.abc import Iterable, Iterator

from rft.equations import equations
from rft.selectors._common import in_order
from rft.types import Choice, Group


def distinct_equations(groups: Iterable[Group], *, commutative: bool = True) -> Iterator[Choice]:
    """Drops a candidate as `same_equations` if an earlier one of its prompt has the same equations.

    References come first in a group, so a sample that repeats the reference's way is dropped. A
    text without equations is compared by its words.

    commutative: count 3 + 4 = 7 and 4 + 3 = 7 as the same equation.
    """
    for group in groups:
        seen: set[frozenset[str]] = set()
        for row in in_order(group.rows):
            found = frozenset(equations(row.candidate.text, commutative))
            key = found or frozenset([" ".join(row.candidate.text.split())])
            yield row, "same_equations" if key in seen else None
            seen.add(key)
