"""Evaluation in other number formats through the command line: beside the main one, and never instead."""

import json
from pathlib import Path

import pytest

from rft import rundir
from tests.pipeline.conftest import ALONE, command, rft

FEW = ["prompts.limit_train=30", "prompts.limit_eval=20", "sample.n=2", "train.epochs=1"]


def test_formats_stand_beside_the_main_evaluation_and_leave_it_alone(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    pytest.importorskip("bitsandbytes")
    # vLLM has no INT8, so the main format is drawn by the sampler that has as well.
    other = ["eval.inference.use=transformers"]
    first = command("eval", tmp_path, *ALONE, *FEW, *other, "eval.inference.formats=[int8]")
    done = rft(*first)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "quickstart"
    home = run / "rft" / "seed0"
    before = {p: p.stat().st_mtime_ns for p in (run / "stages").rglob("*") if p.is_file()}
    more = [*ALONE, *FEW, *other, "eval.inference.formats=[bf16,int8]", "--update"]
    done = rft(*command("run", tmp_path, *more))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    told = json.loads((run / "report" / "comparison.json").read_text())["formats"]
    assert [(one["format"], one["use"]) for one in told] == [
        (name, "transformers") for name in ("fp32", "bf16", "int8")
    ]
    assert all(one["peak_gb"] > 0.3 and one["tokens_per_s"] > 0 for one in told)
    assert told[2]["weights_gb"] < 0.6 * told[0]["weights_gb"]
    assert [one["pair"] and one["pair"]["problems"] for one in told] == [None, 20, 20]
    manifests = [
        rundir.StageDir((home / f"6_eval_sample{name}").resolve()).manifest() or {}
        for name in ("", "_main", "_bf16", "_int8")
    ]
    assert [m["dtype"] for m in manifests] == ["float32", "float32", "bfloat16", "int8"]
    assert "all through transformers" in " ".join(done.stderr.split())
    # The table is in all three places, and a row of a format can be looked at.
    assert "Number formats of inference" in (run / "report" / "report.html").read_text()
    assert "| int8 |" in (run / "report" / "report.md").read_text()
    shown = rft(*command("show", tmp_path)[:4], str(run), "rft/seed0/6_eval_int8", "-n", "1")
    assert shown.returncode == 0 and "correct" in shown.stdout, shown.stdout + shown.stderr
