"""`use:` and `args:`: what is found, what is refused, and that a user's file is enough."""

from pathlib import Path

import pytest

from rft import components
from rft.config import ConfigError
from rft.section import Component
from rft.types import Candidate, Finish, Prompt, Score, Verdict

PROMPT = Prompt("p", "?", "5")
CANDIDATE = Candidate("c", "p", 0, "5 km", (), (), Finish.STOP)

MINE = """
from dataclasses import dataclass
from rft.types import Candidate, Prompt, Score, Verdict

def ends_with(prompt: Prompt, candidate: Candidate, *, unit: str, weight: float = 1.0) -> Score:
    right = candidate.text.endswith(unit)
    return Score(Verdict.CORRECT if right else Verdict.WRONG, value=weight)

@dataclass
class Longer:
    than: int = 3

    def __call__(self, prompt, candidate):
        right = len(candidate.text) > self.than
        return Score(Verdict.CORRECT if right else Verdict.WRONG)

def open_ended(prompt, candidate, **args):
    return Score(Verdict.UNKNOWN, ",".join(args))

class Needs:
    def __init__(self, path):
        raise ValueError(f"{path} is no model")

not_callable = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def score(use: str, **args: object) -> Score:
    made = components.make("scorers", Component(use=use, args=args))
    got: Score = made(PROMPT, CANDIDATE)
    return got


def refused(use: str, kind: str = "scorers", **args: object) -> str:
    with pytest.raises(ConfigError) as fault:
        components.make(kind, Component(use=use, args=args))
    return str(fault.value)


@pytest.mark.parametrize("kind", ["samplers", "scorers", "selectors", "prompts"])
def test_built_ins_are_found_by_their_file_name(kind: str) -> None:
    names = ["hf", "jsonl"] if kind == "prompts" else components.builtin_names(kind)
    assert names
    for name in names:
        assert components.find(kind, name).__name__ == name


def test_unknown_built_in(tmp_path: Path) -> None:
    assert "no 'anwser'; did you mean answer?; built in are answer" in refused("anwser")
    assert "did you mean jsonl?" in refused("json", kind="prompts")
    assert "./file.py:function" in refused("something_else")


def test_function_and_class_in_a_file(mine: Path) -> None:
    assert score(f"{mine}:ends_with", unit="km").verdict is Verdict.CORRECT
    assert score(f"{mine}:ends_with", unit="m2").verdict is Verdict.WRONG
    assert score(f"{mine}:Longer").verdict is Verdict.CORRECT
    assert score(f"{mine}:Longer", than=4).verdict is Verdict.WRONG
    assert score(f"{mine}:open_ended", anything=1).reason == "anything"


def test_module_by_its_dotted_name() -> None:
    assert components.find("scorers", "rft.scorers.answer:answer").__name__ == "answer"
    assert "cannot import no.such" in refused("no.such:thing")
    assert "has no 'anwser'; did you mean answer?" in refused("rft.scorers.answer:anwser")


def test_arguments_are_bound(mine: Path) -> None:
    assert "takes no argument 'unti'; did you mean unit?; it takes unit, weight" in refused(
        f"{mine}:ends_with", unti="km"
    )
    assert "needs the argument 'unit'" in refused(f"{mine}:ends_with")
    assert "takes no argument 'prompt'" in refused(f"{mine}:ends_with", unit="m", prompt=1)
    assert "takes no argument 'much'" in refused(f"{mine}:Longer", much=4)
    assert "x is no model" in refused(f"{mine}:Needs", path="x")
    assert "takes no argument 'k'; it takes none" in refused("correct", kind="selectors", k=1)
    assert "needs the argument 'against'" in refused("decontaminate", kind="selectors")


def test_arguments_that_do_not_go_together_are_found_when_bound() -> None:
    for args in ({}, {"rows": 4, "per_prompt": 2}, {"rows": "arm:rft", "per_prompt": 2}):
        message = refused("random", kind="selectors", **args)
        assert message == "selectors.args: random: give exactly one of rows and per_prompt"
    components.bind("selectors", Component(use="random", args={"per_prompt": 2}))
    assert "no such file: ./none.jsonl" in refused(
        "decontaminate", kind="selectors", against="./none.jsonl"
    )


def test_arguments_are_read_through_their_annotations(mine: Path) -> None:
    assert score(f"{mine}:ends_with", unit="km", weight="1e-4").value == 1e-4
    message = refused(f"{mine}:ends_with", unit="km", weight="heavy")
    assert "scorers.args.weight: " in message and "'heavy'" in message
    assert "args.than: " in refused(f"{mine}:Longer", than="long")
    assert "args.k: " in refused("cap", kind="selectors", k=0)
    assert "args.rows: " in refused("random", kind="selectors", rows="many")
    # What another arm gives is known only when that arm is there.
    components.bind("selectors", Component(use="random", args={"rows": "arm:rft"}))


def test_object_that_can_be_called_has_the_source_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bound.py"
    path.write_text(
        "import functools\n"
        "def base(prompt, candidate, *, unit='m'): ...\n"
        "mine = functools.partial(base, unit='km')\n"
    )
    assert components.source_digest("scorers", f"{path}:mine") == components.source_digest(
        "scorers", f"{path}:base"
    )


def test_selector_may_be_a_class_with_arguments(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "class First:\n"
        "    def __init__(self, k: int = 1, seed: int = 0): self.k, self.seed = k, seed\n"
        "    def __call__(self, groups): return self.k\n"
    )
    use = f"{path}:First"
    assert components.parameters("selectors", use) == ["k", "seed"]
    made = components.make("selectors", Component(use=use, args={"k": "3"}))
    assert made([]) == 3


@pytest.mark.parametrize(
    "text, words",
    [
        ("def f(:\n", ["SyntaxError", "line 1"]),
        ("import no_such_module_xyz\n", ["ModuleNotFoundError", "no_such_module_xyz"]),
        ("1 / 0\n", ["ZeroDivisionError"]),
    ],
)
def test_fault_in_the_users_file(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    for _ in range(2):
        message = refused(f"{path}:f")
        assert str(path) in message
        for word in words:
            assert word in message
    path.write_text(MINE)
    assert score(f"{path}:Longer").verdict is Verdict.CORRECT


def test_what_is_not_there(mine: Path) -> None:
    assert "no such file" in refused(f"{mine.parent}/none.py:f")
    assert "has no 'ends_wth'; did you mean ends_with?" in refused(f"{mine}:ends_wth")
    assert "has no 'not_callable'" in refused(f"{mine}:not_callable")


def test_files_of_one_name_in_two_folders_do_not_meet(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "scorer.py").write_text(
            f"from rft.types import Score, Verdict\n"
            f"def f(p, c): return Score(Verdict.WRONG, {name!r})\n"
        )
    assert score(f"{tmp_path}/one/scorer.py:f").reason == "one"
    assert score(f"{tmp_path}/two/scorer.py:f").reason == "two"


def test_source_digest_follows_code_and_not_layout(tmp_path: Path) -> None:
    def of(name: str, text: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return components.source_digest("scorers", f"{path}:f")

    first = of("a", "def f(p, c):\n    return p == c\n")
    assert of("b", "# said\ndef f(p,\n      c):\n\n    return (p == c)\n") == first
    assert of("c", "def f(p, c):\n    return p != c\n") != first


def test_source_digest_of_a_built_in_follows_its_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = components.source_digest("selectors", "diverse")
    plain = components.source_digest("selectors", "correct")
    found = components._helpers
    monkeypatch.setattr(
        components, "_helpers", lambda *a: [h for h in found(*a) if h.stem != "equations"]
    )
    assert components.source_digest("selectors", "diverse") != before
    assert components.source_digest("selectors", "correct") == plain
