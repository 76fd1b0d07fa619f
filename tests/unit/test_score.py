"""What becomes of verdicts: truncation, combination, faults of scorers, and the stage's folder."""

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rft import rows, scoring
from rft.rundir import StageDir
from rft.stages import score
from rft.types import Candidate, Finish, Prompt, RftError, ScoreRow, Verdict

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
    if what == "reason":
        return Score(Verdict.CORRECT, 5)
    if what == "huge":
        return Score(Verdict.CORRECT, None, None, 10**400)
    if what == "exit":
        os._exit(1)
    return Score(Verdict.WRONG)

def half_a_character(prompt, candidate):
    if candidate.text == "raise":
        raise ValueError("\\ud800")
    return Score(Verdict.CORRECT, "as:\\udfff", "x\\ud800y", True)

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
    got = [row for _, row in scoring.score_all(((prompt, c) for c in made), specs)]
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


def test_every_scorers_word_is_kept(mine: str) -> None:
    specs = [*ANSWER, {"use": f"{mine}:says", "args": {"verdict": "wrong"}}]
    right, wrong = judge(["#### 5", "#### 6"], specs)
    assert (right.verdict, right.reason, right.extracted) == (Verdict.WRONG, "wrong", "5")
    assert json.loads(right.each) == [["correct", None, "5", None], ["wrong", "wrong", None, None]]
    # The second scorer is not asked where the first has settled it.
    assert json.loads(wrong.each) == [["wrong", None, "6", None], None]
    (alone,) = judge(["#### 5"], ANSWER)
    assert alone.each == ""


