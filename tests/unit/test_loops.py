"""Samples that repeat themselves: the rule against vLLM's own, what it must let pass, the audit."""

import functools
import importlib.util
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import rft
from rft import rows, scoring
from rft.chat import Renderer
from rft.config import Chat, Model, Sample
from rft.config_decoding import Eval, Loops
from rft.loops import AUDIT_COLUMNS, audit, in_loop, is_audited, may_stop, sentence, stopped_at
from rft.report import page
from rft.report.load import ArmRun, Pool
from rft.rundir import StageDir
from rft.selectors.length import length
from rft.stats import wilson
from rft.types import (
    Candidate,
    Finish,
    Group,
    Prompt,
    Score,
    Scored,
    ScoreRow,
    Verdict,
)

EMBEDDED = Path(rft.__file__).parent / "embedded" / "model"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(Model(base=str(EMBEDDED)), Chat())


# ---- the rule ---------------------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn) -> list[int]:
    """Token ids that may end in a repetition, whole or torn."""
    few = st.integers(0, 2)
    before = draw(st.lists(few, max_size=12))
    piece = draw(st.lists(few, min_size=1, max_size=6))
    count = draw(st.integers(0, 6))
    return before + piece * count + piece[: draw(st.integers(0, 5))]


SHAPES = st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(2, 5))


@settings(max_examples=500, deadline=None)
@given(answers(), SHAPES)
@example([1] * 6, (2, 1, 3))
@example([1, 2] * 3, (2, 0, 3))
@example([], (1, 0, 2))
def test_the_rule_is_vllms(token_ids: list[int], shape: tuple[int, int, int]) -> None:
    pytest.importorskip("vllm")
    from vllm.sampling_params import RepetitionDetectionParams

    least, more, repeats = shape
    params = RepetitionDetectionParams(least + more, least, repeats)
    ours = in_loop(token_ids, least, least + more, repeats)
    assert ours == _vllms()(token_ids, params)


@functools.cache
def _vllms() -> Any:
    """vLLM's function from its file: in this process a sampler may have replaced it."""
    found = importlib.util.find_spec("vllm.v1.core.sched.utils")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.check_sequence_repetition


@settings(max_examples=200, deadline=None)
@given(answers(), SHAPES)
def test_it_stops_at_the_first_token_at_which_the_rule_holds(
    token_ids: list[int], shape: tuple[int, int, int]
) -> None:
    least, more, repeats = shape
    rule = Loops(period=least + more, repeats=repeats, min_tokens=least * repeats)
    assert rule.least == least
    ends = [
        end
        for end in range(len(token_ids) + 1)
        if in_loop(token_ids[:end], rule.least, rule.period, rule.repeats)
    ]
    assert stopped_at(token_ids, rule) == (ends[0] if ends else None)
    # A longer text is stopped where the shorter one was.
    assert stopped_at([*token_ids, 9, 9], rule) == (
        ends[0] if ends else stopped_at([*token_ids, 9, 9], rule)
    )


def test_pieces_longer_than_the_period_or_said_too_rarely_pass() -> None:
    rule = Loops(period=8, repeats=3, min_tokens=12)
    assert stopped_at([0, *range(8)] + [*range(8)] * 2, rule) == 25
    assert stopped_at([*range(9)] * 9, rule) is None
    assert stopped_at([*range(8)] * 2, rule) is None
    # A short piece counts as several of itself, and must fill min_tokens.
    assert stopped_at([7] * 11, rule) is None
    assert stopped_at([7] * 12, rule) == 12


