"""How do the score and select stages grow? The real stages, on disk, from 10,000 candidates on.

    python scripts/bench/stages.py                           # to 2,000,000; about 10 minutes
    python scripts/bench/stages.py --rows 10000 100000       # a minute

Candidates are made up, 100 a prompt, of GSM8K's shape (three to five equations, an answer after
`####`, two in five wrong, one in fifty cut off), and lie in the order in which they finished, which
mixes prompts. The exponent is the slope between the first and the last count, of log time over log
rows: 1 is linear. Each stage is run on 100 rows first in the same process, which takes imports out;
what that takes the second time (starting workers) is taken off. Memory is the largest of the stage's whole process
tree at one moment (proportional set size), the workers included.
"""

import argparse
import json
import math
import multiprocessing as mp
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import rft
from rft import rows
from rft.rundir import StageDir
from rft.stages import score, select
from rft.types import Candidate, Finish, Prompt, digest

PER_PROMPT = 100
SELECT: list[tuple[str, dict[str, Any]]] = [
    ("correct", {}),
    ("distinct_equations", {}),
    ("cap", {"k": 4}),
]
OVERALL = ("length", {"prefer": "band", "high": 0.9, "over": "all"})
"""A selector that goes over all rows before it decides."""
TOKENS = tuple(range(3, 80))


def text(chance: random.Random, answer: int) -> str:
    lines = []
    for _ in range(chance.randint(3, 5)):
        a, b = chance.randint(2, 9), chance.randint(2, 9)
        what = chance.choice(("apples", "pears", "dollars", "miles", "hours"))
        lines.append(f"Then there are {a} * {b} = <<{a}*{b}={a * b}>>{a * b} {what} in all of it.")
    wrong = chance.random() < 0.4
    return "\n".join(lines) + f"\n#### {answer + chance.randint(1, 9) if wrong else answer}"


def make(folder: Path, count: int) -> None:
    """A run's prompts and candidates on disk."""
    prompts = [
        Prompt(digest(i), f"Problem {i}: how many?", str(i % 97))
        for i in range(count // PER_PROMPT)
    ]
    rows.write_part(folder / "prompts", prompts, Prompt)
    chance = random.Random(0)
    with rows.Writer(folder / "sample", Candidate, rows=20_000, seconds=1e9) as writer:
        waiting: list[Candidate] = []
        for number, prompt in enumerate(prompts):
            for i in range(PER_PROMPT):
                cut = Finish.LENGTH if chance.random() < 0.02 else Finish.STOP
                id = digest(prompt.id, i)
                made = text(chance, number % 97)
                waiting.append(Candidate(id, prompt.id, i, made, TOKENS[:30], TOKENS, cut, -9.5))
            if len(waiting) >= 256 * PER_PROMPT:
                chance.shuffle(waiting)  # as an engine with 256 prompts on the way ends them
                while len(waiting) > 128 * PER_PROMPT:
                    writer.add(waiting.pop())
        for candidate in waiting:
            writer.add(candidate)
    for name in ("score", "select"):
        (folder / name).mkdir()


def job(folder: Path, stage: str, scorer: str, chain: list[Any]) -> dict[str, Any]:
    base = {"folder": str(folder / stage), "label": stage, "prompts": str(folder / "prompts")}
    if stage == "score":
        scorers = [{"use": scorer, "args": {}}]
        return base | {"sample": str(folder / "sample"), "scorers": scorers, "combine": {}}
    return base | {
        "pools": [{"sample": str(folder / "sample"), "score": str(folder / "score")}],
        "selectors": [{"use": use, "args": args, "counts": {}} for use, args in chain],
        "model": {"base": str(Path(rft.__file__).parent / "embedded" / "model")},
        "chat": {"template": "none"},
        "must_sample": True,
    }


def measured(
    run: Callable[[list[Any]], None], warm: list[dict[str, Any]], one: dict[str, Any], out: Any
) -> None:
    """In a process of its own: (seconds of starting, seconds, largest MiB of the process tree)."""
    start = 0.0
    for job in warm:
        begun = time.perf_counter()
        run([job])
        start = time.perf_counter() - begun
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        me = psutil.Process()
        while not over.wait(0.1):
            held = 0
            for one in [me, *me.children(recursive=True)]:
                try:
                    held += one.memory_full_info().pss
                except psutil.Error:
                    continue
            most = max(most, held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    try:
        run([one])
    finally:
        seconds = time.perf_counter() - begun - start
        over.set()
        watcher.join()
    out.send((start, seconds, most / (1 << 20)))


def stage_time(
    run: Callable[[list[Any]], None], warm: list[dict[str, Any]], one: dict[str, Any]
) -> tuple[float, float, float]:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measured, args=(run, warm, one, theirs))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{one['label']} failed")
    got: tuple[float, float, float] = ours.recv()
    return got


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 2_000_000])
    parser.add_argument("--scorer", default="answer", help="built-in scorer to use")
    parser.add_argument(
        "--overall", action="store_true", help="select over all rows too (length, over: all)"
    )
    parser.add_argument("--dir", help="folder for the made-up runs (default: a temporary one)")
    args = parser.parse_args()
    counts = sorted(args.rows)
    chain = [*SELECT[:2], OVERALL, SELECT[2]] if args.overall else SELECT
    found: dict[str, list[float]] = {"score": [], "select": []}
    with tempfile.TemporaryDirectory(dir=args.dir) as root:
        warm = [Path(root) / f"warm{i}" for i in range(2)]
        for folder in warm:
            make(folder, PER_PROMPT)
        for count in counts:
            folder = Path(root) / str(count)
            make(folder, count)
            for stage, run in (("score", score.run), ("select", select.run)):
                for place in warm:
                    shutil.rmtree(place / stage)
                    (place / stage).mkdir()
                ready = [job(place, stage, args.scorer, chain) for place in warm]
                start, seconds, mib = stage_time(run, ready, job(folder, stage, args.scorer, chain))
                found[stage].append(seconds)
                manifest = StageDir(folder / stage).manifest()
                told = {
                    k: manifest[k] for k in ("verdicts", "funnel") if manifest and k in manifest
                }
                print(
                    f"{stage} {count:,}: {seconds:.2f} s after {start:.2f} s of starting, "
                    f"{count / seconds:,.0f} rows/s, {mib:,.0f} MiB at most; {json.dumps(told)}",
                    flush=True,
                )
            shutil.rmtree(folder)
    for stage, each in found.items():
        if len(each) > 1:
            slope = math.log(each[-1] / each[0]) / math.log(counts[-1] / counts[0])
            print(f"{stage}: exponent {slope:.3f}")


if __name__ == "__main__":
    main()
