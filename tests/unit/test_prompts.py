"""Everything that can be wrong with a data set, named by file and line; and the leakage gate."""

import json
from pathlib import Path
from typing import Any

import pytest

from rft import prompts
from rft.config import Prompts
from rft.types import RftError

HELD_OUT = [{"question": "Held out?", "answer": "1"}]


def lines(folder: Path, name: str, rows: list[Any]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def load(
    folder: Path, train: list[Any] | str, held: list[Any] | None = None, **settings: Any
) -> prompts.PromptSet:
    """Loads rows (or the raw text of a file) as the training split."""
    args = settings.pop("args", {})
    eval_path = lines(folder, "eval.jsonl", HELD_OUT if held is None else held)
    train_path = folder / "train.jsonl"
    if isinstance(train, str):
        train_path.write_text(train)
    else:
        lines(folder, "train.jsonl", train)
    paths = {"train": str(train_path), "eval": eval_path}
    return prompts.load(Prompts(use="jsonl", args={**paths, **args}, **settings))


def q(text: str, answer: Any = "1", **more: Any) -> dict[str, Any]:
    return {"question": text, "answer": answer, **more}


GOOD = '{"question": "a?", "answer": "1"}\n'


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["'train' is empty"]),
        ("\n \n", ["'train' is empty"]),
        (GOOD + "{oops\n", ["train.jsonl:2", "not valid JSON", "one object a line"]),
        (GOOD + "\n\n[1, 2]\n", ["train.jsonl:4", "must be a JSON object, not list"]),
        (GOOD + '"text"\n', ["train.jsonl:2", "not str"]),
        (GOOD + "[" * 100_000 + "\n", ["train.jsonl:2", "not valid JSON"]),
        (GOOD + '{"question": "b", "answer": ' + "9" * 5000 + "}\n", ["train.jsonl:2"]),
        (
            GOOD + '{"problem": "b?", "answer": "2"}\n',
            ["train.jsonl:2", "no column 'question'", "'problem', 'answer'", "args.question"],
        ),
        (GOOD + '{"question": ""}\n', ["train.jsonl:2", "question is empty"]),
        (GOOD + '{"question": " \\n"}\n', ["train.jsonl:2", "question is empty"]),
        (GOOD + '{"question": 5}\n', ["train.jsonl:2", "question is empty or not text"]),
        (GOOD + '{"question": "\\ud800"}\n', ["train.jsonl:2", "question is no valid Unicode"]),
        (GOOD + '{"question": "b", "answer": "\\ud800"}\n', ["train.jsonl:2", "answer"]),
        (GOOD + '{"question": "b", "answer": [1]}\n', ["train.jsonl:2", "answer must be text"]),
        (GOOD + '{"question": "b", "answer": true}\n', ["train.jsonl:2", "answer", "True"]),
        (GOOD + '{"question": "b", "answer": NaN}\n', ["train.jsonl:2", "answer", "nan"]),
        (GOOD + '{"question": "b", "solution": {}}\n', ["train.jsonl:2", "solution"]),
        (
            GOOD + '{"question": "a?", "answer": "2"}\n',
            ["train.jsonl:2", "same question as", "train.jsonl:1", "'2'", "'1'"],
        ),
        (GOOD + '{"question": "a?"}\n', ["train.jsonl:2", "same question as", "None"]),
    ],
)
def test_bad_line_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(RftError) as fault:
        load(tmp_path, text)
    for word in words:
        assert word in str(fault.value)


def test_missing_and_unreadable_file(tmp_path: Path) -> None:
    path = lines(tmp_path, "eval.jsonl", HELD_OUT)
    with pytest.raises(RftError, match=r"none\.jsonl: no such data file: check prompts\.args"):
        prompts.load(
            Prompts(use="jsonl", args={"train": str(tmp_path / "none.jsonl"), "eval": path})
        )
    with pytest.raises(RftError, match="cannot be read"):
        prompts.load(Prompts(use="jsonl", args={"train": str(tmp_path), "eval": path}))
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(RftError, match=r"latin\.jsonl: cannot be read"):
        prompts.load(
            Prompts(use="jsonl", args={"train": str(tmp_path / "latin.jsonl"), "eval": path})
        )


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(
        RftError, match="prompts.eval: the data set has no split 'test'; it has train, eval"
    ):
        load(tmp_path, [q("a?")], eval="test")


