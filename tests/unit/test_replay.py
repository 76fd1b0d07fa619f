"""Samples that are there already: which row answers which request, and what becomes of the others."""

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rft
from rft import components, rows, rundir
from rft.chat import Renderer
from rft.config import Chat, Model
from rft.config_decoding import Decoding, Engine
from rft.samplers import _source
from rft.samplers.replay import Replay, replay
from rft.section import Component
from rft.types import Candidate, Finish, Prompt, Request, RftError, Setup, digest

EMBEDDED = Path(rft.__file__).parent / "embedded" / "model"
QUESTIONS = ["What is 3 + 4?", "What is 3 - 4?", "How many legs have two cats?"]
MODEL = Model(base=str(EMBEDDED), max_len=64)
RENDERER = Renderer(MODEL, Chat())


def set_up(questions: list[str] = QUESTIONS) -> Setup:
    prompts = {digest(q): Prompt(digest(q), q) for q in questions}
    return Setup(MODEL, Engine(), RENDERER, prompts)


def made(*args: Any, **fields: Any) -> Replay:
    sampler = replay(set_up(), path=[str(a) for a in args], **fields)
    assert isinstance(sampler, Replay)
    return sampler


def request(question: str, index: int = 0, **decoding: Any) -> Request:
    wanted = Decoding(**{"n": 8, "max_tokens": 40, **decoding})
    id, ids = digest(question), RENDERER.prompt_ids(question)
    return Request(digest(id, index), id, index, ids, wanted, seed=1)


def answers(sampler: Replay, question: str, **decoding: Any) -> list[Candidate]:
    """All samples of a question, asked for from the last to the first."""
    asked = [
        request(question, index, **decoding) for index in range(sampler.available(digest(question)))
    ]
    got = list(sampler.sample(reversed(asked)))
    assert [c.id for c in got] == [r.id for r in reversed(asked)]
    return got[::-1]


def texts(sampler: Replay, question: str) -> list[str]:
    return [c.text for c in answers(sampler, question)]


