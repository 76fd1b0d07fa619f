"""Speculative rejection on the embedded model: who goes on, and that a sample in pieces is a sample."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rft import rows, scoring
from rft.rundir import StageDir
from rft.samplers.speculative import speculative
from rft.types import Candidate, Finish, RftError, Sampler, ScoreRow, Verdict
from tests.unit.test_sampler_contract import set_up
from tests.unit.test_samplers import by_id, requests

AT, N = 3, 8
OWN = """
from rft.types import Score, Verdict

def letters(prompt, candidate):
    \"\"\"Any number that follows from the text.\"\"\"
    return Score(Verdict.UNKNOWN, value=sum(map(ord, candidate.text)) % 97)

def odd(prompt, candidate):
    if candidate.index % 2:
        return letters(prompt, candidate)
    raise ValueError("no even ones")

def half(prompt, candidate):
    return letters(prompt, candidate) if candidate.index % 2 else Score(Verdict.UNKNOWN, "none")
"""
SETUP = set_up()
QUESTIONS = [p.question for p in SETUP.prompts.values()][:6]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sampler]]:
    """One engine for all of them."""
    from rft import components

    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    engine: Any = components.make("samplers", components.Component(use="transformers"))(SETUP)

    def made(by: str = "letters", **args: Any) -> Sampler:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rft.samplers.transformers.transformers", lambda setup: engine)
            by_ = {"use": f"{folder}/own.py:{by}"}
            given = {"at": [AT], "audit": 0.0, "sampler": "transformers", **args}
            return speculative(SETUP, by=by_, **given)

    yield made
    engine.close()


def letters(text: str) -> int:
    return sum(map(ord, text)) % 97


def drawn(sampler: Sampler, **decoding: Any) -> dict[str, Candidate]:
    asked = list(
        requests(SETUP, QUESTIONS, n=N, **{"max_tokens": 24, "temperature": 1.0, **decoding})
    )
    got = by_id(sampler.sample(iter(asked)))
    assert got.keys() == {r.id for r in asked}
    return got


def beginnings(got: dict[str, Candidate]) -> dict[str, dict[int, str]]:
    """Of each prompt the texts that were compared, by index."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for c in got.values():
        if len(c.token_ids) > AT or c.finish is Finish.REJECTED:
            found[c.prompt_id][c.index] = SETUP.renderer.decode(c.token_ids[:AT])
    return found


