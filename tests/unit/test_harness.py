"""Sample files of lm-evaluation-harness as rows; tests/pipeline/test_harness.py has the harness write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from rft.report import harness
from rft.types import RftError

NAME = "samples_some_task_2026-09-29T10-11-12.345678.jsonl"


def line(doc: str, filtered: Any = "4", filter: str = "none", **metrics: Any) -> dict[str, Any]:
    """A row as version 0.4.13 writes it."""
    return {
        "doc_id": 7,
        "doc": {"question": doc},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": doc, "arg_1": {}}},
        "resps": [[" 4"]],
        "filtered_resps": [filtered],
        "filter": filter,
        "metrics": list(metrics),
        "doc_hash": doc,
        "prompt_hash": f"asked {doc}",
        "target_hash": "t",
        **metrics,
    }


def write(folder: Path, *lines: dict[str, Any], name: str = NAME) -> Path:
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder / name


def test_verdicts_by_content_and_not_by_position(tmp_path: Path) -> None:
    rows = [line("b", "[invalid]", exact_match=0.0), line("a", exact_match=1.0)]
    got = harness.read(write(tmp_path, *rows))
    assert (got.task, got.metric) == ("some_task", "exact_match,none")
    assert [p.prompt_id for p in got.problems] == ["some_task:a", "some_task:b"]
    assert [(p.correct, p.n, p.hits) for p in got.problems] == [(1, 1, (True,)), (0, 1, (False,))]
    assert [p.answers for p in got.problems] == [("4",), ("[invalid]",)]
    assert got.prompts == ("asked a", "asked b")
    assert harness.read(write(tmp_path, *rows[::-1])) == got


def test_each_filter_is_a_metric_and_the_first_is_the_default(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        line("a", "4", "strict", exact_match=0.0, acc=1),
        line("a", "4", "flexible", exact_match=1.0, acc=0),
    )
    told = {
        None: ("exact_match,strict", 0),
        "exact_match": ("exact_match,strict", 0),
        "exact_match,flexible": ("exact_match,flexible", 1),
        "acc": ("acc,strict", 1),
        "acc,flexible": ("acc,flexible", 0),
    }
    for asked, (name, correct) in told.items():
        got = harness.read(path, asked)
        assert (got.metric, got.problems[0].correct) == (name, correct)
    with pytest.raises(
        RftError, match=r"no metric f1 in it; it has exact_match,strict; acc,strict"
    ):
        harness.read(path, "f1")


@pytest.mark.parametrize(
    "values, counts",
    [
        ([True, False], [(1, 1), (0, 1)]),
        ([0.25, 1.0], [(1, 4), (4, 4)]),
        ([[True, False, True], [False]], [(2, 3), (0, 1)]),
        ([1 / 3, 0.5], [(2, 6), (3, 6)]),
        ([0.7071067, 0.5], [(707107, 1_000_000), (500_000, 1_000_000)]),
    ],
)
def test_values_become_shares(tmp_path: Path, values: list[Any], counts: list[Any]) -> None:
    path = write(tmp_path, *(line(f"doc{i}", x=v) for i, v in enumerate(values)))
    got = harness.read(path)
    assert [(p.correct, p.n) for p in got.problems] == counts
    assert all(bool(p.hits) == (p.n == 1) for p in got.problems if counts[0][1] == 1)


@pytest.mark.parametrize("value", [["a reference", "a prediction"], -3.2, 1.5, None, "0.5"])
def test_corpus_metrics_are_refused_by_name(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path, line("a", bleu=value, acc=1.0))
    with pytest.raises(
        RftError, match=r"metric bleu,none has no value from 0 to 1.*have: acc,none"
    ):
        harness.read(path)
    assert harness.read(path, "acc").metric == "acc,none"


def test_a_problem_that_occurs_twice_stays_two(tmp_path: Path) -> None:
    got = harness.read(write(tmp_path, line("a", x=1.0), line("a", x=0.0), line("b", x=0.0)))
    assert [p.prompt_id for p in got.problems] == ["some_task:a", "some_task:a#2", "some_task:b"]


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RftError, match=f"{NAME}: cannot be read"):
        harness.read(tmp_path / NAME)
    path = write(tmp_path, line("a", x=1.0))
    path.write_text(path.read_text() + '{"doc_id": 1, "do')
    with pytest.raises(RftError, match="cannot be read as JSON lines"):
        harness.read(path)
    path.write_text('{"id": 1, "verdict": "correct"}\n')
    with pytest.raises(RftError, match=r"jsonl:1: no row of lm-eval's samples \(no 'doc_hash'\)"):
        harness.read(path)
    path.write_text("\n")
    with pytest.raises(RftError, match="no samples"):
        harness.read(path)
