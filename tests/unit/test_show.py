"""`rft show` on a small run: every row with its question and text, found quickly and shown safely."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rft import rows, rundir, show
from rft.types import (
    Candidate,
    ChoiceRow,
    Finish,
    ProblemRow,
    Prompt,
    RftError,
    ScoreRow,
    TrainRow,
    Verdict,
)

HOSTILE = "[bold]loud[/bold] [/] :x: \x1b[31mred\x07\u202e"
IDS = tuple(range(70001, 70041))
"""Token ids of every candidate: more than fit in a line, and found nowhere else."""


def stage(run: Path, name: str, *links: str, **parts: list[Any]) -> Path:
    """Writes a finished stage; parts: rows by folder within it, `_` for the stage's own."""
    folder = run / "stages" / name
    rundir.StageDir(folder).begin(name.split("-")[0], {"name": name})
    for inner, part in parts.items():
        rows.write_part(folder / inner if inner != "_" else folder, part, type(part[0]))
    rundir.StageDir(folder).commit(1.0, rows=sum(map(len, parts.values())))
    for link in links:
        rundir.link(run / link, folder)
    return folder


def candidate(name: str, prompt: str, index: int, text: str, finish: str = "stop") -> Candidate:
    logprobs = tuple(-0.125 for _ in IDS)
    return Candidate(name, prompt, index, text, (81, 82), IDS, Finish(finish), -2.5, logprobs)


