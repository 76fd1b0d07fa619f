"""configs/svamp.py: the split, the solutions, the joins; then the real file where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("svamp_config", ROOT / "configs" / "svamp.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


loader = load()


def raw(i: int, **changes: Any) -> dict[str, Any]:
    row = {
        "Body": f"Ann has {i} apples.",
        "Question": "How many has she after eating 1.0?",
        "Equation": f"( {i}.0 - 1.0 )",
        "Answer": float(i - 1),
        "Type": "Subtraction",
    }
    return row | changes


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "SVAMP.json"
    path.write_text(json.dumps(rows))
    return str(path)


def questions(rows: list[dict[str, Any]]) -> list[str]:
    return [row["question"] for row in rows]


@pytest.mark.parametrize(
    "equation, answer, solution",
    [
        ("( ( 8.0 - 3.0 ) * 2.0 )", 10, "8 - 3 = 5\n5 * 2 = 10\n#### 10"),
        ("( 76.0 - 25.0 )", 51, "76 - 25 = 51\n#### 51"),
        ("( 2.0 * ( 8.0 - 3.0 ) )", 10, "8 - 3 = 5\n2 * 5 = 10\n#### 10"),
        (
            "( ( 1.0 + 2.0 ) * ( 3.0 + 4.0 ) )",
            21,
            "1 + 2 = 3\n3 + 4 = 7\n3 * 7 = 21\n#### 21",
        ),
        ("( 28.0 * ( 24.0 / 16.0 ) )", 42, "24 / 16 = 1.5\n28 * 1.5 = 42\n#### 42"),
        (
            "( 60.0 * ( 55.0 / 15.0 ) )",
            220,
            "55 / 15 = 3.67\n60 * 3.67 = 220\n#### 220",
        ),
        ("( ( 3.0 - 8.0 ) + 10.0 )", 5, "3 - 8 = -5\n-5 + 10 = 5\n#### 5"),
        ("( 0.1 + 0.2 )", "0.3", "0.1 + 0.2 = 0.3\n#### 0.3"),
        ("( ( 4.0 - 2.0 ) + 3.0 )", 1, None),  # wrong in the data
        ("8.0", 8, None),  # no step to show
        ("( 1.0 / 0.0 )", 0, None),
        ("( 2.0 ** 3.0 )", 8, None),
        ("__import__('os').getpid()", 1, None),
        ("( True + 1.0 )", 2, None),
        ("( 1.0 + ", 1, None),
        ("", 0, None),
    ],
)
def test_solution(equation: str, answer: int | str, solution: str | None) -> None:
    assert loader.worked_solution(equation, Fraction(str(answer))) == solution


@pytest.mark.parametrize(
    "value, text",
    [
        ("8.0", "8"),
        ("100", "100"),
        ("0", "0"),
        ("-0.25", "-0.25"),
        ("1.50", "1.5"),
        ("0.001", "0.001"),
        ("2/3", "0.67"),
        ("-1/3", "-0.33"),
        ("299/300", "1"),
        ("12345678901234567890", "12345678901234567890"),
    ],
)
def test_short(value: str, text: str) -> None:
    assert loader.short(Fraction(value)) == text


@pytest.mark.parametrize(
    "body, question, joined",
    [
        ("He had 3.", "How many now?", "He had 3. How many now?"),
        (" If 5 are left ", " How many now? ", "If 5 are left, how many now?"),
        ("If 5 are left,", "How many now?", "If 5 are left, how many now?"),
        ("", "How many?", "How many?"),
    ],
)
def test_join(body: str, question: str, joined: str) -> None:
    assert loader.join(body, question) == joined


def test_split_ignores_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [raw(i) for i in range(20, 60)]
    sizes = {"solutions": 5, "answers": 15, "held_out": 10}
    first = loader.svamp(path=write(tmp_path, rows), **sizes)
    random.Random(0).shuffle(rows)
    assert loader.svamp(path=write(tmp_path, rows), **sizes) == first
    assert loader.svamp(path=write(tmp_path, rows), seed=1, **sizes) != first
    assert len(first["train"]) == 20 and len(first["eval"]) == 10
    assert not set(questions(first["train"])) & set(questions(first["eval"]))


def test_solutions_grow_without_moving_the_held_out(tmp_path: Path) -> None:
    path = write(tmp_path, [raw(i) for i in range(20, 60)])
    few = loader.svamp(path=path, solutions=4, answers=26, held_out=10)
    more = loader.svamp(path=path, solutions=9, answers=21, held_out=10)
    assert more["eval"] == few["eval"]
    assert questions(more["train"]) == questions(few["train"])
    solved = [[r["question"] for r in s["train"] if r["solution"]] for s in (few, more)]
    assert [len(s) for s in solved] == [4, 9] and solved[1][:4] == solved[0]
    assert all(r["solution"] for r in few["eval"])


def test_unusable_equations_take_no_solution_place(tmp_path: Path) -> None:
    rows = [raw(i, **({"Answer": 0.0} if i % 2 else {})) for i in range(20, 40)]
    train = loader.svamp(path=write(tmp_path, rows), solutions=8, answers=12, held_out=0)["train"]
    solved = [r for r in train if r["solution"]]
    assert len(solved) == 8 and all(r["answer"] != "0" for r in solved)


def test_repeated_questions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = raw(30, Body="ann has  30 apples !")
    disputed = raw(31, Answer=7.0)
    rows = [raw(i) for i in range(20, 40)] + [same, disputed]
    path = write(tmp_path, rows)
    split = loader.svamp(path=path, solutions=0, answers=9, held_out=10)
    keys = [loader.normalised(q) for q in questions(split["train"] + split["eval"])]
    assert len(keys) == len(set(keys)) == 19
    assert not any("31" in key.split() for key in keys)
    assert "1 repeated problems and 2 whose answers differ" in caplog.text
    with pytest.raises(ValueError, match="is 20, but .* has 19 problems"):
        loader.svamp(path=path, solutions=0, answers=10, held_out=10)


def test_row() -> None:
    row = loader.problem(raw(76, Type="Common-Divison", Answer="75.0"))  # one row is misspelt so
    assert row == {
        "question": "Ann has 76 apples. How many has she after eating 1.0?",
        "answer": "75",
        "solution": "76 - 1 = 75\n#### 75",
        "kind": "Common-Division",
    }


def test_decimals_are_part_of_a_question() -> None:
    assert loader.normalised("It costs $ 3.5, Ann!") == "it costs 3.5 ann"
    assert loader.normalised("costs 3.5") != loader.normalised("costs 35")


def test_json_lines(tmp_path: Path) -> None:
    rows = [raw(i, Answer=str(i - 1)) for i in range(20, 30)]
    (tmp_path / "hub.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    sizes = {"solutions": 2, "answers": 3, "held_out": 5}
    lines = loader.svamp(path=str(tmp_path / "hub.jsonl"), **sizes)
    assert lines == loader.svamp(path=write(tmp_path, rows), **sizes)


def test_faults_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="github.com/arkilpatel/SVAMP"):
        loader.svamp(path=str(tmp_path / "none.json"))
    for content in ("[{}]", '{"Body": 1}', "not json", "[1]"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match="is not SVAMP.*ChilleD/SVAMP"):
            loader.svamp(path=str(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match=r"prompts.args.answers is -1"):
        loader.svamp(path=write(tmp_path, [raw(20)]), answers=-1)


DATA = Path(os.environ.get("RFT_DATA", ROOT.parent / "shared" / "data")) / "svamp" / "SVAMP.json"


@pytest.mark.skipif(not DATA.is_file(), reason=f"no SVAMP at {DATA} (set RFT_DATA)")
def test_real_file() -> None:
    split = loader.svamp(path=str(DATA))
    train, held_out = split["train"], split["eval"]
    assert (len(train), len(held_out)) == (700, 300)
    assert sum(row["solution"] is not None for row in train) == 100
    everything = train + held_out
    assert len({loader.normalised(row["question"]) for row in everything}) == 1000
    assert all(row["answer"].isdigit() for row in everything)
    assert {row["kind"] for row in everything} == {
        "Addition",
        "Subtraction",
        "Multiplication",
        "Common-Division",
    }
    full = loader.svamp(path=str(DATA), solutions=700, answers=0)
    unsolved = [r for r in full["train"] + full["eval"] if r["solution"] is None]
    assert len(unsolved) == 2
    for row in full["train"] + full["eval"]:
        assert row["solution"] is None or row["solution"].endswith(f"#### {row['answer']}")
