"""The command line: help with examples, exit codes, and imports that stay cheap."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rft import cli

ROOT = Path(__file__).parents[2]
VERBS = {
    "run",
    "check",
    "sample",
    "score",
    "select",
    "train",
    "eval",
    "report",
    "show",
    "doctor",
}
HEAVY = ("torch", "vllm", "transformers", "peft", "accelerate")


def python(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, text=True, capture_output=True, timeout=120
    )


def verbs() -> set[str]:
    (action,) = [a for a in cli.parser()._actions if a.dest == "verb"]
    return set(action.choices or ())


def test_verbs() -> None:
    assert verbs() >= VERBS


@pytest.mark.parametrize("verb", [None, *sorted(verbs())])
def test_help_has_an_example_that_parses(
    verb: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"] if verb else ["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "example: rft " in text
    example = text.partition("example: rft ")[2].split()
    got = cli.parser().parse_args(example)
    assert got.verb == (verb or "run")
    for word in example:
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize(
    "words", [[], ["rn"], ["run"], ["run", "x.yaml", "--no-such"], ["doctor", "a=1"], ["show"]]
)
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert "usage: rft" in capsys.readouterr().err


def test_settings_may_stand_behind_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(ROOT / "configs/quickstart.yaml"), "--update", "trian.lr=1", "seeds=[1]"]
    assert cli.main(words) == 2
    assert "command line: trian is not a setting" in capsys.readouterr().err


def test_missing_file_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none.yaml: no such file\n"
    assert cli.main(["show", str(tmp_path / "none")]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_help_imports_little() -> None:
    done = python("-X", "importtime", "-m", "rft.cli", "--help")
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"argparse", "rft"} <= loaded
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & {*HEAVY, "pydantic", "yaml", "pyarrow", "numpy", "rich"}


CHECK = """
import sys
from rft import cli
code = cli.main(["check", sys.argv[1], f"runs={sys.argv[2]}"])
heavy = sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[3:]))
print("CODE", code, "HEAVY", *heavy)
"""


def experiment(folder: Path) -> Path:
    """Small enough for a test, and with every verdict of `check` to be had."""
    (folder / "model").mkdir()
    (folder / "train.jsonl").write_text(
        '{"question": "1 + 1?", "answer": 2, "solution": "1 + 1 = 2\\n#### 2"}\n'
        '{"question": "2 + 2?", "answer": 4}\n'
    )
    (folder / "eval.jsonl").write_text('{"question": "3 + 3?", "answer": 6}\n')
    file = folder / "e.yaml"
    file.write_text(
        "name: x\nmodel: {base: ./model}\nsample: {n: 3, max_tokens: 10}\n"
        "prompts: {use: jsonl, args: {train: ./train.jsonl, eval: ./eval.jsonl}}\n"
    )
    return file


def test_check_needs_no_model_and_imports_none(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    done = python("-c", CHECK, str(file), str(tmp_path / "runs"), *HEAVY)
    assert done.stdout.splitlines()[-1] == "CODE 0 HEAVY", done.stdout + done.stderr
    for words in (
        "settings, data and arguments are in order",
        "2 training problems (2 with an answer, 1 with a solution), 1 held out",
        "answer: 1 of 1 gold solutions are correct",
        "6 samples, at most 60 tokens",
    ):
        assert words in done.stdout
    assert not (tmp_path / "runs").exists()


def test_check_shows_gold_solutions_that_come_out_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment(tmp_path)
    text = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(text.replace("#### 2", "#### 3"))
    assert cli.main(["check", str(file), f"runs={tmp_path}/runs"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "0 of 1 gold solutions are correct" in told
    assert "wrong: read '3', gold '2' question: 1 + 1?" in told


SAYS = """
from rft.types import Score, Verdict

def unsure(prompt, candidate):
    return Score(Verdict.UNKNOWN, "unsure")

class whole:
    whole_prompts = True

    def score(self, groups):
        raise AssertionError("a check asks no stream scorer")
"""


@pytest.mark.parametrize(
    "combine, code",
    [
        ("{rule: all}", 1),
        ("{rule: first}", 0),
        ("{rule: any}", 0),
        ("{rule: weighted, weights: [1, 1, 6], threshold: 0.5}", 0),
        ("{rule: weighted, weights: [1, 2, 1], threshold: 0.7}", 1),
    ],
)
def test_check_judges_solutions_by_the_rule_of_the_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], combine: str, code: int
) -> None:
    """And of a scorer that isn't tried the weight does not count."""
    file = experiment(tmp_path)
    (tmp_path / "says.py").write_text(SAYS)
    scorers = "[{use: ./says.py:unsure}, {use: answer}, {use: ./says.py:whole}]"
    file.write_text(f"{file.read_text()}score: {scorers}\ncombine: {combine}\n")
    assert cli.main(["check", str(file), f"runs={tmp_path}/runs"]) == code
    told = " ".join(capsys.readouterr().out.split())
    assert f"{1 - code} of 1 gold solutions are correct" in told
    assert "says.py:whole: not tried here" in told


def test_check_without_answers_or_solutions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"question": "Why?"}\n')
    sampled = "arms: {rft: {sample: {policy: base}}}\ncompare: {baseline: rft}\n"
    file.write_text(file.read_text() + sampled)
    assert cli.main(["check", str(file), f"runs={tmp_path}/runs"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "no solution to try the scorer answer on" in told
    file.write_text(file.read_text() + "score: [{use: consensus}]\n")
    assert cli.main(["check", str(file), f"runs={tmp_path}/runs"]) == 0
    assert "consensus: not tried here" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_check_runs_the_tests_of_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = experiment(tmp_path)
    problems = [
        {
            "question": "Double x.",
            "tests": "assert f(2) == 4",
            "solution": "def f(x): return 2 * x",
        },
        {"question": "Halve x.", "tests": "assert f(2) == 1", "solution": "def f(x): return 2 * x"},
        {"question": "Untested.", "tests": "assert f(2) == 1"},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, problems)))
    file.write_text(file.read_text() + "score: [{use: code}]\n")
    assert cli.main(["check", str(file), f"runs={tmp_path}/runs"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "code: 1 of 2 gold solutions are correct" in told, told
    assert "question: Halve x." in told and "Untested" not in told


@pytest.mark.parametrize(
    "module", ["rft.cli", "rft.config", "rft.components", "rft.plan", "rft.check", "rft.runner"]
)
def test_importing_is_cheap(module: str) -> None:
    code = (
        f"import sys, {module}\nfrom rft import components\n"
        "for name in components.builtin_names('samplers'):\n"
        "    components.find('samplers', name)\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = python("-c", code)
    assert done.stdout == "[]\n", done.stdout + done.stderr