def verdict(name: str, prompt: str, verdict: str, reason: str | None = None) -> ScoreRow:
    return ScoreRow(name, prompt, Verdict(verdict), reason, "7", None, "[]")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two arms that share their candidates and choose differently. `chance` comes first."""
    run, both = tmp_path / "run", ("chance/seed0", "rft/seed0")
    rows.write_bytes(run / "rft/seed0/config.yaml", b"name: x\n")
    stage(
        run,
        "prompts-1",
        *(f"{arm}/1_prompts" for arm in both),
        train=[Prompt("q1", "How many shells?", "goldA"), Prompt("q2", "How many cards?")],
        eval=[Prompt("q3", "How many kites?", "goldB")],
    )
    stage(
        run,
        "sample-1",
        *(f"{arm}/2_sample" for arm in both),
        _=[
            candidate("c1", "q1", 0, "right text"),
            candidate("c2", "q1", 1, "wrong text"),
            candidate("c3", "q2", 0, HOSTILE, "length"),
        ],
    )
    stage(
        run,
        "score-1",
        *(f"{arm}/3_score" for arm in both),
        _=[
            verdict("c1", "q1", "correct"),
            verdict("c2", "q1", "wrong"),
            verdict("c3", "q2", "unknown", "truncated"),
        ],
    )
    reference = candidate("r1", "q1", 0, "worked solution", "reference")
    stage(run, "sample-2", "rft/seed0/2_sample_reference", _=[reference])
    stage(run, "score-2", "rft/seed0/3_score_reference", _=[verdict("r1", "q1", "correct")])
    stage(
        run,
        "select-1",
        "rft/seed0/4_select",
        choices=[
            ChoiceRow("r1", "q1", None),
            ChoiceRow("c1", "q1", None),
            ChoiceRow("c2", "q1", "wrong"),
            ChoiceRow("c3", "q2", "unverified"),
        ],
        train=[TrainRow("r1", "q1", (81,), IDS, True), TrainRow("c1", "q1", (81,), IDS, False)],
    )
    stage(
        run,
        "select-2",
        "chance/seed0/4_select",
        choices=[ChoiceRow("c1", "q1", "not_drawn"), ChoiceRow("c2", "q1", None)],
        train=[TrainRow("c2", "q1", (81,), IDS, False)],
    )
    stage(
        run,
        "sample-3",
        "rft/seed0/6_eval_sample",
        # Files hold candidates in the order they finished.
        _=[candidate("e2", "q3", 1, "second try"), candidate("e1", "q3", 0, "first try")],
    )
    stage(
        run,
        "score-3",
        "rft/seed0/6_eval_score",
        _=[verdict("e1", "q3", "correct"), verdict("e2", "q3", "unknown", "unparsed")],
    )
    problem = ProblemRow("q3", 2, 1, 1, 0, ("7", ""), (True, False), 80)
    stage(run, "eval-3", "rft/seed0/6_eval", _=[problem])
    return run


Told = Callable[..., str]


@pytest.fixture
def told(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """What `show` prints: told(stage, id)."""
    monkeypatch.setenv("COLUMNS", "200")

    def told(
        name: str | None = None, row_id: str | None = None, count: int = 5, **more: bool
    ) -> str:
        show.show(run, name, row_id, count, **more)
        return capsys.readouterr().out

    return told


def cards(text: str) -> list[dict[str, str]]:
    """The printed rows as {name: first line of its value}, in order."""
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        name, colon, value = line[:20].strip(), line[18:20], line[20:]
        if line.endswith("\u2500"):
            found.append({})
        elif colon == ": " and name.endswith(":"):
            found[-1][name[:-1]] = value
    return [card for card in found if card]


SHELLS = {"prompt_id": "q1", "question": "How many shells?", "gold": "goldA"}
C1 = {**SHELLS, "id": "c1", "text": "right text", "finish": "stop", "verdict": "correct"}
C2 = {**SHELLS, "id": "c2", "text": "wrong text", "finish": "stop", "verdict": "wrong"}


@pytest.mark.parametrize("name", ["2_sample", "3_score"])
def test_candidate_and_score_rows_tell_everything(told: Told, name: str) -> None:
    one, two, three = cards(told(f"rft/seed0/{name}"))
    assert one.items() >= {**C1, "selection": "kept by rft/seed0"}.items()
    assert two.items() >= {**C2, "selection": "dropped by rft/seed0: wrong"}.items()
    missing = {"verdict": "unknown", "reason": "truncated", "finish": "length"}
    assert three.items() >= {**missing, "question": "How many cards?"}.items()
    assert "gold" not in three
    order = list(one)
    assert order.index("question") < order.index("gold") < order.index("text")


def test_select_rows_have_text_verdict_and_choice(told: Told) -> None:
    text = told("rft/seed0/4_select")
    reference, kept, *choices = cards(text)
    assert reference["text"] == "worked solution" and reference["is_reference"] == "True"
    assert kept.items() >= {**C1, "selection": "kept by rft/seed0"}.items()
    assert [c["id"] for c in choices] == ["r1", "c1", "c2", "c3"]
    assert choices[0]["text"] == "worked solution" and choices[0]["verdict"] == "correct"
    assert choices[2].items() >= {**C2, "selection": "dropped by rft/seed0: wrong"}.items()
    # The verdict's reason and the selector's stand side by side.
    assert choices[3]["reason"] == "truncated"
    assert choices[3]["selection"] == "dropped by rft/seed0: unverified"


def test_eval_row_has_its_samples_in_order(told: Told) -> None:
    problem, first, second = cards(told("eval", "q3"))
    assert problem["question"] == "How many kites?" and problem["gold"] == "goldB"
    assert problem["n"] == "2" and problem["hits"] == "True False"
    assert first["text"] == "first try" and first["verdict"] == "correct"
    assert second["text"] == "second try" and second["reason"] == "unparsed"
    text = told("eval", "q3", 1)
    assert "second try" not in text and "1 of 2 samples: raise -n" in text


def test_eval_scores_use_held_out_questions(told: Told) -> None:
    (card,) = cards(told("rft/seed0/6_eval_score", "e1"))
    assert card["question"] == "How many kites?" and card["text"] == "first try"
    assert "selection" not in card


def test_reference_scores_use_the_reference_pool(told: Told) -> None:
    (card,) = cards(told("rft/seed0/3_score_reference"))
    assert card["text"] == "worked solution" and card["finish"] == "reference"


def test_the_arm_that_is_named_tells_the_choice(told: Told) -> None:
    assert cards(told("rft/seed0/3_score", "c2"))[0]["selection"].startswith("dropped by rft/seed0")
    assert cards(told("chance/seed0/3_score", "c2"))[0]["selection"] == "kept by chance/seed0"
    # Without an arm, the first that uses the stage.
    assert cards(told("score", "c2"))[0]["selection"] == "kept by chance/seed0"
    assert cards(told("score-1", "c2"))[0]["selection"] == "kept by chance/seed0"


@pytest.mark.parametrize("name", ["2_sample", "3_score", "4_select"])
def test_tokens_only_on_request(told: Told, name: str) -> None:
    plain = told(f"rft/seed0/{name}", "c1")
    assert "right text" in plain
    assert "token_ids" not in plain and "token_logprobs" not in plain and "70001" not in plain
    full = told(f"rft/seed0/{name}", "c1", tokens=True)
    assert all(str(i) in full for i in IDS)
    assert "prompt_token_ids" in full and "token_logprobs" in full


def test_rows_without_neighbours_are_shown_alone(run: Path, told: Told) -> None:
    for name in ("1_prompts", "2_sample", "4_select"):
        (run / "chance/seed0" / name).unlink()
    (card,) = cards(told("chance/seed0/3_score", "c2"))
    assert card == {
        "id": "c2",
        "prompt_id": "q1",
        "verdict": "wrong",
        "extracted": "7",
        "each": "[]",
    }
    stage(run, "select-9", choices=[ChoiceRow("c1", "q1", "old")])
    text = told("select-9", "c1")
    assert cards(text) == [{"id": "c1", "prompt_id": "q1", "reason": "old"}]
    assert "No arm uses this stage now" in text


def test_hostile_text_is_harmless(told: Told) -> None:
    for name in ("2_sample", "3_score", "4_select"):
        text = told(f"rft/seed0/{name}", "c3")
        assert "[bold]loud[/bold] [/] :x: \ufffd[31mred\ufffd\ufffd\n" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_count_limits_each_table_and_every_search(told: Told) -> None:
    assert [c["id"] for c in cards(told("rft/seed0/4_select", None, 1))] == ["r1", "r1"]
    text = told("rft/seed0/3_score", "q1", 1)
    assert [c["id"] for c in cards(text)] == ["c1"]
    assert "more rows begin with q1: raise -n" in text
    assert "more rows" not in told("rft/seed0/3_score", "q1", 2)


def damage(path: Path, column: str) -> None:
    """Changes a byte of a column, so that its checksum fails as soon as it is read."""
    group = pq.read_metadata(path).row_group(0)
    (chunk,) = (
        group.column(i)
        for i in range(group.num_columns)
        if group.column(i).path_in_schema.split(".")[0] == column
    )
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start + chunk.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(data)


def test_reads_no_further_than_it_must(run: Path, told: Told) -> None:
    folder = run / "stages/sample-1"
    more = rows.write_part(folder, [candidate("c4", "q2", 1, "more")], Candidate)
    assert more is not None
    damage(more, "text")
    assert len(cards(told("rft/seed0/2_sample", None, 2))) == 2
    # The text of a score is found in the first part.
    assert cards(told("rft/seed0/3_score", "c2"))[0]["text"] == "wrong text"
    assert len(rows.parts(folder)) == 2
    with pytest.raises(RftError, match="damaged on disk"):
        told("rft/seed0/2_sample", "c4")


def test_reads_no_token_columns_unasked(run: Path, told: Told) -> None:
    for name in ("sample-1", "select-1/train"):
        (part,) = rows.parts(run / "stages" / name)
        damage(part, "token_ids")
    for name in ("2_sample", "3_score", "4_select"):
        assert "right text" in told(f"rft/seed0/{name}", "c1")
    with pytest.raises(RftError, match="damaged on disk"):
        told("rft/seed0/2_sample", "c1", tokens=True)


def test_errors_name_what_can_be_shown(run: Path) -> None:
    (run / "report").mkdir()
    (run / "report/report.md").write_text("x")
    rundir.link(run / "rft/seed0/5_train", run / "stages/train-1")

    def error(name: str, row_id: str | None = None) -> str:
        with pytest.raises(RftError) as fault:
            show.show(run, name, row_id, 5)
        return str(fault.value)

    names = (
        "1_prompts, 2_sample, 2_sample_reference, 3_score, 3_score_reference, 4_select, 5_train, "
        "6_eval, 6_eval_sample, 6_eval_score"
    )
    assert error("rft/seed0") == f"{run}/rft/seed0: name one stage: {names}"
    kinds = "prompts, sample, score, select, eval, train"
    for name in ("report", "rft", "stages", "smaple", "/nowhere"):
        text = error(name)
        assert (
            f"this is no stage: name a kind ({kinds}) or a link such as chance/seed0/1_pr" in text
        )
    for name in ("rft/seed0/5_train", "train"):
        assert error(name).endswith("no such stage has begun yet")
    assert error("score", "zz").endswith("no row whose id begins with 'zz'")


def test_overview_counts_rows_and_users(run: Path, told: Told) -> None:
    stage(run, "select-9", choices=[ChoiceRow("c1", "q1", "old")])
    # A kind that this version doesn't know, left by another.
    stage(run, "evaluate-1", "rft/seed0/6_evaluate")
    lines = {line.split()[1]: line for line in told().splitlines() if "\u2502" in line}
    assert "chance/0, rft/0" in lines["score-1"] and "done" in lines["score-1"]
    assert "stale" in lines["select-9"]
    assert json.loads(told("rft/seed0/6_evaluate").split("\n", 1)[1])["rows"] == 0


def test_a_stage_tells_how_many_files_it_has_and_not_each(told: Told) -> None:
    assert re.search(r'"files": "\d+ of [\d,]+ bytes"', told("rft/seed0/2_sample"))
