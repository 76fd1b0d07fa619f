"""Do forecasts hold? `rft plan`, then the run, many times, with a real engine.

    python scripts/bench/forecast.py

Each run has a seed and problems of its own, drawn from all that come with the package; the runs differ
in how many there are, in the temperature, and in whether the number of samples is fixed or adaptive.
Counted is how often the figure that a run came to was inside the 90% interval that its pilot gave. The
policy is trained once, before.
"""

import argparse
import json
import random
import shutil
from collections import Counter
from pathlib import Path

from adaptive_engine import rft

from rft import forecast, loader, pilots
from rft.forecast import FIGURES, Range
from rft.plan import Plan

WANTED = ("tokens", "correct", "hours")
"""Whose intervals must all hold for a run to count; correct answers are the yield."""


EMBEDDED = Path("rft/embedded")


def draw_problems(folder: Path, seed: int, count: int) -> list[str]:
    """Writes so many problems to train on, and the others as held-out ones. Returns the settings."""
    every = [json.loads(line) for line in (EMBEDDED / "train.jsonl").open()]
    # As few of them have a worked solution as of the others.
    every += [json.loads(line) | {"solution": None} for line in (EMBEDDED / "eval.jsonl").open()]
    random.Random(seed).shuffle(every)
    words = []
    for split, some in (("train", every[:count]), ("eval", every[count:])):
        path = folder / f"{split}{seed}.jsonl"
        kept = ({k: v for k, v in row.items() if v is not None} for row in some)
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        words.append(f"prompts.args.{split}={path}")
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=1, help="seed of the first run")
    parser.add_argument("--limits", type=int, nargs="+", default=[300, 500, 700])
    parser.add_argument("--set", nargs="*", default=[], help="settings of all runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-forecast"))
    args = parser.parse_args()
    folder = args.folder.resolve()
    common = [
        args.config,
        f"runs={folder}",
        "arms.random=null",
        "arms.rft_repeats=null",
        "arms.sft_matched=null",
        *args.set,
    ]
    rft("train", *common, "name=policy", "arms.rft=null")
    policy = folder / "policy" / "sft" / "seed0" / "5_train"
    inside: Counter[str] = Counter()
    whole = 0
    print("seed prompts temp rule      " + "".join(f"{name:>38}" for name in FIGURES))
    for seed in range(args.first, args.first + args.runs):
        limit = args.limits[seed % len(args.limits)]
        heat, rule = (0.7, 1.0, 1.3)[seed // 2 % 3], ("uniform", "adaptive")[seed % 2]
        own = [
            *common,
            f"name=run{seed}",
            f"seeds=[{seed}]",
            f"sample.policy={policy}",
            f"sample.temperature={heat}",
            *draw_problems(folder, seed, limit),
            f"sample.allocate.use={rule}",
            *(["sample.n=64", "sample.allocate.args={price: 12}"] if rule == "adaptive" else []),
        ]
        shutil.rmtree(folder / f"run{seed}", ignore_errors=True)
        rft("plan", *own, "--samples", "16")
        rft("score", *own)
        plan = Plan(loader.load(own[0], own[1:]))
        (kept,) = json.loads((plan.folder / "forecast.json").read_text()).values()
        ((sample, score),) = pilots.to_pilot(plan)
        got = forecast.actual(sample, score)
        cells, holds = [], {}
        for name in FIGURES:
            told = Range(**kept["rules"][rule][name])
            holds[name] = got[name] in told
            digits = 4 if name == "hours" else 0
            shown = f"{got[name]:,.{digits}f} of {told.low:,.{digits}f}..{told.high:,.{digits}f}"
            cells.append(shown + (" " if holds[name] else "!"))
        inside.update(name for name in FIGURES if holds[name])
        whole += all(holds[name] for name in WANTED)
        print(
            f"{seed:4} {limit:7} {heat:4} {rule:<9} " + "".join(f"{cell:>38}" for cell in cells),
            flush=True,
        )
    for name in FIGURES:
        print(f"{name:<9} inside {inside[name]} of {args.runs}")
    print(f"{', '.join(WANTED)} all inside: {whole} of {args.runs}")


if __name__ == "__main__":
    main()
