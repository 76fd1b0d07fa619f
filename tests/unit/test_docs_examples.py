"""The examples of the pages run: each page's titled blocks are the files that it says they are, and its
experiments pass `rft check` with these. The model alone is replaced, by the embedded one."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rft
from rft import check, components, loader
from rft.types import Candidate, Finish, Prompt, Verdict
from tests.unit._pages import PAGES, ROOT, titled

BASE = Path(rft.__file__).parent / "embedded" / "model"

SAYS = {
    "own_data.md": {
        "mine.yaml": "2 training problems (2 with an answer, 1 with a solution), 1 held out",
        "exam.yaml": "2 training problems (2 with an answer, 0 with a solution), 1 held out",
    },
    "own_scorer.md": {"units.yaml": "length: 1 of 1 gold solutions are correct"},
    "from_vllm_trl.md": {"loop.yaml": "math: 2 of 2 gold solutions are correct"},
    "from_nemo_skills.md": {
        "skills.yaml": "math: 2 of 2 gold solutions are correct",
        "skills_replay.yaml": "math: 2 of 2 gold solutions are correct",
    },
    "from_open_r1.md": {
        "openr1.yaml": "math: 2 of 2 gold solutions are correct",
        "openr1_replay.yaml": "math: 2 of 2 gold solutions are correct",
    },
}
"""By page and experiment, what `rft check` says of it."""

SUMS = [
    {"question": f"{n} + {n}?", "answer": 2 * n, "solution": f"It is $\\boxed{{{2 * n}}}$."}
    for n in (3, 4)
]
SKILLS = {"question": "problem", "answer": "expected_answer", "solution": "reference_solution"}
SETTINGS = {
    "from_open_r1.md": ["prompts.args.path=./OpenR1-Math-220k", "model.max_len=2048"],
}
"""What takes the place of the hub's data set, and of a longer context than the embedded model's."""
CARD = """---
configs:
- config_name: all
  data_files:
  - {split: default, path: default.jsonl}
  - {split: extended, path: extended.jsonl}
---
"""


def given(folder: Path) -> None:
    """Files of the reader's that pages speak of and don't show."""
    with open(folder / "exam.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("Frage", "Antwort", "Fach"), *((f"{n} + {n}?", 2 * n, "sum") for n in (1, 2, 3))]
        )
    for name, row in zip(("train", "test"), SUMS):
        lines(folder / f"{name}.jsonl", row)
        lines(folder / f"math_{name}.jsonl", {SKILLS[key]: value for key, value in row.items()})
    lines(folder / "generation/output-rs0.jsonl", {"problem": "3 + 3?", "generation": "6"})
    openr1 = [
        {
            "problem": row["question"],
            "answer": str(row["answer"]),
            "solution": row["solution"],
            "problem_type": "Algebra",
            "generations": [row["solution"], "No."],
        }
        for row in SUMS
    ]
    for name, row in zip(("default", "extended"), openr1):
        lines(folder / f"OpenR1-Math-220k/{name}.jsonl", row)
    (folder / "OpenR1-Math-220k/README.md").write_text(CARD)
    pq.write_table(pa.Table.from_pylist(openr1), folder / "openr1.parquet")


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_experiment_is_tried() -> None:
    shown = {page.name: {name for name in titled(page) if name.endswith(".yaml")} for page in PAGES}
    assert {page: names for page, names in shown.items() if names} == {
        page: set(said) for page, said in SAYS.items()
    }


@pytest.mark.parametrize("page", SAYS)
def test_experiments_pass_check(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given(tmp_path)
    for name, text in titled(ROOT / "docs" / page).items():
        Path(name).write_text(text)
    for name, said in SAYS[page].items():
        settings = [f"model.base={BASE}", *SETTINGS.get(page, [])]
        fine = check.check(loader.load(name, settings), name) == 0
        told = capsys.readouterr().out
        assert fine, told
        assert said in told


def test_scorer_page_s_own_test_passes_and_its_stream_scorer_scores(tmp_path: Path) -> None:
    files = titled(ROOT / "docs" / "own_scorer.md")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_units.py"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr

    longest = components.find("scorers", f"{tmp_path}/longest.py:longest")()
    ours = [Candidate(str(n), "p", n, "x" * n, (), (), Finish.STOP) for n in (1, 3, 2)]
    scores = dict(longest.score(iter([(Prompt("p", "?"), ours)])))
    assert {id for id, score in scores.items() if score.verdict is Verdict.CORRECT} == {"3"}
    assert components.is_stream(f"{tmp_path}/longest.py:longest")


def test_data_lines_on_the_pages_are_json() -> None:
    for page in PAGES:
        for name, text in titled(page).items():
            if name.endswith(".jsonl"):
                assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
