"""What a hostile candidate is, and the marks by which its traces are found."""

from collections.abc import Callable
from dataclasses import dataclass, field

CORRECT, WRONG, UNKNOWN = "correct", "wrong", "unknown"

NOT_CORRECT = frozenset({WRONG, UNKNOWN})
"""For a text that must not be trained on, whatever else is said of it."""
RIGHT = frozenset({CORRECT, UNKNOWN})
"""For a right answer in a form that a scorer may give up on, but must not call wrong."""
ANY = frozenset({CORRECT, WRONG, UNKNOWN})
"""For a text that has no verdict, or does its work and something else beside it: what counts is that
it harms nothing."""
SURE = frozenset({CORRECT})

MARK = "rft-hostile-mark"
"""Part of the name of every file that a candidate tries to leave somewhere."""
SLEEP = "98754321"
"""Seconds that a process which wants to stay behind sleeps: its command line tells it."""


@dataclass(frozen=True)
class Case:
    name: str
    kind: str
    text: str | Callable[[], str]
    """Built at run time where it is large. `@PORT@`, `@CANARY@` and `@HOME@` stand for a port that
    must see no connection, a file that must not change, and the home folder."""
    expect: dict[str, frozenset[str]]
    """Scorer -> verdicts that are right."""
    why: str
    gold: str | None = "18"
    tests: str | None = None
    question: str = "How many eggs does she sell?"
    known: dict[str, str] = field(default_factory=dict)
    """Scorer -> why it calls this correct though it should not: a limit that is written down."""

    def build(self, **places: str) -> str:
        text = self.text if isinstance(self.text, str) else self.text()
        for name, value in places.items():
            text = text.replace(f"@{name.upper()}@", value)
        return text
