"""What becomes of verdicts: truncation, combination, faults of scorers, and the stage's folder."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rft import rows
from rft.rundir import StageDir
from rft.stages import score
from rft.types import Candidate, Finish, Prompt, RftError, Score, ScoreRow, Verdict

SCORERS = """
import re, os
from rft.types import Score, Verdict

def hangs_on_stuck(prompt, candidate):
    if "stuck" in candidate.text:
        re.match(r"(a+)+$", "a" * 60 + "b")
    return Score(Verdict.CORRECT, None, "here", 0.5)

def odd(prompt, candidate):
    what = candidate.text
    if what == "bool":
        return True
    if what == "word":
        return Score("right")
    if what == "number":
        return Score(Verdict.CORRECT, None, 5)
    if what == "raise":
        raise KeyError("Body")
    if what == "exit":
        os._exit(1)
    return Score(Verdict.WRONG)

def says(prompt, candidate, *, verdict):
    return Score(Verdict(verdict), verdict)
"""
ANSWER = [{"use": "answer", "args": {}}]


def candidate(i: int, text: str, finish: Finish = Finish.STOP) -> Candidate:
    return Candidate(f"c{i}", "p", i, text, (), (), finish)


def judge(texts: list[Any], specs: list[dict[str, Any]]) -> list[ScoreRow]:
    """Score rows in the order of the texts; a tuple is (text, finish)."""
    prompt = Prompt("p", "?", "5")
    made = [candidate(i, *(t if isinstance(t, tuple) else (t,))) for i, t in enumerate(texts)]
    got = [row for _, row in score.score_all(((prompt, c) for c in made), specs)]
    assert sorted(row.id for row in got) == sorted(c.id for c in made)
    by_id = {row.id: row for row in got}
    return [by_id[c.id] for c in made]


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "scorers.py").write_text(SCORERS)
    return str(tmp_path / "scorers.py")


def test_truncated_is_never_correct() -> None:
    texts = [("#### 5", finish) for finish in Finish]
    got = dict(zip(Finish, judge(texts, ANSWER)))
    assert got[Finish.STOP].verdict is Verdict.CORRECT
    assert got[Finish.REFERENCE].verdict is Verdict.CORRECT
    assert (got[Finish.LENGTH].verdict, got[Finish.LENGTH].reason) == (Verdict.UNKNOWN, "truncated")
    assert got[Finish.LENGTH].extracted is None


def test_only_truncated_ones() -> None:
    got = judge([("#### 5", Finish.LENGTH)] * 3, ANSWER)
    assert [row.reason for row in got] == ["truncated"] * 3


KLEENE = {
    # All correct: correct. Any wrong: wrong. Else unknown.
    ("correct", "correct"): "correct",
    ("correct", "wrong"): "wrong",
    ("correct", "unknown"): "unknown",
    ("wrong", "correct"): "wrong",
    ("wrong", "wrong"): "wrong",
    ("wrong", "unknown"): "wrong",
    ("unknown", "correct"): "unknown",
    ("unknown", "wrong"): "wrong",
    ("unknown", "unknown"): "unknown",
}


def test_combination_is_kleenes() -> None:
    assert set(KLEENE) == set(itertools.product(map(str, Verdict), repeat=2))
    for pair, verdict in KLEENE.items():
        scores = [Score(Verdict(v), reason=f"{i} {v}") for i, v in enumerate(pair)]
        got = score.combine(scores)
        assert got.verdict == verdict, pair
        # The reason is of the first scorer that gave the verdict.
        assert got.reason == f"{pair.index(verdict)} {verdict}"
        one = score.combine(scores[:1])
        assert one is scores[0]


def test_every_scorers_word_is_kept(mine: str) -> None:
    specs = [*ANSWER, {"use": f"{mine}:says", "args": {"verdict": "wrong"}}]
    (row,) = judge(["#### 5"], specs)
    assert (row.verdict, row.reason) == (Verdict.WRONG, "wrong")
    assert json.loads(row.each) == [["correct", None, "5", None], ["wrong", "wrong", None, None]]


def test_hanging_scorer_is_a_timeout_and_the_rest_is_fine(
    mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "TIMEOUT_S", 1.0)
    begun = time.monotonic()
    got = judge(["fine", "stuck", "fine", "fine"], [{"use": f"{mine}:hangs_on_stuck", "args": {}}])
    assert time.monotonic() - begun < 20
    assert [row.verdict for row in got] == ["correct", "unknown", "correct", "correct"]
    assert [row.reason for row in got] == [None, "timeout", None, None]
    assert (got[0].extracted, got[0].value) == ("here", 0.5)


def test_faulty_scorer_costs_only_its_verdicts(mine: str) -> None:
    texts = ["bool", "word", "number", "raise", "exit", "fine"]
    got = judge(texts, [{"use": f"{mine}:odd", "args": {}}])
    assert [row.verdict for row in got] == ["unknown"] * 5 + ["wrong"]
    assert [row.reason for row in got] == ["error"] * 4 + ["crashed", None]
    for row, word in zip(got, ["returned True", "right", "extracted is 5", "KeyError: 'Body'"]):
        assert row.extracted and word in row.extracted


def test_wrong_arguments_stop_the_stage() -> None:
    with pytest.raises(RftError, match="takes no argument 'markr'; did you mean marker"):
        judge(["#### 5"], [{"use": "answer", "args": {"markr": "x"}}])


def job(root: Path, count: int = 6) -> dict[str, Any]:
    prompts = [Prompt(f"p{i}", f"{i}?", str(i) if i else None) for i in range(3)]
    made = [
        Candidate(
            f"c{i}",
            f"p{i % 3}",
            i,
            "#### 1",
            (1, 2),
            (3,),
            Finish.LENGTH if i == 4 else Finish.STOP,
        )
        for i in range(count)
    ]
    rows.write_part(root / "prompts", prompts, Prompt)
    rows.write_part(root / "sample", made[:2], Candidate)
    rows.write_part(root / "sample", made[2:], Candidate)
    (root / "score").mkdir()
    return {
        "folder": str(root / "score"),
        "label": "score",
        "prompts": str(root / "prompts"),
        "sample": str(root / "sample"),
        "scorers": ANSWER,
    }


def ids_of(part: Path) -> list[str]:
    got: list[str] = pq.read_table(part, columns=["id"]).column(0).to_pylist()
    return got


def test_verdicts_and_candidates_are_one_for_one(tmp_path: Path) -> None:
    one = job(tmp_path)
    stray = ScoreRow("stray", "p1", Verdict.CORRECT, None, None, None, "[]")
    rows.write_part(tmp_path / "score", [stray], ScoreRow)
    with pytest.raises(RftError, match="7 verdicts on disk for 6 candidates"):
        score.run([one])
    assert StageDir(tmp_path / "score").manifest() is None


def test_stage(tmp_path: Path) -> None:
    one = job(tmp_path)
    score.run([one])
    got = {row.id: row for row in rows.read(tmp_path / "score", ScoreRow)}
    assert {i: (str(r.verdict), r.reason) for i, r in got.items()} == {
        "c0": ("unknown", "no_gold"),
        "c1": ("correct", None),
        "c2": ("wrong", None),
        "c3": ("unknown", "no_gold"),
        "c4": ("unknown", "truncated"),
        "c5": ("wrong", None),
    }
    manifest = StageDir(tmp_path / "score").manifest()
    assert manifest is not None
    assert manifest["verdicts"] == {"unknown": 3, "correct": 1, "wrong": 2}
    assert manifest["unknown"] == {"no_gold": 2, "truncated": 1}
    assert manifest["funnel"] == {"in": 6, "out": 6, "dropped": {}}


def test_stage_goes_on_where_it_was_killed_and_is_not_done_twice(tmp_path: Path) -> None:
    one = job(tmp_path)
    kept = ScoreRow("c1", "p1", Verdict.WRONG, "kept", None, None, "[]")
    rows.write_part(tmp_path / "score", [kept], ScoreRow)
    score.run([one])
    got = {row.id: row for row in rows.read(tmp_path / "score", ScoreRow)}
    assert len(got) == 6 and got["c1"] == kept
    written = [i for p in rows.parts(tmp_path / "score") for i in ids_of(p)]
    assert len(written) == 6, "a candidate was scored twice"
    parts = rows.parts(tmp_path / "score")
    score.run([one])
    assert rows.parts(tmp_path / "score") == parts