HONEST = {
    "a long number": "2^100 = 1267650600228229401496703205376, and 10^40 = 1" + "0" * 40,
    "a third": "1/3 = 0." + "3" * 50 + "...",
    "a table": "| a | b | c | d |\n|---|---|---|---|\n" + "| 1 | 2 | 3 | 4 |\n" * 3,
    "dots": "Solve:" + "." * 30 + "\n" + "= " * 20,
    "a matrix": r"\begin{pmatrix}" + r" 1 & 0 & 0 \\ 0 & 1 & 0 \\ 0 & 0 & 1 " + r"\end{pmatrix}",
    "a sum": "".join(f"{i} + {i} = {2 * i}\n" for i in range(1, 40)),
    "a list": ", ".join(map(str, range(1, 60))),
    "steps": "".join(f"{i}. Add {i} to the total: {i * 5} + {i}\n" for i in range(1, 30)),
    "code": "def f(x):\n" + "".join("    " * i + f"if x[{i}]:\n" for i in range(1, 12)) + "pass",
    "a check": "She has 5 * 4 = 20 apples left at the end of the day.\n" * 2,
    "terms": "2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 = 28",
}


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST.keys())
def test_honest_repetition_passes(renderer: Renderer, text: str) -> None:
    # A token a character is the hardest case: nothing is merged.
    for ids in (renderer.completion_ids(text), tuple(map(ord, text))):
        assert stopped_at(ids, Loops()) is None


def test_a_loop_is_stopped_early(renderer: Renderer) -> None:
    said = "Ana has 12 apples. So Ana has 12 apples.\n"
    ids = renderer.completion_ids("5 + 7 = 12\n" + said * 30)
    at = stopped_at(ids, Loops())
    assert at is not None and at < len(ids) / 2


