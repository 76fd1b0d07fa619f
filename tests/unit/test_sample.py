"""What a sample stage takes over from others of its run, before it draws anything."""

from pathlib import Path
from typing import Any

import rft
from rft import rows
from rft.config import Decoding
from rft.rundir import StageDir
from rft.stages import sample
from rft.stages.sample import Job
from rft.types import Candidate, Finish, Prompt

EMBEDDED = Path(rft.__file__).parent / "embedded" / "model"


def candidate(i: int, **more: Any) -> Candidate:
    return Candidate(f"c{i}", "p", i, f"text {i}", (1,), (2, 3), Finish.STOP, -1.0, **more)


def job(root: Path, folder: str = "sample-new", max_len: int = 100, **decoding: Any) -> Job:
    rows.write_part(root / "prompts", [Prompt("p", "?")], Prompt)
    (root / folder).mkdir(exist_ok=True)
    spec = {
        "folder": str(root / folder),
        "prompts": str(root / "prompts"),
        "decoding": decoding,
        "model": {"max_len": max_len},
    }
    # Which candidates there are already is a matter of files: no tokenizer is needed.
    return Job(spec, None)  # type: ignore[arg-type]


def test_wanted_candidates_are_taken_over_and_others_left(tmp_path: Path) -> None:
    rows.write_part(tmp_path / "sample-old", [candidate(i) for i in range(4)], Candidate)
    rows.write_part(tmp_path / "score-old", [candidate(9)], Candidate)
    rows.write_part(tmp_path / "sample-new", [candidate(0)], Candidate)
    one = job(tmp_path)
    one.adopt({"c0", "c1", "c2", "c9", "c10"})
    assert one.done == {"c0", "c1", "c2"}
    assert rows.ids(tmp_path / "sample-new") == one.done
    got = {row.id: row for row in rows.read(tmp_path / "sample-new", Candidate)}
    assert got["c2"] == candidate(2)
    again = job(tmp_path)
    again.adopt({"c0", "c1", "c2"})
    assert again.done == {"c0", "c1", "c2"}
    assert len(rows.parts(tmp_path / "sample-new")) == 2


def test_candidates_without_the_log_probabilities_wanted_now_are_drawn_again(
    tmp_path: Path,
) -> None:
    rows.write_part(tmp_path / "sample-sum", [candidate(0), candidate(1)], Candidate)
    full = candidate(1, token_logprobs=(-0.5, -0.5))
    rows.write_part(tmp_path / "sample-tokens", [full], Candidate)
    one = job(tmp_path, logprobs="tokens")
    one.adopt({"c0", "c1"})
    assert one.done == {"c1"}
    assert list(rows.read(one.folder, Candidate)) == [full]
    less = job(tmp_path, "sample-less", logprobs="sum")
    less.adopt({"c0", "c1"})
    assert less.done == {"c0", "c1"}


def test_candidates_that_another_max_len_would_change_are_drawn_again(tmp_path: Path) -> None:
    """One was cut off by max_len 3, one by max_tokens, one fits into 6 and not into 5."""
    cut = Candidate("cut", "p", 0, "", (1,), (2, 3), Finish.LENGTH, -1.0)
    spent = Candidate("spent", "p", 1, "", (1,), (2, 3, 4), Finish.LENGTH, -1.0)
    long = Candidate("long", "p", 2, "", (1,), (2, 3, 4, 5, 6), Finish.STOP, -1.0)
    rows.write_part(tmp_path / "sample-old", [cut, spent, long], Candidate)
    for max_len, kept in ((3, {"cut"}), (4, {"spent"}), (5, {"spent"}), (6, {"spent", "long"})):
        one = job(tmp_path, f"new-{max_len}", max_len=max_len, max_tokens=3)
        one.adopt({"cut", "spent", "long"})
        assert one.done == kept


SAMPLER = """
from rft.rundir import StageDir
from rft.types import Candidate, Finish
class own:
    def __init__(self, setup): pass
    def sample(self, requests):
        for r in requests:
            more = (-0.5,) if r.decoding.logprobs == "tokens" else None
            yield Candidate(r.id, r.prompt_id, r.index, "t", r.prompt_token_ids, (2,), Finish.STOP,
                            -0.5, more)
    def stats(self): return {}
    def close(self): pass
"""


def test_sample_for_several_stages_has_what_each_of_them_wants(tmp_path: Path) -> None:
    """Two arms share their samples; the second one wants a log-probability for every token."""
    (tmp_path / "own.py").write_text(SAMPLER)
    rows.write_part(tmp_path / "prompts", [Prompt("p", "How many?")], Prompt)
    specs = []
    for logprobs in ("sum", "tokens"):
        (tmp_path / logprobs).mkdir()
        specs.append(
            {
                "folder": str(tmp_path / logprobs), "label": logprobs, "adapter": None,
                "prompts": str(tmp_path / "prompts"), "split": "train", "pool": "one",
                "use": f"{tmp_path}/own.py:own", "engine": {}, "chat": {},
                "model": {"base": str(EMBEDDED), "max_len": 64},
                "decoding": Decoding(n=3, logprobs=logprobs).model_dump(),
            }
        )  # fmt: skip
    sample.run(specs)
    assert all(row.token_logprobs for row in rows.read(tmp_path / "tokens", Candidate))
    for logprobs in ("sum", "tokens"):
        manifest = StageDir(tmp_path / logprobs).manifest()
        assert manifest is not None and manifest["rows"] == 3
