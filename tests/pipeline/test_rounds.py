"""Expert iteration through the command line: two rounds, each trained, evaluated and reported."""

import json
from pathlib import Path

from rft import rows, rundir
from rft.types import Candidate
from tests.pipeline.conftest import ALONE, command, rft


def test_rounds_train_on_each_other_and_stand_side_by_side(tmp_path: Path) -> None:
    few = ["prompts.limit_train=30", "prompts.limit_eval=20", "sample.n=2", "eval.use=transformers"]
    args = command("run", tmp_path, *ALONE, *few, "rounds=2")
    done = rft(*args, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "quickstart"
    told = json.loads((run / "report" / "comparison.json").read_text())
    assert [arm["arm"] for arm in told["arms"]] == ["rft@1", "rft"]
    assert "rft@1" in (run / "report" / "report.md").read_text()
    homes = [(run / name / "seed0").resolve() for name in ("rft@1", "rft")]
    trained = (homes[0] / "5_train").resolve()
    inputs = [rundir.StageDir((home / "2_sample").resolve()).inputs() for home in homes]
    policies = [(one or {})["inputs"]["decoding"]["policy"] for one in inputs]
    assert policies == ["base", (rundir.StageDir(trained).inputs() or {})["key"]]
    ids = [{c.id for c in rows.read((home / "2_sample").resolve(), Candidate)} for home in homes]
    assert len(ids[0]) == len(ids[1]) == 60 and not ids[0] & ids[1]
    # One round more leaves these as they are.
    before = {p: p.stat().st_mtime_ns for p in run.rglob("part-*")}
    done = rft(*command("select", tmp_path, *ALONE, *few, "rounds=3", "--update"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (run / "rft@2" / "seed0" / "2_sample").exists()