def test_rows_as_they_come(tmp_path: Path) -> None:
    got = load(
        tmp_path,
        [
            q("a?", 18, solution="9 + 9 = 18", kind="sum"),
            q("b?", 18.0),
            q("c?", 0.5),
            q("d?", None),
            q("e?", ""),
            {"question": "f?"},
            q("g? \u2028 and \x85 on", 10**400),
        ],
    )
    assert [p.answer for p in got.train] == ["18", "18", "0.5", None, None, None, str(10**400)]
    assert (got.train[0].solution, got.train[0].kind) == ("9 + 9 = 18", "sum")
    assert got.train[1].solution is None
    assert got.train[-1].question == "g? \u2028 and \x85 on"
    assert got.rows_in == 7 and got.dropped == {}


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    got = load(tmp_path, "\ufeff" + GOOD.replace("\n", "\r\n"))
    assert [p.question for p in got.train] == ["a?"]


def test_columns_and_marker(tmp_path: Path) -> None:
    rows = [{"problem": "a?", "text": "2 + 3 = 5\n#### 5 "}, {"problem": "b?", "text": "no marker"}]
    args = {"question": "problem", "answer": "text", "solution": "text", "answer_after": "####"}
    got = load(tmp_path, rows, [{"problem": "h?", "text": "#### 1"}], args=args)
    assert [p.answer for p in got.train] == ["5", None]
    assert got.train[0].solution == "2 + 3 = 5\n#### 5 "


def test_duplicates_with_one_answer_are_counted(tmp_path: Path) -> None:
    got = load(tmp_path, [q("a?", 1), q("b?"), q("a?", "1"), q("a?", 1.0)])
    assert [p.question for p in got.train] == ["a?", "b?"]
    assert got.rows_in == 4 and got.dropped == {"duplicate": 2}


def test_identity_is_the_question(tmp_path: Path) -> None:
    first = load(tmp_path, [q("a?", 1), q("b?", 2)]).train
    again = load(tmp_path, [q("b?", 3, solution="x"), q("a?", 1)]).train
    assert [p.id for p in first] == [p.id for p in reversed(again)]
    assert first[0].id != first[1].id
    assert prompts.questions_digest(first) == prompts.questions_digest(again)
    assert prompts.gold_digest(first) != prompts.gold_digest(again)
    assert prompts.solutions_digest(first) != prompts.solutions_digest(again)
    assert prompts.gold_digest(first) == prompts.gold_digest(reversed(first))
    tested = load(tmp_path, [q("a?", 1, tests="assert f()"), q("b?", 2)]).train
    assert prompts.questions_digest(first) == prompts.questions_digest(tested)
    assert prompts.gold_digest(first) != prompts.gold_digest(tested)
    assert prompts.rows_digest(first) != prompts.rows_digest(tested)


def test_tests_of_every_form(tmp_path: Path) -> None:
    cases = {"inputs": ["1 \u00e9"], "outputs": ["2"]}
    rows = [
        q("a?", None, tests="assert f() == 1"),
        q("b?", None, tests=["assert f() == 1", "assert g()"]),
        q("c?", None, tests=cases),
        *(q(f"{none!r}?", None, tests=none) for none in (None, "", [], {})),
        q("d?", None),
    ]
    got = load(tmp_path, rows, [q("h?", None, tests="assert f()")])
    assert [p.tests for p in got.train] == [
        "assert f() == 1",
        '["assert f() == 1", "assert g()"]',
        json.dumps(cases, ensure_ascii=False),
        *[None] * 5,
    ]
    assert got.eval[0].tests == "assert f()"  # enough for accuracy, without an answer
    for other in ("assert g() == 1", None):
        with pytest.raises(RftError, match=r"train\.jsonl:2: the same question as .*other tests"):
            load(tmp_path, [rows[0], q("a?", None, tests=other)])
    with pytest.raises(RftError, match="tests must be text or a number, not True"):
        load(tmp_path, [q("a?", None, tests=True)])


def test_entry_point(tmp_path: Path) -> None:
    row = q("a?", None, test="def check(candidate):\n    assert candidate()", name="f")
    args = {"tests": "test", "entry_point": "name"}
    assert load(tmp_path, [row], [row | q("h?")], args=args).train[0].tests == (
        "def check(candidate):\n    assert candidate()\n\ncheck(f)\n"
    )
    for name in (None, 5, "f()", "two words"):
        with pytest.raises(RftError, match=r"train\.jsonl:1: column 'name' must hold a function's"):
            load(tmp_path, [row | {"name": name}], args=args)
    with pytest.raises(
        RftError, match="the tests must be Python text that defines `check`, not list"
    ):
        load(tmp_path, [row | {"test": ["assert f()"]}], args=args)
    assert load(tmp_path, [row | {"test": None}], args=args).train[0].tests is None


