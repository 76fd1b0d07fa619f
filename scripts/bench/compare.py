"""`rft compare` on a million verdicts: time and memory of the whole command.

    python scripts/bench/compare.py                     # makes some 300 MB under /tmp, and removes it
    python scripts/bench/compare.py --verdicts 10000    # a hundredth of it

Verdicts come as JSON lines and as run folders, 10 arms on 100,000 problems and 2 on 500,000. With
--out, so that the report is written too. Peak memory is the largest resident set of the process.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from rft import integrity, rows
from rft.rundir import StageDir, stage_record
from rft.types import Candidate, ProblemRow, Prompt, ScoreRow, digest

NAMES = ("sft", "rft", *(f"arm{i}" for i in range(8)))


def verdicts(path: Path, arms: int, problems: int) -> None:
    rng = random.Random(0)
    ids = [digest(i) for i in range(problems)]
    with open(path, "w") as file:
        for arm in NAMES[:arms]:
            for id in ids:
                right = rng.random() < 0.5
                file.write(json.dumps({"arm": arm, "problem": id, "correct": right}) + "\n")


def begin(run: Path, kind: str, **inputs: object) -> StageDir:
    record = stage_record(kind, {"kind": kind, **inputs})
    stage = StageDir(run / "stages" / f"{kind}-{record['key'][:12]}")
    stage.path.mkdir(parents=True)
    stage.begin(kind, record["inputs"])
    return stage


def folder(run: Path, arms: int, problems: int) -> None:
    """A finished run's evaluation, its questions and answers as long as GSM8K's."""
    rng = np.random.default_rng(0)
    ids = [digest(i) for i in range(problems)]
    (run / "x").mkdir(parents=True)
    (run / "experiment.yaml").write_text("name: bench\narms: {}\n")
    prompts = begin(run, "prompts")
    text = "Ann has 3 shells and finds more of them. " * 5
    rows.write_part(prompts.path / "eval", [Prompt(i, text, "7") for i in ids], Prompt)
    rows.write_part(prompts.path / "train", [Prompt(digest("t"), text, "7")], Prompt)
    prompts.commit(1.0)
    links = {}
    for arm in NAMES[:arms]:
        right = rng.random(problems) < 0.5
        own = [f"{i[:20]}{arm:>4.4}" for i in ids]
        sample, score = begin(run, "sample", arm=arm), begin(run, "score", arm=arm, score=[])
        made = begin(run, "eval", arm=arm)
        numbers = pa.array([list(range(40))] * problems, pa.list_(pa.int32()))
        fixed = {"index": [0] * problems, "text": [text] * problems, "finish": ["stop"] * problems}
        fixed |= {"logprob": [None] * problems, "token_logprobs": [None] * problems}
        fixed |= {"pool": [""] * problems, "spared": [None] * problems}
        table = {"id": own, "prompt_id": ids, "prompt_token_ids": numbers, "token_ids": numbers}
        whole = rows.schema(Candidate)
        rows.write_part(sample.path, pa.table({**table, **fixed}, schema=whole), Candidate)
        said = ["correct" if one else "wrong" for one in right]
        table = {"id": own, "prompt_id": ids, "verdict": said, "reason": [None] * problems}
        table |= {"extracted": ["7"] * problems, "value": [None] * problems, "each": ["[]"] * problems}  # fmt: skip
        rows.write_part(score.path, pa.table(table, schema=rows.schema(ScoreRow)), ScoreRow)
        hits = [[bool(one)] for one in right]
        counts = {name: [0] * problems for name in ("unknown", "truncated")}
        table = {"prompt_id": ids, "n": [1] * problems, "correct": right.astype(int), **counts}
        table |= {"answers": [["7"]] * problems, "hits": hits, "tokens": [40] * problems}
        rows.write_part(made.path, pa.table(table, schema=rows.schema(ProblemRow)), ProblemRow)
        home = run / arm / "seed0"
        home.mkdir(parents=True)
        stages = {"1_prompts": prompts, "6_eval_sample": sample, "6_eval_score": score, "6_eval": made}  # fmt: skip
        for name, stage in stages.items():
            if stage is not prompts:
                stage.commit(1.0)
            (home / name).symlink_to(f"../../stages/{stage.path.name}")
            links[f"{arm}/seed0/{name}"] = stage.path.name
    integrity.seal(run, links)


def measure(name: str, source: Path, out: Path) -> None:
    code = "from rft.cli import main; import sys, resource; code = main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"  # fmt: skip
    started = time.perf_counter()
    command = [sys.executable, "-c", code, "compare", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{name}: {took:.1f} s, peak {int(done.stdout.split()[-1]) / 2**20:.2f} GiB "
        f"({cpu.ru_utime + cpu.ru_stime:.0f} s of CPU time up to here)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--verdicts", type=int, default=1_000_000, help="verdicts in all")
    in_all = parser.parse_args().verdicts
    for arms in (10, 2):
        problems = in_all // arms
        for name, make in (("verdicts.jsonl", verdicts), ("run", folder)):
            with tempfile.TemporaryDirectory() as place:
                make(Path(place) / name, arms, problems)
                told = f"{arms} arms x {problems:,} problems, {name}"
                measure(told, Path(place) / name, Path(place) / "out")


if __name__ == "__main__":
    main()