@pytest.mark.parametrize("keep, left", [(0.5, 4), (0.25, 2), (0.9, 8)])
def test_the_worst_beginnings_end_there(
    make: Callable[..., Sampler], keep: float, left: int
) -> None:
    sampler = make(keep=keep)
    got = drawn(sampler)
    gone = [c for c in got.values() if c.finish is Finish.REJECTED]
    assert all(len(c.token_ids) == AT and c.spared is None for c in got.values() if c in gone)
    assert bool(gone) == (left < N)
    for prompt_id, texts in beginnings(got).items():
        out = {c.index for c in gone if c.prompt_id == prompt_id}
        # Those that had ended before were not compared.
        assert len(texts) - len(out) == max(1, -(-len(texts) * left // N))
        best = max((letters(texts[i]) for i in out), default=-1)
        assert all(letters(texts[i]) >= best for i in texts.keys() - out)
    stats = sampler.stats()
    assert stats["rejected"] == len(gone) and stats["requests"] == len(got)


def test_audited_ones_are_finished_and_known(make: Callable[..., Sampler]) -> None:
    without, all_ = drawn(make()), drawn(make(audit=1.0))
    rejected = {id for id, c in without.items() if c.finish is Finish.REJECTED}
    assert {id for id, c in all_.items() if c.spared == AT} == rejected
    assert not any(c.finish is Finish.REJECTED for c in all_.values())
    for id in rejected:
        assert all_[id].token_ids[:AT] == without[id].token_ids
        assert len(all_[id].token_ids) > AT
    # Who is spared takes nobody's place.
    for id in without.keys() - rejected:
        assert all_[id].token_ids == without[id].token_ids


def test_survivors_are_compared_again(make: Callable[..., Sampler]) -> None:
    got = drawn(make(at=[1, AT]))
    lengths = {len(c.token_ids) for c in got.values() if c.finish is Finish.REJECTED}
    assert lengths == {1, AT}


def test_one_by_one_nothing_is_rejected_and_pieces_join(make: Callable[..., Sampler]) -> None:
    # Neighbours are of different prompts.
    asked = list(requests(SETUP, QUESTIONS, n=1, temperature=0.0, logprobs="tokens"))
    alone = by_id(make(at=[99]).sample(iter(asked)))
    pieces = by_id(make(at=[1, 2, 3]).sample(iter(asked)))
    for id, c in alone.items():
        assert pieces[id].token_ids == c.token_ids and pieces[id].finish is c.finish
        assert pieces[id].token_logprobs == pytest.approx(c.token_logprobs, abs=1e-4)
        assert pieces[id].prompt_token_ids == c.prompt_token_ids


def test_a_stop_string_across_two_pieces_ends_a_sample(make: Callable[..., Sampler]) -> None:
    settings: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0}
    plain = by_id(make(at=[99]).sample(requests(SETUP, QUESTIONS, n=1, **settings)))
    decode = SETUP.renderer.decode
    tried = 0
    for c in plain.values():
        for at in range(2, len(c.token_ids) - 2):
            stop = decode(c.token_ids[at - 1 : at + 1])
            if decode(c.token_ids[:at]).count(stop) or len(stop) < 2 or not stop.isascii():
                continue
            asked = [
                r
                for r in requests(SETUP, QUESTIONS, n=1, stop=[stop], **settings)
                if r.prompt_id == c.prompt_id
            ]
            (want,) = make(at=[99]).sample(iter(asked))
            (got,) = make(at=[at]).sample(iter(asked))
            assert (got.token_ids, got.text, got.finish) == (want.token_ids, want.text, want.finish)
            tried += 1
            break
    assert tried


def test_policies_are_not_ranked_against_each_other(make: Callable[..., Sampler]) -> None:
    """Two temperatures of the same prompts, a sample of each in turn."""
    cool, hot = (
        list(requests(SETUP, QUESTIONS, n=4, max_tokens=24, temperature=heat))
        for heat in (0.9, 1.1)
    )
    hot = [dataclasses.replace(r, id=f"{r.id}hot") for r in hot]
    turns = [r for pair in zip(cool, hot) for r in pair]
    got = by_id(make().sample(iter(turns)))
    assert not any(c.finish is Finish.REJECTED for c in got.values())


@pytest.mark.parametrize("by", ["half", "odd"])
def test_what_has_no_value_is_not_rejected(make: Callable[..., Sampler], by: str) -> None:
    got = drawn(make(by=by))
    assert all(c.index % 2 for c in got.values() if c.finish is Finish.REJECTED)


@pytest.mark.parametrize(
    "args, told",
    [
        ({"at": []}, "args.at"),
        ({"at": [8, 8]}, "args.at"),
        ({"by": "nothing"}, "nothing"),
        ({"sampler": "vlm"}, "vlm"),
        ({"sampler": "replay"}, "can't go on from a beginning"),
    ],
)
def test_wrong_arguments(make: Callable[..., Sampler], args: dict[str, Any], told: str) -> None:
    with pytest.raises(RftError, match=told):
        make(**args)


def test_scorers_that_need_company_are_refused() -> None:
    with pytest.raises(RftError, match="consensus can't judge a few beginnings"):
        speculative(SETUP, by={"use": "consensus"}, at=[8], sampler="transformers")


def test_beams_are_refused(make: Callable[..., Sampler]) -> None:
    with pytest.raises(RftError, match="beam_width"):
        list(make().sample(requests(SETUP, QUESTIONS, n=2, temperature=0.0, beam_width=2)))


def test_a_score_stage_tells_what_rejecting_lost(tmp_path: Path) -> None:
    """Ten spared of which two are right, and thirty rejected: about six were lost."""
    ends = [Finish.STOP] * 20 + [Finish.REJECTED] * 30
    samples = [
        Candidate(str(i), "p", i, "", (1,), (2,), end, spared=6 if i < 10 else None)
        for i, end in enumerate(ends)
    ]
    right = {0, 1, 10, 11, 12}
    scores = [
        ScoreRow(str(i), "p", Verdict.UNKNOWN, "rejected", None, None, "")
        if end is Finish.REJECTED
        else ScoreRow(
            str(i), "p", Verdict.CORRECT if i in right else Verdict.WRONG, None, None, None, ""
        )
        for i, end in enumerate(ends)
    ]
    rows.write_part(tmp_path / "sample", samples, Candidate)
    rows.write_part(tmp_path / "score", scores, ScoreRow)
    StageDir(tmp_path / "score").begin("score", {})
    scoring.commit(tmp_path / "score", tmp_path / "sample", "score", 1.0)
    told = (StageDir(tmp_path / "score").manifest() or {})["rejected"]
    lost = told.pop("lost")
    assert told == {"rejected": 30, "spared": 10, "spared_correct": 2, "correct": 5}
    assert lost[0] == pytest.approx(6) and lost[1] < 6 < lost[2]