def test_held_out_problem_needs_an_answer(tmp_path: Path) -> None:
    for answer in (None, ""):
        with pytest.raises(RftError, match=r"held-out problem without a gold answer: 'h\?'"):
            load(tmp_path, [q("a?")], [q("h?", answer)])


def test_limit_keeps_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    train = [q("a?"), q("a?"), q("b?"), q("c?"), q("d?")]
    held_out = [q("h?"), q("i?"), q("h?")]
    got = load(tmp_path, train, held_out, limit_train=2, limit_eval=1)
    assert [p.question for p in got.train] == ["a?", "b?"]
    assert [p.question for p in got.eval] == ["h?"]
    assert got.dropped == {"duplicate": 1, "over_limit": 2}
    assert got.rows_in == len(got.train) + sum(got.dropped.values())
    assert got.eval_rows_in == 3 and got.eval_dropped == {"duplicate": 1, "over_limit": 1}


LEAKS = [
    ("How many Apples does Ana's sister have?", "how many apples does ana\u2019s  sister have"),
    ("It costs $1,234.50; why?", "It costs 1234.50 - why"),
    ("ice-cream for 3", "Ice cream, for 3!"),
    ("Caf\u00e9 \ufb01ve", "CAFE\u0301 five"),
    ("What is 5 \u2212 3?", "what is 5-3"),
]
NO_LEAKS = [
    ("What is 12 + 3?", "What is 1 + 23?"),
    ("What is 12 + 3?", "What is 12 - 3?"),
    ("What is 12 + 3?", "What is 12 + 4?"),
    ("What is 1.5?", "What is 15?"),
    ("Solve x + y = 3", "Solve x - y = 3"),
    ("Solve 2x+3=7", "Solve 2x-3=7"),
    ("Solve x/2 = 4", "Solve x*2 = 4"),
    ("sin(x)+cos(x)", "sin(x)-cos(x)"),
    ("Is x \u2264 3?", "Is x \u2265 3?"),
    ("n^2", "n2"),
    ("What is .5 + 1?", "What is 5 + 1?"),
    ("The point (1,2)", "The point 12"),
    ("3! = ?", "3 = ?"),
    ("\U0001f600", "\U0001f601"),
]


@pytest.mark.parametrize("one, other", LEAKS)
def test_leak_stops_the_run_or_leaves_the_training_set(
    tmp_path: Path, one: str, other: str
) -> None:
    train, held = [q("a?"), q(one)], [q("h?"), q(other)]
    with pytest.raises(RftError) as fault:
        load(tmp_path, train, held)
    assert "1 training questions are also held out" in str(fault.value)
    assert repr(one) in str(fault.value) and "prompts.leakage=drop" in str(fault.value)
    got = load(tmp_path, train, held, leakage="drop")
    assert [p.question for p in got.train] == ["a?"]
    assert [p.question for p in got.eval] == ["h?", other]
    assert got.dropped == {"held_out": 1}


@pytest.mark.parametrize("one, other", NO_LEAKS)
def test_other_questions_are_no_leak(tmp_path: Path, one: str, other: str) -> None:
    assert len(load(tmp_path, [q(one)], [q(other)]).train) == 1


def test_nothing_left_after_the_gate(tmp_path: Path) -> None:
    with pytest.raises(RftError, match="no training problem is left"):
        load(tmp_path, [q("held OUT")], leakage="drop")


LOADERS = """
def raises(): return {}["Body"]
def none(): return None
def texts(): return {"train": ["a?"], "eval": []}
def lazy():
    return {"train": iter([{"question": "a?"}]), "eval": ({"question": "h?", "answer": 1} for _ in "x")}
"""


def test_the_users_loader(tmp_path: Path) -> None:
    file = tmp_path / "loaders.py"
    file.write_text(LOADERS)

    def refused(name: str) -> str:
        with pytest.raises(RftError) as fault:
            prompts.load(Prompts(use=f"{file}:{name}"))
        return str(fault.value)

    assert "raises failed: KeyError: 'Body'" in refused("raises")
    assert f"{file}:2" in refused("raises")
    assert "must return {split: rows}, not NoneType" in refused("none")
    assert "train row 1: must be a mapping with a question, not str" in refused("texts")
    got = prompts.load(Prompts(use=f"{file}:lazy"))
    assert [p.question for p in got.train + got.eval] == ["a?", "h?"]


def test_data_set_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(RftError, match="cannot load data set .*use: jsonl"):
        prompts.load(Prompts(use="hf", args={"path": str(tmp_path / "none")}))
