"""The sample stage with samplers and allocators of the user's own: what is drawn, kept, and asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rft
from rft import rows
from rft.config_decoding import Decoding
from rft.rundir import StageDir
from rft.sampling import Job
from rft.stages import sample
from rft.types import Candidate, Finish, Prompt, RftError, ScoreRow, digest

EMBEDDED = Path(rft.__file__).parent / "embedded" / "model"
PROMPTS = [
    Prompt(f"p{i}", f"What is {i} + {i}?", str(2 * i), f"{i} + {i} = {2 * i}") for i in range(4)
]

OWN = """
import json
from rft.types import Candidate, Finish

class own:
    '''Says what the prompt's question tells it to: right where the index is a multiple of `right`.'''
    def __init__(self, setup, *, log: str, room: int = 4, right: int = 1, lose: bool = False, twice: bool = False):
        self.setup, self.log, self.room, self.right, self.lose, self.twice = setup, log, room, right, lose, twice
    def sample(self, requests):
        held, asked, ended = [], [], False
        with open(self.log, "a") as log:
            while True:
                while len(held) < self.room and not ended:
                    for r in requests:
                        break
                    else:
                        ended = True
                        break
                    if r is None:
                        log.write("none\\n")
                        break
                    held.append(r)
                    log.write(json.dumps([r.prompt_id, r.index]) + "\\n")
                if not held and ended:
                    return
                if held:
                    r = held.pop()  # the newest first, so that verdicts come out of order
                    if self.lose and r.index == 2:
                        continue
                    yield self.answer(r)
                    if self.twice:
                        yield self.answer(r)
    def answer(self, r):
        gold = self.setup.prompts[r.prompt_id].answer
        text = f"{r.index} + 0 = {r.index}. #### {gold if r.index % self.right == 0 else '7777'}"
        more = (-0.5,) if r.decoding.logprobs == "tokens" else None
        return Candidate(r.id, r.prompt_id, r.index, text, r.prompt_token_ids, (2,) * (1 + r.index), Finish.STOP, -0.5, more)
    def stats(self): return {}
    def close(self): pass

def until(tallies, *, target: int = 2):
    '''Draws a prompt's samples one by one until `target` different right ones are there.'''
    while True:
        todo = [t for t in tallies if t.distinct < target and t.drawn < t.limit]
        if not todo:
            return
        ready = [t for t in todo if t.drawn == t.judged]
        yield ready[0] if ready else None

def waits(tallies):
    yield next(iter(tallies))
    while True:
        yield None

def greedy(tallies):
    while True:
        yield next(iter(tallies))
