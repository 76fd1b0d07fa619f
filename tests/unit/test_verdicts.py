"""Scoring beside something else: verdicts as they come, faults, and an end in any case."""

import time
from pathlib import Path

import psutil
import pytest

from rft.config import Combine
from rft.types import Candidate, Finish, Prompt
from rft.verdicts import Beside

PROMPT = Prompt("p", "How many?", "7")
OWN = """
import time
from rft.types import Score, Verdict

def stuck(prompt, candidate):
    while True:
        time.sleep(1)

class cannot:
    def __init__(self):
        raise ValueError("there is no list of words")
    def __call__(self, prompt, candidate): ...
"""


def give(beside: Beside, *texts: str, finish: Finish = Finish.STOP, stage: int = 0) -> None:
    for i, text in enumerate(texts):
        beside.give(stage, PROMPT, Candidate(f"{stage}{i}{text}", "p", i, text, (1,), (2,), finish))


def take(beside: Beside, count: int, seconds: float = 60) -> dict[str, tuple[int, str, str | None]]:
    """So many verdicts: (stage, verdict, reason) by id."""
    found: dict[str, tuple[int, str, str | None]] = {}
    until = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < until and not beside.fault:
        for stage, batch in beside.take(wait_s=0.1):
            columns = [batch.column(name).to_pylist() for name in ("id", "verdict", "reason")]
            found.update((id, (stage, *told)) for id, *told in zip(*columns))
    return found


def test_verdicts_come_while_more_may_be_asked_for() -> None:
    beside = Beside([{"use": "answer", "args": {}}], Combine())
    try:
        give(beside, "#### 7", "#### 8")
        assert take(beside, 2) == {"00#### 7": (0, "correct", None), "01#### 8": (0, "wrong", None)}
        give(beside, "#### 7", finish=Finish.LENGTH, stage=1)
        give(beside, "#### 9", stage=2)
        assert take(beside, 2) == {
            "10#### 7": (1, "unknown", "truncated"),
            "20#### 9": (2, "wrong", None),
        }
        assert beside.pending == 0 and beside.take() == []
    finally:
        beside.close()


def test_scorer_that_cannot_be_made_is_a_fault_and_leaves_nothing_waiting(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    beside = Beside([{"use": f"{tmp_path}/own.py:cannot", "args": {}}], Combine())
    give(beside, "#### 7")
    assert take(beside, 1) == {}
    with pytest.raises(Exception, match="there is no list of words"):
        raise beside.fault or AssertionError("no fault")
    beside.take(wait_s=1)
    assert beside.pending == 0
    give(beside, "#### 8")
    assert beside.pending == 0
    beside.close()


def test_closing_does_not_wait_for_a_stuck_scorer(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    beside = Beside([{"use": f"{tmp_path}/own.py:stuck", "args": {}}], Combine())
    give(beside, "#### 7")
    until = time.monotonic() + 60
    while not psutil.Process().children() and time.monotonic() < until:
        time.sleep(0.05)
    began = time.monotonic()
    beside.close()
    assert time.monotonic() - began < 5
