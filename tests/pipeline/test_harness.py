"""lm-evaluation-harness itself on local data: the arms' adapters, its files, and the comparison."""

import json
from pathlib import Path

import pytest

from rft import rows
from rft.rundir import StageDir
from rft.types import Candidate, ProblemRow
from tests.pipeline.conftest import ROOT, command, rft

pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'rft[harness]'"
)

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
generation_kwargs: {{until: ["Question:"], do_sample: false, max_gen_toks: 64}}
metric_list: [{metrics}]
filter_list:
  - {{name: strict, filter: [{{function: regex, regex_pattern: "#### (-?[0-9.,]+)"}}, {{function: take_first}}]}}
  - {{name: loose, filter: [{{function: regex, regex_pattern: "(-?[0-9]+)", group_select: -1}}, {{function: take_first}}]}}
metadata: {{version: 1.0}}
{more}
"""
EXACT = "{metric: exact_match, aggregation: mean, higher_is_better: true}"


def write(folder: Path, name: str, metrics: str = EXACT, more: str = "", data: str = "") -> None:
    folder.mkdir(exist_ok=True)
    data = data or str(ROOT / "rft/embedded/eval.jsonl")
    text = TASK.format(name=name, data=data, metrics=metrics, more=more)
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def asked(runs: Path, folder: Path, *tasks: str, more: tuple[str, ...] = ()) -> list[str]:
    return command(
        "eval",
        runs,
        *("--harness", "lm-eval", "--update", f"eval.harness.tasks=[{','.join(tasks)}]"),
        *(f"eval.harness.include_path={folder}", *more),
    )


def test_arms_are_compared_on_a_local_task_as_on_the_held_out_problems(tmp_path: Path) -> None:
    runs, folder = tmp_path, tmp_path / "tasks"
    write(folder, "embedded")
    few = ("eval.harness.limit=40", "eval.use=transformers", "compare.baseline=sft")
    others = (f"arms.{arm}=null" for arm in ("sft_matched", "random", "rft", "rft_repeats"))
    words = asked(runs, folder, "embedded", more=(*few, *others))
    done = rft(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = runs / "quickstart"
    told = json.loads((run / "report" / "comparison.json").read_text())
    (task,) = told["harness"]
    assert (task["metric"], task["problems"]) == ("exact_match,strict", 40)
    assert list(task["pooled"]) == list(told["pooled"])

    # The same prompts, greedy as well, transformers as well, the same place of the answer: the same text
    # and verdict of each problem.
    for arm in told["pooled"]:
        home = run / arm / "seed0"
        ours = {p.prompt_id: p.correct for p in rows.read(home / "6_eval", ProblemRow)}
        texts = {c.prompt_id: c.text for c in rows.read(home / "6_eval_sample", Candidate)}
        prompts = {p["question"]: p["id"] for p in _prompts(home / "1_prompts" / "eval")}
        (file,) = (home / "7_harness_embedded").glob("samples_*.jsonl")
        theirs = [json.loads(line) for line in file.read_text().splitlines()]
        theirs = [row for row in theirs if row["filter"] == "strict"]
        assert len(theirs) == len(ours) == 40
        for row in theirs:
            problem = prompts[row["doc"]["question"]]
            assert row["resps"][0][0] == texts[problem]
            assert row["exact_match"] == ours[problem]
    assert task["pooled"]["base"]["accuracy"]["value"] == 0
    assert task["pooled"]["sft"]["accuracy"]["value"] > 0

    pair = next(c for c in task["comparisons"] if (c["arm"], c["baseline"]) == ("base", "sft"))
    assert pair["wins"] == 0 and pair["losses"] > 0 and pair["family"] == len(told["pooled"]) - 1
    assert "mean of exact_match,strict over the same 40 problems" in done.stderr
    assert "embedded (lm-evaluation-harness)" in (run / "report" / "report.html").read_text()
    assert "| embedded | mean % (95%) |" in (run / "report" / "report.md").read_text()

    # Another metric is another reading of what is there; nothing is asked of a model again.
    stages = {p: p.stat().st_mtime_ns for p in (run / "stages").glob("harness-*/manifest.json")}
    done = rft(*words, 'eval.harness.metric={embedded: "exact_match,loose"}')
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p: p.stat().st_mtime_ns for p in stages} == stages
    (task,) = json.loads((run / "report" / "comparison.json").read_text())["harness"]
    assert task["metric"] == "exact_match,loose"

    # A task that is changed is done again; one that was killed goes on with what it lacks.
    kept = (run / "sft" / "seed0" / "7_harness_embedded").resolve()
    (kept / "manifest.json").unlink()
    done = rft(*words)
    assert done.returncode == 0 and StageDir(kept).manifest(), done.stdout + done.stderr
    again = [p for p, at in stages.items() if p.stat().st_mtime_ns != at]
    assert again == [kept / "manifest.json"]
    write(folder, "embedded", more="description: 'Calculate.\\n'")
    done = rft(*[word for word in words if word != "--update"])
    assert done.returncode == 2 and "folder:" in done.stderr, done.stdout + done.stderr
    shown = rft(*words[:3], "show", str(run))
    assert shown.returncode == 0 and "harness-" in shown.stdout, shown.stdout + shown.stderr


def _prompts(folder: Path) -> list[dict[str, str]]:
    import pyarrow.parquet as pq

    return [row for part in rows.parts(folder) for row in pq.read_table(part).to_pylist()]


@pytest.mark.parametrize(
    "task, say",
    [
        ("gsm8q", "has no task 'gsm8q'; near it are gsm8k"),
        ("humaneval", "humaneval runs what the model writes on this machine, in no sandbox"),
        ("corpus", "corpus has no metric that is a mean over problems (it has bleu)"),
        ("away", "away cannot be loaded: FileNotFoundError"),
        ("gsm8k", "gsm8k cannot be loaded: "),
    ],
)
def test_tasks_that_cannot_be_are_refused_before_anything_is_sampled(
    tmp_path: Path, task: str, say: str
) -> None:
    folder = tmp_path / "tasks"
    write(folder, "corpus", "{metric: bleu, aggregation: bleu, higher_is_better: true}")
    write(folder, "away", data=str(tmp_path / "none.jsonl"))
    done = rft(*asked(tmp_path, folder, task))
    assert done.returncode == 2 and say in done.stderr, done.stdout + done.stderr
    stages = {p.name.split("-")[0] for p in (tmp_path / "quickstart" / "stages").iterdir()}
    assert stages == {"tasks"}