"""


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    (tmp_path / "own.py").write_text(OWN)
    rows.write_part(tmp_path / "prompts", PROMPTS, Prompt)

    def make(name: str = "one", allocate: str = "uniform", **more: Any) -> dict[str, Any]:
        decoding = Decoding(**{"n": 3, **more.pop("decoding", {})}).model_dump()
        args = {"log": str(tmp_path / "log"), **more.pop("args", {})}
        folder, score = (
            tmp_path / "stages" / f"sample-{name}",
            tmp_path / "stages" / f"score-{name}",
        )
        scores = {
            "folder": str(score),
            "label": f"score {name}",
            "combine": {},
            "ray": {},
            "scorers": [{"use": more.pop("scorer", "answer"), "args": {}}],
        }
        for path in (folder, score):
            path.mkdir(parents=True, exist_ok=True)
        if allocate != "uniform":
            allocate = f"{tmp_path}/own.py:{allocate}"
        return {
            "folder": str(folder), "label": f"sample {name}", "adapter": None, "split": "train", "only": None,
            "prompts": str(tmp_path / "prompts"), "pool": "one", "pool_name": "", "chat": {},
            "use": f"{tmp_path}/own.py:own", "args": args, "engine": {},
            "model": {"base": str(EMBEDDED), "max_len": 64}, "decoding": decoding,
            "allocate": {"use": allocate, "args": {}}, "distinct": "equations",
            "train_on_reference": False, "unless_solved_by": [], "scores": [scores], **more,
        }  # fmt: skip

    return make


def asked(tmp_path: Path) -> list[tuple[str, int]]:
    lines = (tmp_path / "log").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines if line != "none"]


def kept(one: dict[str, Any]) -> dict[str, Candidate]:
    return {row.id: row for row in rows.read(Path(one["folder"]), Candidate)}


def scored(one: dict[str, Any]) -> dict[str, str]:
    folder = Path(one["scores"][0]["folder"])
    return {row.id: str(row.verdict) for row in rows.read(folder, ScoreRow)}


def manifest(one: dict[str, Any]) -> dict[str, Any]:
    found = StageDir(Path(one["folder"])).manifest()
    assert found is not None
    return found


def test_every_prompt_gets_n_samples_and_each_of_them_its_verdict(
    tmp_path: Path, spec: Any
) -> None:
    one = spec(args={"right": 2})
    sample.run([one])
    assert sorted(asked(tmp_path)) == [(p.id, i) for p in PROMPTS for i in range(3)]
    assert {(c.prompt_id, c.index) for c in kept(one).values()} == set(asked(tmp_path))
    assert all(c.id == digest("one", c.prompt_id, c.index) for c in kept(one).values())
    # Two of three are right but for p0, whose wrong answer is wrong too.
    assert sorted(scored(one).values()) == ["correct"] * 8 + ["wrong"] * 4
    score = StageDir(Path(one["scores"][0]["folder"])).manifest()
    assert score["beside"] and score["seconds"] == 0, "the time is the sampling's"
    assert score["verdicts"] == {
        "correct": 8,
        "wrong": 4,
    }
    assert manifest(one)["funnel"] == {"in": 12, "out": 12, "dropped": {}}


def test_allocator_stops_at_its_target_by_verdicts_in_the_order_of_indices(
    tmp_path: Path, spec: Any
) -> None:
    one = spec(allocate="until", decoding={"n": 9}, args={"right": 3})
    sample.run([one])
    # Indices 0 and 3 are right: four samples each.
    assert sorted(asked(tmp_path)) == [(p.id, i) for p in PROMPTS for i in range(4)]
    got = manifest(one)
    assert got["funnel"] == {"in": 36, "out": 16, "dropped": {"not_needed": 20}}
    assert got["allocation"] == {
        "prompts": 4, "solved": 4, "judged": 16, "correct": 8, "distinct": 8, "never_all": 4,
        "first": 0,
    }  # fmt: skip
    assert scored(one).keys() == kept(one).keys()
    assert "none" in (tmp_path / "log").read_text()


def test_allocator_goes_on_from_what_is_on_disk(tmp_path: Path, spec: Any) -> None:
    """An interrupted run left some candidates, some of them with verdicts, one of them alone."""
    one = spec(allocate="until", decoding={"n": 9}, args={"right": 3})
    sample.run([one])
    every = kept(one)
    folder, score = Path(one["folder"]), Path(one["scores"][0]["folder"])
    verdicts = {row.id: row for row in rows.read(score, ScoreRow)}
    for path in (folder, score):
        rows.clear(path)
        (path / "manifest.json").unlink()
    (tmp_path / "log").unlink()
    left = [
        c for c in every.values() if (c.prompt_id, c.index) in {("p0", 0), ("p1", 1), ("p2", 0)}
    ]
    rows.write_part(folder, left, Candidate)
    rows.write_part(score, [verdicts[c.id] for c in left if c.prompt_id != "p2"], ScoreRow)
    sample.run([one])
    assert kept(one).keys() == every.keys() == scored(one).keys()
    assert len(asked(tmp_path)) == 13 and not {("p0", 0), ("p1", 1), ("p2", 0)} & set(
        asked(tmp_path)
    )


def test_ways_of_worked_solutions_do_not_count_where_they_are_trained_on(
    tmp_path: Path, spec: Any
) -> None:
    prompts = [Prompt("p", "How many?", "5", "0 + 0 = 0"), Prompt("q", "How many?", "5", None)]
    rows.write_part(tmp_path / "others", prompts, Prompt)
    one = spec(
        allocate="until",
        decoding={"n": 9},
        prompts=str(tmp_path / "others"),
        train_on_reference=True,
    )
    sample.run([one])
    counts = {p: sum(got == p for got, _ in asked(tmp_path)) for p in "pq"}
    assert counts == {"p": 3, "q": 2}


def test_wanted_candidates_are_taken_over_and_others_left(tmp_path: Path, spec: Any) -> None:
    old, other = spec("old"), spec("other", pool="another")
    sample.run([old])
    sample.run([other])
    (tmp_path / "log").unlink()
    more = spec("new", decoding={"n": 5}, pool_name="named")
    sample.run([more])
    assert sorted(asked(tmp_path)) == [(p.id, i) for p in PROMPTS for i in (3, 4)]
    assert kept(old).keys() < kept(more).keys() and len(kept(more)) == 20
    assert not kept(other).keys() & kept(more).keys()
    assert {c.pool for c in kept(more).values()} == {"named"}
    (tmp_path / "log").unlink()
    fewer = spec("few", decoding={"n": 2})
    sample.run([fewer])
    assert not (tmp_path / "log").exists() and len(kept(fewer)) == 8


def test_what_an_allocator_asks_for_does_not_depend_on_what_is_there(
    tmp_path: Path, spec: Any
) -> None:
    """Others have drawn more than it wants: it takes what it would have drawn, and draws nothing."""
    alone = spec("alone", allocate="until", decoding={"n": 9}, args={"right": 3}, pool="two")
    sample.run([alone])
    expected = {(c.prompt_id, c.index) for c in kept(alone).values()}
    sample.run([spec("all", decoding={"n": 9}, args={"right": 3})])
    (tmp_path / "log").unlink()
    beside = spec("beside", allocate="until", decoding={"n": 9}, args={"right": 3})
    sample.run([beside])
    assert {(c.prompt_id, c.index) for c in kept(beside).values()} == expected
    assert not (tmp_path / "log").read_text()
    assert scored(beside).keys() == kept(beside).keys()
    wanted = {**manifest(alone), "folder": None}
    for name in ("rows", "tokens", "allocation", "funnel", "resumed"):
        assert manifest(beside)[name] == wanted[name]


def test_candidates_without_the_log_probabilities_wanted_now_are_drawn_again(
    tmp_path: Path, spec: Any
) -> None:
    plain, full = spec("plain"), spec("full", decoding={"logprobs": "tokens"})
    sample.run([plain])
    sample.run([full])
    assert all(row.token_logprobs for row in kept(full).values()) and len(asked(tmp_path)) == 24
    sample.run([spec("less")])
    assert len(asked(tmp_path)) == 24


def test_sample_for_several_stages_is_drawn_once_with_what_each_of_them_wants(
    tmp_path: Path, spec: Any
) -> None:
    plain, full = spec("plain"), spec("full", decoding={"logprobs": "tokens", "n": 2})
    sample.run([plain, full])
    assert len(asked(tmp_path)) == len(set(asked(tmp_path))) == 12
    assert all(row.token_logprobs for row in kept(full).values())
    assert len(kept(plain)) == 12 and len(kept(full)) == 8
    # Of those that are taken over the score stage takes care.
    assert scored(full).keys() == kept(full).keys()


def test_candidates_that_another_max_len_would_change_are_drawn_again(
    tmp_path: Path, spec: Any
) -> None:
    """One was cut off by max_len 3, one by max_tokens, one fits into 6 and not into 5."""
    cut = Candidate("cut", "p", 0, "", (1,), (2, 3), Finish.LENGTH, -1.0)
    spent = Candidate("spent", "p", 1, "", (1,), (2, 3, 4), Finish.LENGTH, -1.0)
    long = Candidate("long", "p", 2, "", (1,), (2, 3, 4, 5, 6), Finish.STOP, -1.0)
    for max_len, same in ((3, {"cut"}), (4, {"spent"}), (5, {"spent"}), (6, {"spent", "long"})):
        model = {"base": str(EMBEDDED), "max_len": max_len}
        one = Job({**spec(), "model": model, "decoding": {"n": 3, "max_tokens": 3}})
        assert {c.id for c in (cut, spent, long) if one._same(c)} == same


def test_hints_go_to_prompts_with_an_answer_that_no_pool_before_has_solved(
    tmp_path: Path, spec: Any
) -> None:
    prompts = [*PROMPTS, Prompt("none", "What?", None)]
    rows.write_part(tmp_path / "some", prompts, Prompt)
    first = spec("first", decoding={"n": 1}, args={"right": 1}, prompts=str(tmp_path / "some"))
    sample.run([first])
    score = Path(first["scores"][0]["folder"])
    got = [row for row in rows.read(score, ScoreRow) if row.prompt_id not in ("p1", "none")]
    rows.clear(score)
    rows.write_part(score, got, ScoreRow)
    (tmp_path / "log").unlink()
    hint = spec(
        "hint", pool="hint", chat={"prompt": "{question} ({answer})", "template": "none"},
        prompts=str(tmp_path / "some"), unless_solved_by=[str(score)],
    )  # fmt: skip
    sample.run([hint])
    assert {p for p, _ in asked(tmp_path)} == {"p1"}
    assert manifest(hint)["funnel"]["dropped"] == {"solved": 9, "no_answer": 3}
    job = Job(hint)
    text = job.renderer.decode(job.prompt_ids("p1"))
    assert text == "What is 1 + 1? (2)"


def test_scorer_that_cannot_be_made_leaves_the_samples(tmp_path: Path, spec: Any) -> None:
    bad = "def mine(prompt, candidate): pass\nraise ValueError('no list of words')\n"
    (tmp_path / "bad.py").write_text(bad)
    one = spec(scorer=f"{tmp_path}/bad.py:mine")
    sample.run([one])
    assert len(kept(one)) == 12 and scored(one) == {}
    assert StageDir(Path(one["scores"][0]["folder"])).manifest() is None
    adapts = spec("adapts", allocate="until", scorer=f"{tmp_path}/bad.py:mine", pool="two")
    with pytest.raises(RftError, match="no list of words"):
        sample.run([adapts])
    assert 0 < len(kept(adapts)) < 12


@pytest.mark.parametrize(
    "allocate, args, message",
    [
        ("waits", {}, "sample one: allocate waits for verdicts, and there are none to come"),
        ("greedy", {}, "sample one: allocate: all 3 samples of prompt p0 are drawn"),
        ("uniform", {"lose": True}, "8 candidates on disk where 12 were asked for"),
        ("uniform", {"twice": True}, "gave candidate .* twice, or unasked"),
    ],
)
def test_faulty_parts_are_named(
    tmp_path: Path, spec: Any, allocate: str, args: dict[str, Any], message: str
) -> None:
    one = spec(allocate=allocate, args=args)
    with pytest.raises(RftError, match=message):
        sample.run([one])
    assert StageDir(Path(one["folder"])).manifest() is None
    assert kept(one) or allocate == "greedy"