def written(path: Path, *found: Any) -> Path:
    """A JSON Lines file; a row that is a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in found]
    path.write_text("\n".join(lines))
    return path


# ---- which row is whose ----------------------------------------------------------------------------


def test_rows_answer_in_the_order_of_the_file(tmp_path: Path) -> None:
    a, b, c = QUESTIONS
    path = written(
        tmp_path / "samples.jsonl",
        {"question": a, "response": "7"},
        {"question": b, "response": "-1"},
        {"question": a, "response": "It is 7."},
        {"question": a, "response": "3 + 4 = 7"},
    )
    sampler = made(path)
    assert texts(sampler, a) == ["7", "It is 7.", "3 + 4 = 7"]
    assert texts(sampler, b) == ["-1"]
    assert sampler.available(digest(c)) == sampler.available("no such prompt") == 0
    (got,) = sampler.sample(iter([request(b)]))
    assert got.token_ids == RENDERER.completion_ids("-1") and got.finish is Finish.STOP
    assert got.prompt_token_ids == RENDERER.prompt_ids(b) and got.logprob is None
    with pytest.raises(RftError, match="has 1 samples of prompt .* number 2 was asked for"):
        list(sampler.sample(iter([request(b, 1)])))
    stats = sampler.stats()
    assert (stats["source_rows"], stats["usable"], stats["prompts"]) == (4, 4, 2)


ONE, TWO = QUESTIONS[:2]
SHAPES: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"question": ONE, "response": "7"}, {}),
    ({"problem": ONE, "generations": ["7"]}, {}),
    ({"prompt": ONE, "completion": "7", "finish_reason": "stop"}, {}),
    ({"prompt": [{"role": "user", "content": ONE}], "completions": ["7"]}, {}),
    ({"instruction": ONE, "input": "", "output": "7"}, {}),
    ({"prompt_id": digest(ONE), "text": "7"}, {}),
    # An id of somebody else's says nothing; the question does.
    ({"prompt_id": "17", "question": ONE, "text": "7"}, {}),
    ({"key": digest(ONE), "text": "7"}, {"prompt_id": "key"}),
    ({"query": ONE, "answer": "7", "response": "no"}, {"text": "answer"}),
    ({"q": ONE, "a": [[{"role": "assistant", "content": "7"}]]}, {"question": "q", "text": "a"}),
    (
        {"messages": [{"role": "user", "content": ONE}, {"role": "assistant", "content": "7"}]},
        {"question": "messages", "text": "messages"},
    ),
    # The same question in another form.
    ({"question": "what is 3+4", "text": "7"}, {}),
    ({"question": "\nWhat  is\t3 + 4 ?", "text": "7"}, {}),
]


@pytest.mark.parametrize("row, fields", SHAPES)
def test_shapes_of_rows(tmp_path: Path, row: dict[str, Any], fields: dict[str, str]) -> None:
    sampler = made(written(tmp_path / "samples.jsonl", row), **fields)
    assert texts(sampler, ONE) == ["7"]
    assert sampler.available(digest(TWO)) == 0


NAMES = [
    ({"question": ONE, "response": "7", "output": "8"}, "'response' and 'output'.*args.text"),
    ({"question": ONE, "prompt": ONE, "output": "8"}, "'question' and 'prompt'.*args.question"),
    ({"question": ONE, "reply": "7"}, "no field for the text .* it has 'question', 'reply'"),
    ({"response": "7"}, "no field for the question .*args.question"),
]


@pytest.mark.parametrize("row, message", NAMES)
def test_fields_that_could_be_any_are_asked_for(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "samples.jsonl", "", row)
    with pytest.raises(RftError, match=f"samples.jsonl:2 has .*{message}"):
        made(path)


def test_two_prompts_of_one_plain_form_need_the_exact_question(tmp_path: Path) -> None:
    setup = set_up(["Is it 7?", "is it 7"])
    path = written(
        tmp_path / "samples.jsonl",
        {"question": "Is it 7", "text": "yes"},
        {"question": "is it 7", "text": "no"},
    )
    sampler = replay(setup, path=str(path))
    assert isinstance(sampler, Replay)
    assert sampler.available(digest("Is it 7?")) == 0
    assert texts(sampler, "is it 7") == ["no"]
    assert sampler.stats()["no_such_prompt"] == 1


def test_lists_come_in_order_each_with_its_own_end(tmp_path: Path) -> None:
    path = written(
        tmp_path / "samples.jsonl",
        {
            "question": ONE,
            "responses": ["7", "It is", "", 7, "no 7", "seven"],
            "finish_reasons": ["stop", "length", "stop", "stop", "content_filter", None],
            "logprob": [-1, -2.5, 0, 0, 0, float("nan")],
        },
        {"question": ONE, "responses": ["3 + 4 = 7"], "finish_reasons": None},
        {"question": ONE, "responses": ["a", "b"], "finish_reasons": ["stop"]},
    )
    sampler = made(path)
    got = answers(sampler, ONE)
    assert [c.text for c in got] == ["7", "It is", "seven", "3 + 4 = 7"]
    assert [c.finish for c in got] == [Finish.STOP, Finish.LENGTH, Finish.STOP, Finish.STOP]
    assert [c.logprob for c in got] == [-1.0, -2.5, None, None]
    assert got[1].token_ids == RENDERER.completion_ids("It is")[:-1]
    stats = sampler.stats()
    assert (stats["no_text"], stats["odd_finish"], stats["misaligned"]) == (2, 1, 1)
    assert stats["usable"] == 4


WORDS = {
    "stop": Finish.STOP,
    "eos_token": Finish.STOP,
    "end_turn": Finish.STOP,
    "LENGTH": Finish.LENGTH,
    "max_tokens": Finish.LENGTH,
    "loop": Finish.LOOP,
    "error": None,
    "abort": None,
}


@pytest.mark.parametrize("word, finish", WORDS.items())
def test_words_for_why_a_text_ends(tmp_path: Path, word: str, finish: Finish | None) -> None:
    rows = [{"question": ONE, "text": "7", "finish": word}, {"question": TWO, "text": "-1"}]
    got = answers(made(written(tmp_path / "a.jsonl", *rows)), ONE)
    assert [c.finish for c in got] == ([finish] if finish else [])
    for c in got:
        assert (c.token_ids[-1] == RENDERER.eos_id) == (c.finish is Finish.STOP)


# ---- what is left out ------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_the_first_of_each_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path / "samples.jsonl",
        {"question": ONE, "text": "7"},
        '{"question": "What is',
        "[1, 2]",
        "[" * 100_000,
        '{"question": "What is 3 + 4?", "text": ' + "9" * 5000 + "}",
        {"question": "What is 30 + 4?", "text": "34"},
        {"question": None, "text": "34"},
        {"question": ONE, "text": None},
        {"question": ONE},
        {"question": ONE, "text": "7"},
        "",
        '{"question": "What is 3 + 4?", "te',
    )
    sampler = made(path)
    assert texts(sampler, ONE) == ["7"]
    stats = sampler.stats()
    found = {k: stats[k] for k in ("broken", "no_such_prompt", "no_text", "repeated")}
    assert found == {"broken": 5, "no_such_prompt": 2, "no_text": 2, "repeated": 1}
    assert stats["source_rows"] == 11
    told = capfd.readouterr().err
    assert f"5 broken (first: {path}:2: not valid JSON" in told
    assert (
        f"2 no_such_prompt (first: {path}:6: no prompt has the question 'What is 30 + 4?'" in told
    )
    assert f"2 no_text (first: {path}:8: 'text' is empty or missing" in told


def test_repeats_can_be_kept(tmp_path: Path) -> None:
    same = {"question": ONE, "text": "7"}
    path = written(tmp_path / "samples.jsonl", same, same, {"question": TWO, "text": "7"}, same)
    assert texts(made(path), ONE) == ["7"]
    assert texts(made(path, repeats="keep"), ONE) == ["7", "7", "7"]
    assert texts(made(path, path), ONE) == ["7"]


@pytest.mark.parametrize(
    "raw", ['"7 \\ud83d"', '"7 \\ud83d\\u0041"', '"7 \\ude00\\ud83d"'], ids=repr
)
def test_half_surrogate_pairs_are_replaced(tmp_path: Path, raw: str) -> None:
    path = written(tmp_path / "a.jsonl", f'{{"question": "{ONE}", "text": {raw}}}')
    (got,) = texts(made(path), ONE)
    got.encode()
    assert got.startswith("7 \ufffd")


ROW = st.fixed_dictionaries(
    {},
    optional={
        "question": st.sampled_from([*QUESTIONS, "what is 3+4", "other", "", None, 3, ["x"]]),
        "prompt_id": st.sampled_from([digest(TWO), "17", None, 5]),
        "text": st.one_of(
            st.text(max_size=5), st.none(), st.integers(), st.lists(st.text(max_size=3), max_size=3)
        ),
        "finish": st.sampled_from(["stop", "length", "error", None, 3, ["stop"], []]),
        "logprob": st.sampled_from([-1.5, None, "x", float("nan"), [-1.0]]),
        "token_ids": st.sampled_from([None, [5, 6], [-1], [1 << 40], ["x"], [[5], [6]], []]),
    },
)
LINE = st.one_of(ROW.map(lambda row: json.dumps(row).encode()), st.binary(max_size=12))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(LINE, max_size=12))
def test_no_file_does_worse_than_be_refused(tmp_path: Path, found: list[bytes]) -> None:
    path = tmp_path / "a.jsonl"
    # The first line says which fields there are.
    first = json.dumps({"question": ONE, "prompt_id": None, "text": "7", "finish": None})
    path.write_bytes(b"\n".join([first.encode(), *found]))
    sampler = made(path, logprob="logprob", token_ids="token_ids")
    stats = sampler.stats()
    lines = path.read_bytes().split(b"\n")
    assert stats["source_rows"] == sum(bool(line.strip()) for line in lines)
    got = [c for q in QUESTIONS for c in answers(sampler, q, max_tokens=6)]
    assert len(got) == stats["usable"] >= 1
    for c in got:
        c.text.encode()
        assert c.text == RENDERER.decode(c.token_ids) and len(c.token_ids) <= 6
        assert (c.token_ids[-1:] == (RENDERER.eos_id,)) == (c.finish is Finish.STOP)
    sampler.close()


# ---- tokens ----------------------------------------------------------------------------------------


def test_token_ids_that_say_the_text_are_kept(tmp_path: Path) -> None:
    text = "3 + 4 = 7"
    whole = RENDERER.completion_ids(text)[:-1]
    # Another way to the same text: one token a character.
    apart = tuple(i for ch in text for i in RENDERER.completion_ids(ch)[:-1])
    assert RENDERER.decode(apart) == text and apart != whole
    end = RENDERER.eos_id
    cases: list[tuple[Any, str, tuple[int, ...], bool]] = [
        (apart, "stop", (*apart, end), True),
        ((*apart, end), "stop", (*apart, end), True),
        ((*apart, end), "length", apart, True),
        # Of another tokenizer: they say something else here, or nothing.
        (apart[1:], "stop", (*whole, end), False),
        ((10**6, *apart), "stop", (*whole, end), False),
        ((end, *apart), "stop", (*whole, end), False),
        (None, "length", whole, False),
    ]
    for ids, finish, expected, kept in cases:
        row = {"question": ONE, "text": text, "finish": finish, "token_ids": ids}
        sampler = made(written(tmp_path / "a.jsonl", row))
        (got,) = answers(sampler, ONE)
        assert (got.text, got.token_ids) == (text, expected), (ids, finish)
        assert sampler.stats()["retokenised"] == (not kept)


def test_a_budget_or_a_stop_string_ends_a_text_as_it_would_a_sample(tmp_path: Path) -> None:
    text = "3 + 4 = 7\nThat is all."
    row = {"question": ONE, "text": text, "logprob": -3.0}
    sampler = made(written(tmp_path / "a.jsonl", row))
    ids = RENDERER.completion_ids(text)
    (got,) = answers(sampler, ONE, max_tokens=len(ids))
    assert (got.token_ids, got.finish, got.logprob) == (ids, Finish.STOP, -3.0)
    (got,) = answers(sampler, ONE, max_tokens=len(ids) - 1)
    assert (got.token_ids, got.finish, got.text) == (ids[:-1], Finish.LENGTH, text)
    (got,) = answers(sampler, ONE, max_tokens=4)
    assert (got.token_ids, got.finish, got.logprob) == (ids[:4], Finish.LENGTH, None)
    assert got.text == RENDERER.decode(ids[:4]) != text
    (got,) = answers(sampler, ONE, stop=["all", "\n"])
    assert (got.text, got.finish, got.logprob) == ("3 + 4 = 7", Finish.STOP, None)
    assert got.token_ids == RENDERER.completion_ids("3 + 4 = 7")


def test_it_samples_from_no_adapter(tmp_path: Path) -> None:
    sampler = made(written(tmp_path / "a.jsonl", {"question": ONE, "text": "7"}))
    asked = request(ONE)
    other = Request(asked.id, asked.prompt_id, 0, (5,), asked.decoding, 1, adapter="./lora")
    with pytest.raises(RftError, match="./lora.*policy: base"):
        list(sampler.sample(iter([other])))


# ---- kinds of files --------------------------------------------------------------------------------

TABLE = [
    {"question": ONE, "generations": ["7", "It is 7."], "finish_reasons": ["stop", "length"]},
    {"question": TWO, "generations": ["-1"], "finish_reasons": ["stop"]},
    {"question": "other", "generations": ["7"], "finish_reasons": ["stop"]},
    {"question": ONE, "generations": ["7", "seven\n"], "finish_reasons": None},
]


def jsonl(path: Path) -> None:
    written(path, *TABLE)


def packed_gz(path: Path) -> None:
    jsonl(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def packed_zst(path: Path) -> None:
    jsonl(path)
    path.write_bytes(pa.compress(path.read_bytes(), codec="zstd", asbytes=True))


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(TABLE), path, row_group_size=2)


KINDS: dict[str, Callable[[Path], None]] = {
    "a.jsonl": jsonl,
    "a.json": jsonl,
    "a.jsonl.gz": packed_gz,
    "a.jsonl.zst": packed_zst,
    "a.parquet": parquet,
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(tmp_path: Path, name: str) -> None:
    KINDS[name](tmp_path / name)
    (tmp_path / "README.md").write_text("not a row")
    for path in (tmp_path / name, tmp_path):
        sampler = made(path)
        got = answers(sampler, ONE)
        assert [c.text for c in got] == ["7", "It is 7.", "seven\n"]
        assert [c.finish for c in got] == [Finish.STOP, Finish.LENGTH, Finish.STOP]
        assert texts(sampler, TWO) == ["-1"]
        stats = sampler.stats()
        assert (stats["source_rows"], stats["source_samples"]) == (4, 6)
        assert (stats["no_such_prompt"], stats["repeated"]) == (1, 1)


def test_files_come_in_the_order_given_and_folders_in_that_of_names(tmp_path: Path) -> None:
    for name, answer in (("b", "1"), ("a", "2"), ("c", "3")):
        written(tmp_path / f"{name}.jsonl", {"question": ONE, "text": answer})
    assert texts(made(tmp_path), ONE) == ["2", "1", "3"]
    assert texts(made(tmp_path / "c.jsonl", tmp_path), ONE) == ["3", "2", "1"]


def nothing(path: Path) -> None:
    pass


def other_kind(path: Path) -> None:
    path.write_text("7")


def torn_gz(path: Path) -> None:
    packed_gz(path)
    path.write_bytes(path.read_bytes()[:-20])


def torn_zst(path: Path) -> None:
    packed_zst(path)
    path.write_bytes(path.read_bytes()[:-5])


def torn_parquet(path: Path) -> None:
    parquet(path)
    path.write_bytes(path.read_bytes()[:-20])


def empty_folder(path: Path) -> None:
    path.mkdir()


def others(path: Path) -> None:
    written(path, *[{"question": f"What is {i}?", "text": "7"} for i in range(5)])


BAD: list[tuple[str, Callable[[Path], None], str]] = [
    ("none.jsonl", nothing, "no such file"),
    ("a.txt", other_kind, "must end in .jsonl"),
    ("a.jsonl", other_kind, "none of the rows.*1 broken .first: .*a.jsonl:1: a row must be a JSON"),
    ("a.jsonl.gz", torn_gz, "cannot be read after line"),
    ("a.jsonl.gz", other_kind, "cannot be read after line 0"),
    ("a.jsonl.zst", torn_zst, "cannot be read after line"),
    ("a.parquet", torn_parquet, "cannot be read"),
    ("a", empty_folder, "neither a run with samples nor"),
    (
        "a.jsonl",
        others,
        "none of the rows.*5 no_such_prompt .first: .*a.jsonl:1.*'What is 0.'.*args",
    ),
    ("a.jsonl", lambda path: path.write_text(""), "none of the rows"),
]


@pytest.mark.parametrize("name, make, message", BAD)
def test_sources_that_cannot_be_read(
    tmp_path: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(RftError, match=message) as fault:
        made(tmp_path / name)
    assert str(tmp_path / name) in str(fault.value) and "replay" in str(fault.value)


def test_a_path_that_is_none_is_found_before_anything_is_run(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none.jsonl"), [str(tmp_path / "none.jsonl")]):
        with pytest.raises(RftError, match=r"args.path: .*none.jsonl: no such file"):
            components.bind("samplers", Component(use="replay", args={"path": path}))
    path = str(written(tmp_path / "a.jsonl", {"question": ONE, "text": "7"}))
    components.bind("samplers", Component(use="replay", args={"path": [path]}))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_source, "LONGEST_LINE", 100)
    path = written(tmp_path / "a.jsonl", {"question": ONE, "text": "7"}, {"text": "7" * 200})
    with pytest.raises(RftError, match="a.jsonl:2: a line of more than .* JSON array"):
        made(path)


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"question": ONE, "text": "7"})
    sampler = made(path)
    path.write_text("x")
    with pytest.raises(RftError, match="a.jsonl: cannot be read at byte 0 any more"):
        texts(sampler, ONE)


def test_no_room_for_the_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "a.parquet")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(RftError, match="nowhere.*Set TMPDIR"):
        made(tmp_path / "a.parquet")


def test_texts_do_not_stay_in_memory(tmp_path: Path) -> None:
    count, size = 10_000, 4_000
    filler = "7" * size
    with open(tmp_path / "a.jsonl", "w") as file:
        for i in range(count):
            file.write(json.dumps({"question": QUESTIONS[i % 3], "text": f"{i} {filler}"}) + "\n")
    tracemalloc.start()
    sampler = made(tmp_path / "a.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20 < count * size // 8
    assert sampler.available(digest(ONE)) == count // 3 + 1
    assert answers_at(sampler, ONE, 1000).text.startswith("3000 7")


def answers_at(sampler: Replay, question: str, index: int) -> Candidate:
    (got,) = sampler.sample(iter([request(question, index)]))
    return got


# ---- runs ------------------------------------------------------------------------------------------


def drawn(
    question: str, index: int, text: str, finish: Finish = Finish.STOP, seed: int = 0
) -> Candidate:
    ids = RENDERER.completion_ids(text)
    ids = ids if finish is Finish.STOP else ids[:-1]
    logprobs = tuple(-0.25 * i for i in range(len(ids)))
    id = digest(question)
    prompt, key = RENDERER.prompt_ids(question), digest(id, index, seed)
    return Candidate(key, id, index, text, prompt, ids, finish, sum(logprobs), logprobs)


def stage(folder: Path, *found: Candidate, kind: str = "sample", done: bool = True) -> Path:
    """A stage folder with one part for each candidate, as an engine that finishes them in this order
    leaves it."""
    made = rundir.StageDir(folder)
    made.begin(kind, {"kind": kind})
    for c in found:
        rows.write_part(folder, [c], Candidate)
    if done:
        made.commit(1.0)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an arm of two seeds, a second arm that shares the first seed, and one with
    references alone."""
    run = tmp_path / "runs/x"
    first = stage(
        run / "stages/sample-1",
        drawn(ONE, 2, "no"),
        drawn(TWO, 0, "-1"),
        drawn(ONE, 1, "7"),
        drawn(ONE, 0, "7"),
        drawn(ONE, 5, "It is 7 and", Finish.LENGTH),
    )
    second = stage(run / "stages/sample-2", drawn(ONE, 0, "other seed", seed=1))
    solved = stage(run / "stages/sample-3", drawn(ONE, 0, "3 + 4 = 7", Finish.REFERENCE))
    for place, folder in {
        "rft/seed0/2_sample": first,
        "rft/seed1/2_sample": second,
        "random/seed0/2_sample": first,
        "rft/seed0/2_sample_reference": solved,
        "sft/seed0/2_sample_reference": solved,
    }.items():
        rundir.link(run / place, folder)
    return run


