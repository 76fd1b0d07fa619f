"""The order of draws: what is certainly wanted first, then in the order of the data.

A draw's class says how sure it is that its prompt's rule will still want it, given the verdicts so
far (in the order of indices, up to the first sample without one):

    0   one of a prompt's first draws, made whatever the verdicts
    1   certainly wanted
    2.. less and less so, down to the class from which on it is better to wait

Within a class earlier prompts come first. So siblings are drawn together, which shares their
prefix; hard prompts, which take longest, are begun early and carried on with ahead of new ones; and
only when nothing certain is left, at the tail of a run, is something less certain sent to keep an
engine busy. Nothing is waited for while nothing is under way: if no draw is wanted then, the run is
over.
"""

from array import array
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Protocol

from rft.types import Tallies, Tally

NEVER = 255
"""The class of a draw that is not wanted."""


_RESERVE = 4
"""Prompts that are begun early at the end, for each sample under way."""


class Rule(Protocol):
    """When to draw a prompt."""

    def note(self, place: int, tally: Tally) -> None:
        """More is judged of the prompt at this place in the data."""

    def classify(self, place: int, tally: Tally) -> int:
        """The class of the prompt's next draw. NEVER where its limit is reached."""
        ...

    def renewed(self, under_way: int) -> bool:
        """Asked before each draw: whether classes may have changed otherwise than by verdicts.

        under_way: samples without a verdict, and those that wait for an earlier index's.
        """
        ...

    def affords(self, under_way: int) -> bool:
        """Asked before each draw: whether any may be made now. If not, and nothing is under way,
        the run is over."""
        ...


def draw(
    tallies: Tallies, rule: Rule, classes: int, breadth: bool = False
) -> Iterator[Tally | None]:
    """Draws until the rule wants none. classes: how many there are. breadth: every prompt's first
    draws come before any prompt's further ones.

    About log P steps a draw for P prompts, and P at the beginning and wherever the rule is renewed.
    """
    prompts: Sequence[Tally] = list(tallies)
    place_of = {tally: place for place, tally in enumerate(prompts)}
    judged = array("l", (tally.judged for tally in prompts))
    under_way = sum(tally.drawn for tally in prompts) - sum(judged)
    for place, tally in enumerate(prompts):
        if tally.judged:
            rule.note(place, tally)
    tallies.changed()  # all that is in there

    class_of = bytearray([NEVER]) * len(prompts)
    heaps: list[list[int]] = [[] for _ in range(classes)]
    # A heap holds stale places as well: those whose class has changed since.
    fresh, total = 0, len(prompts)
    note, classify, renewed, affords = rule.note, rule.classify, rule.renewed, rule.affords

    while True:
        for tally in tallies.changed():
            place = place_of[tally]
            under_way -= tally.judged - judged[place]
            judged[place] = tally.judged
            note(place, tally)
            if place < fresh:
                kind = classify(place, tally)
                if kind != class_of[place]:
                    class_of[place] = kind
                    if kind < classes:
                        heappush(heaps[kind], place)
        if renewed(under_way):
            heaps = [[] for _ in range(classes)]
            for place in range(fresh):
                kind = class_of[place] = classify(place, prompts[place])
                if kind < classes:
                    heaps[kind].append(place)

        if not affords(under_way):
            if not under_way:
                return
            yield None
            continue
        # The last new prompts are begun before others are carried on with, so that which are hard
        # is known while there is still enough to do beside them.
        new_before = 1 if breadth or total - fresh <= _RESERVE * under_way else 2
        chosen = -1
        for kind, heap in enumerate(heaps):
            if kind == new_before:
                while fresh < total and not heaps[0] and chosen < 0:
                    # Most are new and have class 0; after an interruption they may have any.
                    now = class_of[fresh] = classify(fresh, prompts[fresh])
                    if now < new_before:
                        chosen, kind, heap = fresh, now, heaps[now]
                    if now < classes:
                        heappush(heaps[now], fresh)
                    fresh += 1
                if chosen >= 0:
                    break
            while heap and class_of[heap[0]] != kind:
                heappop(heap)
            if heap:
                chosen = heap[0]
                break
        if chosen < 0:
            if not under_way:
                return
            yield None
            continue

        tally = prompts[chosen]
        yield tally
        under_way += 1
        now = classify(chosen, tally)
        if now != kind:
            class_of[chosen] = now
            if heap[0] == chosen:
                heappop(heap)
            if now < classes:
                heappush(heaps[now], chosen)