# ---- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ({"repeats": 1}, "greater than or equal to 2"),
        ({"audit": 1.5}, "less than or equal to 1"),
        ({"period": 0}, "greater than 0"),
        ({"period": 4, "repeats": 3, "min_tokens": 13}, "raise period or repeats, or lower"),
        ({"perod": 4}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Sample.model_validate({"loops": given})


def test_sampling_stops_loops_and_evaluation_does_not() -> None:
    assert Sample().loops == Loops()
    assert Eval().loops is None
    assert Sample(loops=None).loops is None


def test_the_audited_share_follows_from_the_id() -> None:
    rule = Loops(audit=0.05)
    ids = [f"{i:024x}" for i in range(20_000)]
    chosen = {id for id in ids if is_audited(id, rule)}
    assert abs(len(chosen) / len(ids) - 0.05) < 4 * (0.05 * 0.95 / len(ids)) ** 0.5
    # A larger share audits the same ones and more.
    assert chosen < {id for id in ids if is_audited(id, Loops(audit=0.1))}
    assert all(may_stop(id, rule) == (None if id in chosen else rule) for id in ids)
    assert not any(is_audited(id, Loops(audit=0)) for id in ids)
    assert all(is_audited(id, Loops(audit=1)) for id in ids)
    assert may_stop("c", None) is None


# ---- what becomes of stopped samples ----------------------------------------------------------


RULE = Loops(period=4, repeats=3, min_tokens=3, audit=0.5)
LOOP = (1, 2, 3) + (5, 6) * 3
"""Stopped at 9 tokens: what follows is beyond."""


def ids_for(audited: bool, count: int) -> list[str]:
    every = (f"{'ab'[audited]}{i}" for i in range(10_000))
    return [id for id in every if is_audited(id, RULE) == audited][:count]


def candidate(id: str, token_ids: tuple[int, ...], finish: Finish = Finish.STOP) -> Candidate:
    return Candidate(id, "p", 0, "#### 5", (1,), token_ids, finish, -1.0)


def pool() -> tuple[list[Candidate], set[str]]:
    """8 stopped ones; audited: 3 that looped, one of them correct, and 5 others, 4 correct."""
    a = ids_for(True, 8)
    made = [candidate(id, LOOP, Finish.LOOP) for id in ids_for(False, 8)]
    made.append(candidate(a[0], (*LOOP, *range(100, 110)), Finish.STOP))
    made += [candidate(id, LOOP + (5, 6) * 10, Finish.LENGTH) for id in a[1:3]]
    made.append(candidate(a[3], LOOP, Finish.LENGTH))  # the rule holds at the last token only
    made += [candidate(id, (1, 2, 3, 4)) for id in a[4:]]
    return made, {a[0], *a[4:]}


def test_the_audit_counts() -> None:
    made, correct = pool()
    table = rows.table(made, Candidate).select(AUDIT_COLUMNS)
    found = audit(table.to_batches(max_chunksize=3), correct, RULE)
    low, high = wilson(1, 5).low, wilson(1, 5).high
    assert found == {
        "stopped": 8,
        "audited": 8,
        "looped": 3,
        "correct": 5,
        "false_aborts": 1,
        "false_abort_rate": [0.2, low, high],
        "tokens_saved": round(8 * (10 + 20 + 20) / 3),
    }
    told = sentence(found)
    assert told is not None and "8 samples" in told and "133 tokens" in told
    assert "1 of the 5 correct" in told and f"{high:.2%}" in told


def test_an_audit_with_nothing_to_tell_by() -> None:
    table = rows.table(pool()[0][:8], Candidate).select(AUDIT_COLUMNS)
    found = audit(table.to_batches(), set(), RULE)
    assert (found["stopped"], found["audited"]) == (8, 0)
    assert found["false_abort_rate"] is found["tokens_saved"] is None
    assert "none tells" in (sentence(found) or "")
    assert sentence(audit([], set(), RULE)) is None


def test_stopped_samples_are_unknown_and_the_manifest_has_the_audit(tmp_path: Path) -> None:
    made, correct = pool()
    source, folder = tmp_path / "sample", tmp_path / "score"
    rows.write_part(source, made, Candidate)
    (batch,) = rows.batches(source, scoring.COLUMNS)
    rest, cut = scoring.split_truncated(batch)
    settled = list(rows.objects(cut, ScoreRow))
    assert {(row.verdict, row.reason) for row in settled} == {
        (Verdict.UNKNOWN, "loop"),
        (Verdict.UNKNOWN, "truncated"),
    }
    assert {row.id for row in settled} == {
        c.id for c in made if c.finish in (Finish.LOOP, Finish.LENGTH)
    }
    judged = [
        ScoreRow(id, "p", Verdict.CORRECT if id in correct else Verdict.WRONG, None, "5", None, "")
        for id in rest.column("id").to_pylist()
    ]
    rows.write_part(folder, [*settled, *judged], ScoreRow)
    scoring.commit(folder, source, "score", 1.0, RULE)
    manifest = StageDir(folder).manifest()
    assert manifest is not None
    assert manifest["unknown"] == {"loop": 8, "truncated": 3}
    assert (manifest["loops"]["false_aborts"], manifest["loops"]["correct"]) == (1, 5)


def test_the_report_says_what_stopping_saved_and_cost() -> None:
    made, correct = pool()
    found = audit(rows.table(made, Candidate).select(AUDIT_COLUMNS).to_batches(), correct, RULE)
    funnel = {"in": 16, "out": 16, "dropped": {}}
    score = {"funnel": funnel, "verdicts": {"correct": 5, "unknown": 11}, "loops": found}
    drawn = Pool("", Path(), Path(), {"funnel": funnel}, score)
    manifests = {"select": {"funnel": funnel}}
    steps = page._funnel(ArmRun("rft", 0, {}, manifests, (), (), (drawn,)))["steps"]
    assert [step["note"] for step in steps] == [None, sentence(found), None]


def test_a_stopped_sample_teaches_no_end(renderer: Renderer) -> None:
    ids = renderer.completion_ids("no no no no")[:-1]
    made = candidate("c", ids, Finish.LOOP)
    assert renderer.train_ids(made) == ids


def test_a_stopped_sample_is_never_among_the_shortest() -> None:
    def row(name: str, tokens: int, finish: Finish = Finish.STOP) -> Scored:
        text = string.ascii_letters[:tokens]
        made = Candidate(name, "p", 0, text, (), (), finish)
        return Scored(made, Score(Verdict.UNKNOWN, "loop"), tokens)

    rows_ = (row("a", 9), row("b", 7), row("c", 2, Finish.LOOP), row("d", 8, Finish.LENGTH))
    groups = [Group(Prompt("p", "?"), rows_)]
    for args, dropped in (
        ({"k": 2}, {"a": "not_shortest", "c": "loop"}),
        ({"prefer": "band", "low": 0.1}, {"b": "too_short", "c": "loop"}),
        ({"prefer": "band", "over": "all", "high": 0.9}, {"a": "too_long", "c": "loop"}),
    ):
        got = {r.candidate.id: why for r, why in length(groups, **args) if why}
        assert got == dropped