@pytest.mark.parametrize("place", ["stages/sample-1", "rft/seed0/2_sample", "rft/seed0", "random"])
def test_a_finished_run_is_given_as_it_was_drawn(run: Path, place: str) -> None:
    sampler = made(run / place)
    got = answers(sampler, ONE, logprobs="tokens")
    # By index, whatever finished first; the same text drawn twice is two samples.
    assert [c.text for c in got] == ["7", "7", "no", "It is 7 and"]
    for c, index in zip(got, (0, 1, 2, 5), strict=True):
        old = drawn(ONE, index, c.text, c.finish)
        assert (c.token_ids, c.finish, c.logprob) == (old.token_ids, old.finish, old.logprob)
        assert c.token_logprobs == old.token_logprobs
    assert [c.token_logprobs for c in answers(sampler, TWO)] == [None]
    assert sampler.stats()["retokenised"] == 0
    (short,) = [c for c in answers(sampler, ONE, max_tokens=3) if c.text.startswith("It")]
    assert short.logprob == sum(drawn(ONE, 5, "It is 7 and", Finish.LENGTH).token_logprobs[:3])  # type: ignore[index]


def test_pools_are_joined_in_order_and_none_counts_twice(run: Path) -> None:
    sampler = made(run / "rft/seed1", run / "rft/seed0", run / "stages/sample-1", repeats="keep")
    assert texts(sampler, ONE) == ["other seed", "7", "7", "no", "It is 7 and"]
    references = made(run / "rft/seed0/2_sample_reference")
    (got,) = answers(references, ONE)
    assert (got.text, got.finish) == ("3 + 4 = 7", Finish.STOP)


def test_stages_that_cannot_be_replayed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RftError, match=r"several pools: name one of .*seed0, .*rft/seed1$"):
        made(run)
    with pytest.raises(RftError, match="neither a run with samples"):
        made(run / "sft/seed0")
    with pytest.raises(RftError, match="not finished: let `rft run`"):
        made(stage(tmp_path / "sample-9", drawn(ONE, 0, "7"), done=False))
    with pytest.raises(RftError, match="a score stage"):
        made(stage(tmp_path / "score-9", kind="score"))
    part = rows.parts((run / "rft/seed0/2_sample").resolve())[0]
    with open(part, "r+b") as file:
        file.seek(8)
        file.write(os.urandom(8))
    with pytest.raises(RftError, match="damaged on disk"):
        made(run / "rft/seed0")
