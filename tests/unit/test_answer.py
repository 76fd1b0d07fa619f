"""The answer scorer against the table, then against every GSM8K and MATH solution there is here."""

import json
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft import components, scoring
from rft.config import ConfigError
from rft.scorers._choice import options
from rft.scorers._extract import extract, number
from rft.scorers._text import comparable
from rft.scorers.answer import answer
from rft.section import Component
from rft.types import Candidate, Finish, Prompt, Score, Verdict
from tests.tables.answers import CHOICES, JSONS, PATTERNS, ROWS, TEXTS

DATA = Path(os.environ.get("RFT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def score(text: str, gold: str | None, /, question: str = "?", **args: Any) -> Score:
    candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
    scorer = components.make("scorers", Component(use="answer", args=args))
    got: Score = scorer(Prompt("p", question, gold), candidate)
    return got


def judge(text: str, gold: str | None, /, **args: Any) -> str:
    candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
    return str(answer(**args)(Prompt("p", "?", gold), candidate).verdict)


def short(value: Any) -> str:
    return repr(value)[:40]


@pytest.mark.parametrize("text, gold, verdict", ROWS, ids=lambda value: repr(value)[:40])
def test_table(text: str, gold: str | None, verdict: str) -> None:
    begun = time.monotonic()
    assert judge(text, gold) == verdict
    assert time.monotonic() - begun < 1


def quick(want: str, text: str, gold: str | None, /, **args: Any) -> None:
    begun = time.monotonic()
    assert str(score(text, gold, **args).verdict) == want
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("text, gold, verdict", TEXTS, ids=short)
def test_texts(text: str, gold: str | None, verdict: str) -> None:
    quick(verdict, text, gold, kind="text")


@pytest.mark.parametrize("question, text, gold, verdict", CHOICES, ids=short)
def test_choices(question: str, text: str, gold: str | None, verdict: str) -> None:
    quick(verdict, text, gold, question=question, kind="choice")


@pytest.mark.parametrize("pattern, text, gold, verdict", PATTERNS, ids=short)
def test_patterns(pattern: str, text: str, gold: str | None, verdict: str) -> None:
    quick(verdict, text, gold, kind="regex", pattern=pattern)


@pytest.mark.parametrize("text, gold, verdict", JSONS, ids=short)
def test_jsons(text: str, gold: str | None, verdict: str) -> None:
    quick(verdict, text, gold, kind="json")


@pytest.mark.parametrize("table", [ROWS, TEXTS, CHOICES, PATTERNS, JSONS])
def test_tables_are_large_and_use_every_verdict(table: list[tuple[str, ...]]) -> None:
    assert len(table) >= (60 if table is ROWS else 20)
    assert {row[-1] for row in table} == {str(v) for v in Verdict}


@pytest.mark.parametrize("text, gold, verdict", ROWS, ids=short)
def test_number_is_auto_where_the_gold_answer_is_one(
    text: str, gold: str | None, verdict: str
) -> None:
    is_one = gold is not None and number(gold) is not None
    assert judge(text, gold, kind="number") == (verdict if is_one else "unknown")


def test_options_of_a_question() -> None:
    assert options("Which?\nA) 5\nB) 10 apples\nC) Both (A) and (B)\nD) none") == {
        "A": "5",
        "B": "10 apples",
        "C": "Both (A) and (B)",
        "D": "none",
    }
    assert options("Take point (A). Options: A. 3 B. 4 C. 5") == {"A": "3", "B": "4", "C": "5"}
    assert options("(A)1 (B)2") == {"A": "1", "B": "2"}
    assert options("Point A. and B") == options("B) 2 C) 3") == options("A) only") == {}


def test_comparable_texts() -> None:
    same = [("The  cat!", "cat"), ("a b", "A b"), ("2 \u2212 1", "2 - 1"), ("(A) dog", "a dog")]
    apart = [("x-1", "x1"), ("a", "the"), ("-5", "5"), ("2(3)", "23"), ("a b", "b"), ("", "?")]
    for one, other in same[:3]:
        assert comparable(one) == comparable(other)
    for one, other in apart:
        assert comparable(one) != comparable(other)


SCHEMA = {
    "type": "object",
    "required": ["name", "day"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]"},
        "day": {"type": "string", "format": "date"},
        "of": {"$ref": "#/$defs/count"},
    },
    "$defs": {"count": {"type": "integer", "minimum": 0}},
}


@pytest.mark.parametrize(
    "text, want",
    [
        ('{"name": "Ann", "day": "2024-02-29"}', None),
        ('[1] {"name": "Ann", "day": "2024-02-29", "of": 3} [2]', None),
        ('{"name": "ann", "day": "2024-02-29"}', "schema:$.name"),
        ('{"name": "Ann", "day": "2023-02-29"}', "schema:$.day"),
        ('{"name": "Ann", "day": "2024-02-29", "of": -1}', "schema:$.of"),
        ('{"name": "Ann", "day": "2024-02-29", "of": true}', "schema:$.of"),
        ('{"name": "Ann"}', "schema:$"),
        ('{"name": "Ann", "day": "2024-02-29", "x": 1}', "schema:$"),
        ("[]", "schema:$"),
        ("so []", "unparsed"),
        ("no", "unparsed"),
    ],
)
def test_schema_alone(text: str, want: str | None, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    for schema in (SCHEMA, str(file)):
        for gold in (None, "whatever"):
            got = score(text, gold, kind="json", schema=schema, gold="ignored")
            assert got.reason == want
            verdict = {None: "correct", "unparsed": "unknown"}.get(want, "wrong")
            assert str(got.verdict) == verdict


def test_schema_and_gold() -> None:
    args: dict[str, Any] = {"kind": "json", "schema": SCHEMA}
    one = '{"name": "Ann", "day": "2024-02-29"}'
    assert judge(one, one, **args) == "correct"
    assert judge(one.replace("Ann", "Eve"), one, **args) == "wrong"
    assert judge(one, None, **args) == "unknown"
    assert judge('{"a": 1.05}', '{"a": 1}', kind="json", tolerance=0.1) == "correct"
    assert judge('{"a": 1.05}', '{"a": 1}', kind="json") == "wrong"


def test_a_schema_that_backtracks_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """jsonschema's patterns run in Python's own engine, so the worker's deadline has to hold them."""
    monkeypatch.setattr(scoring, "TIMEOUT_S", 1.0)
    schema = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    args = {"kind": "json", "schema": schema, "gold": "ignored"}
    texts = ['{"a": "' + "a" * 60 + '!"}', '{"a": "aa"}', '{"a": "b"}']
    pairs = [
        (Prompt("p", "?"), Candidate(f"c{i}", "p", i, text, (), (), Finish.STOP))
        for i, text in enumerate(texts)
    ]
    got = {
        pair[1].index: row
        for pair, row in scoring.score_all(pairs, [{"use": "answer", "args": args}])
    }
    assert [str(got[i].verdict) for i in range(3)] == ["unknown", "correct", "wrong"]
    assert got[0].reason == "timeout"


def test_first_and_last_match() -> None:
    args: dict[str, Any] = {"kind": "regex", "pattern": r"(\d+) apples"}
    assert judge("5 apples and 6 apples", "6", **args) == "correct"
    assert judge("5 apples and 6 apples", "5", **args, match="first") == "correct"
    assert judge("5 apples and 6 apples", "5", **args, tolerance=0.2) == "correct"


@pytest.mark.parametrize(
    "args, words",
    [
        ({"kind": "sql"}, "auto"),
        ({"marker": ""}, "at least 1 character"),
        ({"tolerance": -1}, "greater than or equal to 0"),
        ({"pattern": "x"}, "pattern: only with kind: regex"),
        ({"kind": "text", "tolerance": 0.1}, "tolerance: only with kind: auto or number or regex"),
        ({"kind": "regex", "pattern": "x", "marker": "y"}, "marker: only with kind: auto or"),
        ({"kind": "json", "fallback": False}, "fallback: only with kind"),
        ({"kind": "regex"}, "kind: regex needs a pattern"),
        ({"kind": "regex", "pattern": ""}, "kind: regex needs a pattern"),
        ({"kind": "regex", "pattern": "(?<=a)b"}, r"pattern: RE2 can't run .*no look-around"),
        ({"kind": "regex", "pattern": "(?=b)"}, r"invalid perl operator.*group 1"),
        ({"kind": "regex", "pattern": "("}, r"missing \)"),
        ({"kind": "json", "gold": "ignored"}, "gold: ignored needs a schema"),
        ({"kind": "json", "schema": {}}, "give a JSON schema"),
        ({"kind": "json", "schema": "no.json"}, "no.json: no such file"),
        ({"kind": "json", "schema": {"type": "objekt"}}, "schema: at type: 'objekt' is not valid"),
        ({"kind": "json", "schema": {"pattern": "("}}, "schema: at pattern"),
        ({"kind": "json", "schema": {"$ref": "https://x.org/a"}}, "nothing is fetched"),
        ({"kind": "json", "schema": {"items": {"$ref": "file:///etc/passwd"}}}, "nothing is fetch"),
        ({"kind": "json", "schema": {"$ref": "#/$defs/no"}}, "must lead to a part of the schema"),
        ({"kind": "json", "schema": {"$ref": "#"}}, "leads back to itself"),
        ({"kind": "json", "schema": {"format": "dat"}}, "format 'dat' can't be checked here"),
    ],
)
def test_arguments_that_make_no_sense(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        components.bind("scorers", Component(use="answer", args=args), "score.0")


def test_names_in_a_schema_are_no_keywords() -> None:
    schema = {"properties": {"$ref": {"type": "string"}, "format": {"enum": ["x"]}}}
    assert judge('{"$ref": "http://x", "format": "x"}', "1", kind="json", schema=schema,
                 gold="ignored") == "correct"  # fmt: skip
    assert judge('{"format": "y"}', "1", kind="json", schema=schema, gold="ignored") == "wrong"


def test_reasons_and_what_was_read() -> None:
    def told(*args: Any, **kinds: Any) -> tuple[str | None, str | None]:
        got = score(*args, **kinds)
        return got.reason, got.extracted

    assert told("#### 5", None) == ("no_gold", None)
    assert told("nothing", "5") == ("unparsed", None)
    assert told("#### 2^3", "8") == ("unparsed", "2^3")
    assert told("#### 1,000.50", "5") == (None, "2001/2")
    assert told("#### 50%", "0.5") == ("percent", "50")
    assert told("#### The Sun.", "sun", kind="text") == (None, "The Sun.")
    assert told("#### not Sun", "sun", kind="text") == ("contains", "not Sun")
    assert told("#### five", "five", kind="number") == ("bad_gold", None)
    assert told("#### (B)", "B", kind="choice") == (None, "B")
    assert told("#### B or C", "B", kind="choice") == ("unclear", "B or C")
    assert told("nothing\nat all", "B", kind="choice") == ("unparsed", None)
    assert told("#### B", "Tuesday", kind="choice") == ("bad_gold", None)
    assert told("a1 b2", "1", kind="regex", pattern=r"\w(\d)", match="first") == (None, "1")
    assert told('so {"a": 1}.', '{"a": 1}', kind="json") == (None, '{"a": 1}')
    assert told("so", '{"a": 1}', kind="json") == ("unparsed", None)
    assert told("{}", "{", kind="json") == ("bad_gold", None)
    schema = {"properties": {"a": {"type": "integer"}}}
    got = told('{"a": "x"}', '{"a": "x"}', kind="json", schema=schema)
    assert got == ("schema:$.a", '{"a": "x"}')


def test_tolerance_is_relative_and_off_by_default() -> None:
    assert judge("#### 0.3333", "1/3") == "wrong"
    assert judge("#### 0.3333", "1/3", tolerance=1e-3) == "correct"
    assert judge("#### 0.33", "1/3", tolerance=1e-3) == "wrong"
    assert judge("#### 1001", "1000", tolerance=1e-3) == "correct"
    assert judge("#### 1002", "1000", tolerance=1e-3) == "wrong"
    assert judge("#### 33.3%", "1/3", tolerance=1e-2) == "unknown"


def test_marker_and_fallback() -> None:
    assert judge("Final: 5", "5", marker="Final:", fallback=False) == "correct"
    assert judge("so 5", "5", fallback=False) == "unknown"
    assert extract("so 5", "####", True, is_number=True) == "5"
    assert judge("#### Final Answer\n5", "5", fallback=False) == "correct"
    assert judge("#### Step 1\nso \\boxed{5}", "5", fallback=False) == "unknown"
    # Only a marker that Markdown knows can be a heading.
    assert judge("=> Step 5:\nall done", "5", marker="=>") == "correct"


@pytest.mark.parametrize(
    "text, value",
    [
        ("0.1", Fraction(1, 10)),
        ("-1,234.5", Fraction(-2469, 2)),
        ("- $3", Fraction(-3)),
        ("-2 1/4", Fraction(-9, 4)),
        ("12%", Fraction(12)),
        ("-1 234.5", Fraction(-2469, 2)),
        ("1\u202f000\u202f000", Fraction(1_000_000)),
        ("1,2", None),
        ("1 23", None),
        ("1,234 567", None),
        ("12,34", None),
        ("1 2", None),
        ("5 apples", None),
        ("1/0", None),
        ("", None),
        ("-", None),
        ("9" * 61, None),
    ],
)
def test_number(text: str, value: Fraction | None) -> None:
    assert number(text) == value


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: set RFT_DATA to the folder that holds {name}")
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_every_gsm8k_solution_is_right_and_no_other_number_is() -> None:
    seen = rows("gsm8k/train.jsonl")
    assert len(seen) > 7000
    for row in seen:
        gold = row["answer"].rpartition("####")[2].strip()
        value = number(gold)
        assert value is not None, gold
        assert judge(row["answer"], gold) == "correct", row
        assert judge(row["answer"], str(value + 1)) == "wrong", row
        # The same without its marker: the answer ends the text, as a model's may.
        bare = row["answer"].replace("#### ", "The answer is ")
        assert judge(bare, gold) == "correct", row


@pytest.mark.parametrize("heading", ["Step {i}: {line}", "**Step {i}**", "{i}. {line}", "{i}) Add"])
def test_headings_over_every_line_of_gsm8k_change_no_verdict(heading: str) -> None:
    for row in rows("gsm8k/test.jsonl")[::4]:
        body, _, gold = row["answer"].rpartition("#### ")
        lines = [line for line in body.split("\n") if line.strip()]
        text = "\n".join(
            f"#### {heading.format(i=i, line=line)}\n{line}" for i, line in enumerate(lines, 1)
        )
        value = number(gold)
        assert value is not None
        for end in ("#### {}", "So it is \\boxed{{{}}}.", "#### Final Answer\n\n{}"):
            for rest in ("", "\n\nQuestion: 3 + 3?\n#### 6"):
                said = f"{text}\n{end.format(gold)}{rest}"
                assert judge(said, gold) == "correct", said
                assert judge(said, str(value + 1)) == "wrong", said


def test_math_solutions_are_right_against_their_own_box() -> None:
    seen = rows("math/test.jsonl")
    assert len(seen) > 4000
    numbers = 0
    unclear = []
    for row in seen:
        solution = row["solution"]
        if "\\boxed{" not in solution:
            continue
        begin = solution.rindex("\\boxed{") + len("\\boxed{")
        depth, end = 1, begin
        while depth:
            depth += {"{": 1, "}": -1}.get(solution[end], 0)
            end += 1
        gold = solution[begin : end - 1]
        verdict = judge(solution, gold)
        if verdict == "unknown":
            unclear.append(gold)
            continue
        assert verdict == "correct", gold
        value = number(gold)
        if value is not None:
            numbers += 1
            assert judge(solution, str(value + 1)) == "wrong", gold
    assert numbers > 2000
    # Two boxes beside each other in the first three; in the last, lines that open like problems.
    assert unclear == ["1", "\\frac{2}{5}", "\\frac{639}{40}", "14"]


PIECES = st.sampled_from(
    ["#### ", "answer is ", "\\boxed{", "}", "{", "[", "]", '"', ":", ",", "(B)", "A) ", "I ", "not ",
     "5", "-", "1/2", ".", "%", "the ", "```json\n", "```\n", "\n", "\\frac", "$", "\ud800", "\0", "\u202e"]
)  # fmt: skip
ANY_TEXT = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join))
KINDS: list[dict[str, Any]] = [
    {"kind": "auto"},
    {"kind": "number", "tolerance": 0.1},
    {"kind": "text"},
    {"kind": "choice"},
    {"kind": "regex", "pattern": r"(\S+)?\s*$"},
    {"kind": "json", "schema": SCHEMA},
    {"kind": "json", "schema": SCHEMA, "gold": "ignored"},
]


@pytest.mark.parametrize("args", KINDS, ids=short)
@given(text=ANY_TEXT, gold=ANY_TEXT, question=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_no_text_raises(args: dict[str, Any], text: str, gold: str, question: str) -> None:
    candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
    scorer = answer(**args)
    got = scorer(Prompt("p", question, gold), candidate)
    assert isinstance(got, Score)
    assert got.reason if got.verdict is Verdict.UNKNOWN else True
    if args.get("gold") == "ignored":
        return
    assert scorer(Prompt("p", question), candidate).reason == "no_gold"
    # Whatever a gold answer is, a candidate that is it, marked, is never wrong.
    if args["kind"] in ("text", "choice", "number") and "\n" not in gold and "#" not in gold:
        same = Candidate("c", "p", 0, f"#### {gold}", (), (), Finish.STOP)
        assert scorer(Prompt("p", "?", gold), same).verdict is not Verdict.WRONG