def test_hanging_scorer_is_a_timeout_and_the_rest_is_fine(
    mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TIMEOUT_S", 1.0)
    begun = time.monotonic()
    got = judge(["fine", "stuck", "fine", "fine"], [{"use": f"{mine}:hangs_on_stuck", "args": {}}])
    assert time.monotonic() - begun < 20
    assert [row.verdict for row in got] == ["correct", "unknown", "correct", "correct"]
    assert [row.reason for row in got] == [None, "timeout", None, None]
    assert (got[0].extracted, got[0].value) == ("here", 0.5)


def test_faulty_scorer_costs_only_its_verdicts(mine: str) -> None:
    words = {
        "bool": "returned True",
        "word": "right",
        "number": "extracted is 5",
        "raise": "KeyError: 'Body'",
        "reason": "reason is 5",
        "huge": "value is 1000",
    }
    got = judge([*words, "exit", "fine"], [{"use": f"{mine}:odd", "args": {}}])
    assert [row.verdict for row in got] == ["unknown"] * 7 + ["wrong"]
    assert [row.reason for row in got] == ["error"] * 6 + ["crashed", None]
    for row, word in zip(got, words.values()):
        assert row.extracted and word in row.extracted


def test_text_that_is_no_unicode_is_written_as_far_as_it_is(mine: str) -> None:
    """Half of a surrogate pair, as JSON's escapes make it, can't be put into a file."""
    spec = {"use": f"{mine}:half_a_character", "args": {}}
    fine, raised = judge(["fine", "raise"], [spec])
    assert (fine.verdict, fine.reason, fine.extracted, fine.value) == ("correct", "as:?", "x?y", 1)
    assert (raised.verdict, raised.reason, raised.extracted) == (
        "unknown",
        "error",
        "ValueError: ?",
    )
    both = judge(["fine"], [spec, spec])[0]
    assert both.extracted == "x?y"


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
        "combine": {},
        "ray": {},
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


# Scorers that stream ------------------------------------------------------------------------------

STREAMS = """
from rft.types import Score, Verdict

class batched:
    whole_prompts = False

    def __init__(self, *, size: int = 3, lose: str = "", kind: str = "correct"):
        self.size, self.lose, self.kind, self.asked = size, lose, kind, 0

    def open(self, folder):
        self.folder = folder

    def stats(self):
        return {"asked": self.asked}

    def score(self, groups):
        held = []
        for prompt, candidates in groups:
            held += [(prompt, c) for c in candidates]
            while len(held) >= self.size:
                yield from self._some(held)
        while held:
            yield from self._some(held)

    def _some(self, held):
        some, held[:] = held[: self.size], held[self.size :]
        for prompt, c in reversed(some):
            self.asked += 1
            (self.folder / "asked.txt").open("a").write(c.id + "\\n")
            if c.id != self.lose:
                yield c.id, Score(Verdict(self.kind), "said", None, len(c.text) / 2)

class fails:
    whole_prompts = False

    def __init__(self, *, after: int):
        self.after = after

    def score(self, groups):
        from rft.types import RftError

        for prompt, candidates in groups:
            for c in candidates:
                if not self.after:
                    raise RftError("the server is gone")
                self.after -= 1
                yield c.id, Score(Verdict.CORRECT)

class looks:
    # Says of all at its end how many rows the stage has been given to write.

    whole_prompts = False

    def score(self, groups):
        import gc
        from rft.rows import Writer

        held = [c for _, candidates in groups for c in candidates]
        count = sum(w._count for w in gc.get_objects() if isinstance(w, Writer))
        for c in held:
            yield c.id, Score(Verdict.CORRECT, None, f"held {count}")

class whole:
    whole_prompts = True

    def score(self, groups):
        for prompt, candidates in groups:
            for c in candidates:
                yield c.id, Score(Verdict.CORRECT, None, ",".join(c.id for c in candidates))
"""


@pytest.fixture
def streams(tmp_path: Path) -> str:
    (tmp_path / "streams.py").write_text(STREAMS)
    return str(tmp_path / "streams.py")


def stage_rows(one: dict[str, Any]) -> dict[str, ScoreRow]:
    score.run([one])
    return {row.id: row for row in rows.read(Path(one["folder"]), ScoreRow)}


def test_a_stream_scorer_is_asked_only_what_is_open(tmp_path: Path, streams: str) -> None:
    one = job(tmp_path)
    one["scorers"] = [*ANSWER, {"use": f"{streams}:batched", "args": {}}]
    got = stage_rows(one)
    assert {i: str(r.verdict) for i, r in got.items()} == {
        "c0": "unknown",  # no_gold, and correct
        "c1": "correct",
        "c2": "wrong",
        "c3": "unknown",
        "c4": "unknown",
        "c5": "wrong",
    }
    assert got["c1"].value == 3.0 and got["c2"].value is None
    assert json.loads(got["c2"].each)[1] is None
    asked = (tmp_path / "score" / "asked.txt").read_text().split()
    assert sorted(asked) == ["c0", "c1", "c3"]
    manifest = StageDir(tmp_path / "score").manifest()
    assert manifest is not None
    assert manifest["scorers"] == {f"1_{streams}:batched": {"asked": 3}}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_scorers_of_both_kinds_in_any_order(
    tmp_path: Path, streams: str, mine: str, order: tuple[int, ...]
) -> None:
    one = job(tmp_path)
    specs = [
        *ANSWER,
        {"use": f"{streams}:batched", "args": {}},
        {"use": f"{mine}:says", "args": {"verdict": "correct"}},
    ]
    one["scorers"] = [specs[i] for i in order]
    got = stage_rows(one)
    assert sorted(got) == [f"c{i}" for i in range(6)]
    assert {i for i, r in got.items() if r.verdict is Verdict.CORRECT} == {"c1"}
    assert {i for i, r in got.items() if r.verdict is Verdict.WRONG} == {"c2", "c5"}
    told = json.loads(got["c1"].each)
    assert [told[order.index(i)][0] for i in range(3)] == ["correct"] * 3


def test_whole_prompts_come_at_once_and_without_the_truncated(tmp_path: Path, streams: str) -> None:
    one = job(tmp_path)
    one["scorers"] = [{"use": f"{streams}:whole", "args": {}}]
    got = stage_rows(one)
    assert {i: r.extracted for i, r in got.items()} == {
        "c0": "c0,c3",
        "c3": "c0,c3",
        "c1": "c1",
        "c4": None,
        "c2": "c2,c5",
        "c5": "c2,c5",
    }


def test_whole_prompts_of_no_candidates_or_of_truncated_ones_only(
    tmp_path: Path, streams: str
) -> None:
    one = job(tmp_path)
    one["scorers"] = [{"use": f"{streams}:whole", "args": {}}]
    one["sample"] = str(tmp_path / "empty")
    assert stage_rows(one) == {}
    cut = [Candidate(f"c{i}", "p0", i, "", (), (), Finish.LENGTH) for i in range(2)]
    rows.write_part(tmp_path / "cut", cut, Candidate)
    (tmp_path / "score2").mkdir()
    one |= {"sample": str(tmp_path / "cut"), "folder": str(tmp_path / "score2")}
    assert {r.reason for r in stage_rows(one).values()} == {"truncated"}


@pytest.mark.parametrize("kind", ["batched", "whole"])
def test_a_prompt_in_pieces_by_the_size_of_chunks(
    tmp_path: Path, streams: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(tmp_path)
    made = [Candidate(f"d{i}", f"p{i % 2}", i, "", (), (), Finish.STOP) for i in range(40)]
    rows.write_part(tmp_path / "sample", made, Candidate)
    one["scorers"] = [{"use": f"{streams}:{kind}", "args": {}}]
    monkeypatch.setattr(scoring.Pace, "rows", lambda self: 3)
    got = stage_rows(one)
    assert len(got) == 46
    if kind == "whole":
        assert {len((r.extracted or "").split(",")) for r in got.values() if r.extracted} == {
            22,
            21,
            2,
        }


def test_a_stream_scorer_that_stops_in_the_middle_keeps_what_it_said(
    tmp_path: Path, streams: str
) -> None:
    one = job(tmp_path)
    one["scorers"] = [{"use": f"{streams}:fails", "args": {"after": 2}}]
    with pytest.raises(RftError, match="the server is gone"):
        score.run([one])
    kept = {row.id: row for row in rows.read(tmp_path / "score", ScoreRow)}
    assert {str(r.verdict) for i, r in kept.items() if i != "c4"} == {"correct"}
    assert len(kept) == 3  # two, and the truncated one
    one["scorers"] = [{"use": f"{streams}:fails", "args": {"after": 100}}]
    got = stage_rows(one)
    assert len(got) == 6 and {i: got[i] for i in kept} == kept
    written = [i for p in rows.parts(tmp_path / "score") for i in ids_of(p)]
    assert len(written) == 6


def test_whole_prompts_after_a_kill(tmp_path: Path, streams: str) -> None:
    """A prompt of which some verdicts were written is looked at as a whole again."""
    one = job(tmp_path)
    one["scorers"] = [*ANSWER, {"use": f"{streams}:whole", "args": {}}]
    one["combine"] = {"rule": "first"}
    kept = ScoreRow("c3", "p0", Verdict.WRONG, "kept", None, None, "")
    rows.write_part(tmp_path / "score", [kept], ScoreRow)
    got = stage_rows(one)
    assert len(got) == 6 and got["c3"] == kept
    assert got["c0"].extracted == "c0,c3"
    written = [i for p in rows.parts(tmp_path / "score") for i in ids_of(p)]
    assert len(written) == 6


def test_a_stream_scorer_that_loses_or_makes_up_a_candidate(tmp_path: Path, streams: str) -> None:
    one = job(tmp_path)
    one["scorers"] = [{"use": f"{streams}:batched", "args": {"lose": "c2"}}]
    with pytest.raises(RftError, match="gave no score for 1 candidates, for instance c2"):
        score.run([one])
    assert StageDir(tmp_path / "score").manifest() is None
    one["scorers"] = [{"use": f"{streams}:batched", "args": {}}]
    assert len(stage_rows(one)) == 6


def test_what_is_settled_does_not_wait_for_a_scorer_that_is_not_asked(
    tmp_path: Path, streams: str
) -> None:
    """A judge may be asked of one candidate in a thousand; the others are written meanwhile."""
    one = job(tmp_path)
    made = [Candidate(f"d{i}", "p1", i, "#### 1", (), (), Finish.STOP) for i in range(3000)]
    rows.write_part(tmp_path / "sample", made, Candidate)
    one["scorers"] = [*ANSWER, {"use": f"{streams}:looks", "args": {}}]
    one["combine"] = {"rule": "first"}
    got = stage_rows(one)
    assert len(got) == 3006
    # Of all but the two without a gold answer, before the scorer has said a word.
    (told,) = {r.extracted for r in got.values() if r.extracted and r.extracted.startswith("held")}
    assert told == "held 3004"


@pytest.mark.parametrize("first", ["batched", "whole"])
def test_what_is_settled_still_counts_for_a_later_scorer_of_whole_prompts(
    tmp_path: Path, streams: str, mine: str, first: str
) -> None:
    one = job(tmp_path)
    one["scorers"] = [
        *ANSWER,
        {"use": f"{streams}:{first}", "args": {}},
        {"use": f"{streams}:whole", "args": {}},
        {"use": f"{mine}:says", "args": {"verdict": "correct"}},
    ]
    got = stage_rows(one)
    assert sorted(got) == [f"c{i}" for i in range(6)]
    assert {i for i, r in got.items() if r.verdict is Verdict.CORRECT} == {"c1"}
    assert {i for i, r in got.items() if r.verdict is Verdict.WRONG} == {"c2", "c5"}


# Beside the sample stage --------------------------------------------------------------------------


def test_stages_with_the_same_scorers_share_their_workers(tmp_path: Path) -> None:
    jobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        jobs.append(job(tmp_path / name))
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "from rft.types import Score, Verdict\n"
        "def mine(prompt, candidate):\n"
        "    return Score(Verdict.CORRECT, None, str(os.getpid()))\n"
    )
    for one in jobs:
        one["scorers"] = [{"use": f"{tmp_path}/mine.py:mine", "args": {}}]
    score.run(jobs)
    pids = [
        {r.extracted for r in rows.read(tmp_path / name / "score", ScoreRow) if r.extracted}
        for name in ("a", "b")
    ]
    assert 1 <= len(pids[0] | pids[1]) <= len(os.sched_getaffinity(0))
    for one in jobs:
        manifest = StageDir(Path(one["folder"])).manifest()
        assert manifest is not None and manifest["rows"] == 6


def test_a_chunk_travels_alone() -> None:
    """A slice of a batch must not take the whole batch along."""
    made = rows.table([candidate(i, f"#### {i}") for i in range(2000)], Candidate)
    batch = made.select(scoring.COLUMNS).combine_chunks().to_batches()[0]
    chunk = scoring.Chunk({"p": Prompt("p", "?", "5")}, batch, 3)
    part = pickle.loads(pickle.dumps(chunk[100:110]))
    assert len(pickle.dumps(chunk[100:110])) < 5000
    assert (part.prompts, part.stage) == (chunk.prompts, 3)
    assert part.batch.to_pylist() == batch.to_pylist()[100:110]


def test_consensus_behind_another_scorer_hears_all(tmp_path: Path) -> None:
    """Else what `answer` left open would vote among itself: here three answers of half a percent."""
    gold = Prompt("p", "What share?", "50%")
    texts = ["#### 50%"] * 5 + ["#### 0.5"] * 3
    rows.write_part(tmp_path / "prompts", [gold], Prompt)
    rows.write_part(tmp_path / "sample", [candidate(i, t) for i, t in enumerate(texts)], Candidate)
    (tmp_path / "score").mkdir()
    one = {
        "folder": str(tmp_path / "score"),
        "label": "score",
        "prompts": str(tmp_path / "prompts"),
        "sample": str(tmp_path / "sample"),
        "scorers": [*ANSWER, {"use": "consensus", "args": {}}],
        "combine": {"rule": "first"},
        "ray": {},
    }
    got = stage_rows(one)
    assert [got[f"c{i}"].verdict for i in range(5)] == ["correct"] * 5
    assert all(got[f"c{i}"].verdict is not Verdict.CORRECT for i in range(5, 8))
    assert all(json.loads(got[f"c{i}"].each)[1] is None for i in range(5))
