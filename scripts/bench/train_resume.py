"""Does a training run that is killed again and again learn what an undisturbed one learns, to the last bit?

    python scripts/bench/train_resume.py
    python scripts/bench/train_resume.py --model models/SmolLM2-135M-Instruct --steps 12 --every 2

Trains the embedded model (or another) twice on the same rows: once undisturbed, once killed (SIGKILL, the
launcher and its trainer) after a random number of further steps, until that many kills have hit it. Then
the two adapters and the two metrics.jsonl are compared, and what was computed more than once is told.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).resolve().parents[2] / "rft" / "embedded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(EMBEDDED / "model"), help="folder of the model")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=10, help="checkpoint_every")
    parser.add_argument("--compute", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-train-resume"))
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    data = write_rows(args)
    whole, hurt = (job(args, name, data) for name in ("whole", "hurt"))
    assert start(args, whole).wait() == 0
    chance, kills, again = random.Random(args.seed), 0, 0
    metrics = Path(hurt["folder"]) / "metrics.jsonl"
    while True:
        old = metrics.stat().st_ino if metrics.is_file() else 0
        run = start(args, hurt)
        # The trainer writes the file anew when it begins, without what it will do again.
        while run.poll() is None and (metrics.stat().st_ino if metrics.is_file() else 0) == old:
            time.sleep(0.01)
        if kills < args.kills:
            before = resumed(hurt)
            left = max(args.steps - before - 1, 1)
            until = before + chance.randint(1, max(1, min(left, 2 * args.steps // args.kills)))
            while run.poll() is None and lines(metrics) < until:
                time.sleep(0.002)
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
                kills += 1
                lost = lines(metrics) - resumed(hurt)
                again += max(lost, 0)
                print(f"  kill {kills} at step {lines(metrics)}: {lost} to do again", flush=True)
                continue
        assert run.wait() == 0
        break
    if kills < args.kills:
        sys.exit(f"only {kills} kills hit it: give more --steps")
    compare(Path(whole["folder"]), Path(hurt["folder"]), kills, again)


def compare(whole: Path, hurt: Path, kills: int, again: int) -> None:
    import torch
    from safetensors.torch import load_file

    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (whole, hurt))
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    told = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "tokens_per_s")}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, hurt)
    ]
    print(
        f"{kills} kills, {again} of {len(told[0])} steps computed again: weights "
        f"{'equal to the last bit' if same else 'DIFFER'}, metrics "
        f"{'equal' if told[0] == told[1] else 'DIFFER'}"
    )
    if not same or told[0] != told[1]:
        sys.exit(1)


def lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def resumed(job: dict[str, Any]) -> int:
    """The step that the newest checkpoint is of."""
    found = sorted((Path(job["folder"]) / ".checkpoints").glob(".step-*"))
    return int(found[-1].name[6:15]) if found else 0


def write_rows(args: argparse.Namespace) -> Path:
    from transformers import AutoTokenizer

    from rft import rows
    from rft.types import TrainRow

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    made = []
    for number, line in enumerate((EMBEDDED / "train.jsonl").read_text().splitlines()):
        one = json.loads(line)
        if one.get("solution"):
            prompt = tokenizer(f"Question: {one['question']}\nAnswer:\n")["input_ids"]
            ids = [*tokenizer(one["solution"])["input_ids"], tokenizer.eos_token_id]
            made.append(TrainRow(f"c{number}", f"p{number}", tuple(prompt), tuple(ids), True))
    rows.write_part(args.folder / "rows", made[:200], TrainRow)
    return args.folder / "rows"


def job(args: argparse.Namespace, name: str, data: Path) -> dict[str, Any]:
    from rft import rows
    from rft.config import Model
    from rft.config_train import Train
    from rft.training.data import Steps, read_groups
    from rft.types import TrainRow

    per_epoch = Steps(read_groups(rows.read(data, TrainRow)), 1024, 0).per_epoch
    train = Train(
        epochs=args.steps / per_epoch,
        tokens_per_step=1024,
        tokens_per_batch=512,
        checkpoint_every=args.every,
        precision={"compute": args.compute},
        # With dropout, whose draws must come back as well.
        lora={"dropout": 0.05},
    )
    folder = (args.folder / name).resolve()
    folder.mkdir()
    return {
        "folder": str(folder),
        "label": f"train ({name})",
        "model": Model(base=args.model).model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "seed": 0,
        "rows": str(data.resolve()),
    }


def start(args: argparse.Namespace, one: dict[str, Any]) -> subprocess.Popen[bytes]:
    file = args.folder / "job.json"
    file.write_text(json.dumps([one]))
    words = ["-m", "rft.training.launch", "--config_file"]
    words += [str(EMBEDDED.parent / "training" / "one_process.yaml"), "-m", "rft.stages.train"]
    return subprocess.Popen(
        [sys.executable, *words, str(file)], stderr=subprocess.DEVNULL, start_new_session=True
    )


if __name__ == "__main__":
    main()
