"""Samples that are there already, through the command line: of another run, and of a file."""

import json
from pathlib import Path
from typing import Any

from rft import rows, rundir
from rft.types import Candidate, Prompt, ScoreRow
from tests.pipeline.conftest import ALONE, command, rft


def scored(home: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    """What is kept of each sample, and its verdict, by prompt and index."""
    verdicts = {r.id: r.verdict for r in rows.read((home / "3_score").resolve(), ScoreRow)}
    found = rows.read((home / "2_sample").resolve(), Candidate)
    return {
        (c.prompt_id, c.index): (c.text, c.token_ids, c.finish, c.logprob, verdicts[c.id])
        for c in found
    }


def replayed(runs: Path, source: Path) -> tuple[Path, dict[str, Any]]:
    """Home of the arm, and the sample stage's manifest, of a run with another's samples."""
    use = ["sample.use=replay", f"sample.args={{path: {source}}}"]
    done = rft(*command("score", runs, *ALONE, *use))
    assert done.returncode == 0, done.stdout + done.stderr
    home = runs / "quickstart/rft/seed0"
    manifest = rundir.StageDir((home / "2_sample").resolve()).manifest()
    assert manifest is not None
    return home, manifest


def test_samples_of_a_run_and_of_a_file(finished: Path, tmp_path: Path) -> None:
    source = finished / "rft/seed0"
    home, manifest = replayed(tmp_path / "run", source)
    assert scored(home) == scored(source) and len(scored(home)) == 100 * 8
    assert manifest["engine"]["retokenised"] == 0
    # The same as text, of a few prompts, not as many as are asked for, with lines of no use.
    prompts = list(rows.read(source / "1_prompts/train", Prompt))[:20]
    texts = {key: row[0] for key, row in scored(source).items()}
    with open(tmp_path / "samples.jsonl", "w") as file:
        for p in prompts:
            said = list(dict.fromkeys(texts[p.id, i] for i in range(8)))[:3]
            file.write(json.dumps({"problem": p.question, "generations": said}) + "\n")
        file.write('{"problem": "Another?", "generations": ["1"]}\n{"prob')
    home, manifest = replayed(tmp_path / "file", tmp_path / "samples.jsonl")
    got = scored(home)
    assert 20 < len(got) == manifest["rows"] <= 60
    assert manifest["funnel"]["dropped"] == {"not_in_source": 100 * 8 - len(got)}
    assert manifest["engine"]["no_such_prompt"] == manifest["engine"]["broken"] == 1
    judged = {(key[0], row[0]): row[4] for key, row in scored(source).items()}
    for (prompt_id, _), row in got.items():
        assert row[4] == judged[prompt_id, row[0]]
