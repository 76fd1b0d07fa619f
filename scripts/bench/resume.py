"""What does a run pay that is killed again and again?

    python scripts/bench/resume.py
    python scripts/bench/resume.py --kills 20 --n 200

Draws a pool with the embedded model and real vLLM, and kills the run (SIGKILL, every process of it) at
random moments while it is sampling. After each step of the engine its running sequences are counted,
each of which has made a token, in a file that outlives the process. So at the end it is known how many
tokens were made, and how many are in the pool.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rft import rows
from rft.types import Candidate, Sampler, Setup

COUNT = "RFT_BENCH_COUNT"
"""Environment variable: a file among a sampler's arguments would be part of every sample's id."""


def counted(setup: Setup) -> Sampler:
    """The vLLM sampler; adds each token that it makes to the number in the file named by COUNT."""
    from rft.samplers.vllm import vllm

    inner: Any = vllm(setup)
    scheduler = inner._engine.engine_core.engine_core.scheduler
    step, made = inner._engine.step, np.memmap(os.environ[COUNT], np.int64, "r+", shape=(1,))

    def counting() -> Any:
        out = step()
        # Those that end in this step were running in it.
        made[0] += len(scheduler.running) + sum(one.finished for one in out)
        return out

    inner._engine.step = counting
    return inner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--n", type=int, default=200, help="samples of each prompt")
    parser.add_argument(
        "--every", type=float, default=30, help="mean seconds of sampling between two kills"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-resume"))
    args = parser.parse_args()
    folder, chance = args.folder.resolve(), random.Random(args.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    count = folder / "tokens"
    count.write_bytes(bytes(8))
    os.environ[COUNT] = str(count)
    command = [
        *(sys.executable, "-m", "rft.cli", "sample", args.config, f"runs={folder}", "name=killed"),
        *(
            "arms.random=null",
            "arms.rft_repeats=null",
            "arms.sft_matched=null",
            f"sample.n={args.n}",
        ),
        f"sample.use={Path(__file__).resolve()}:counted",
    ]
    kills, started = 0, time.monotonic()
    while True:
        run = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        before = count.read_bytes()
        # Not before it samples: what was never begun costs no tokens.
        while run.poll() is None and count.read_bytes() == before:
            time.sleep(0.1)
        if kills < args.kills:
            try:
                run.wait(chance.expovariate(1 / args.every))
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
                kills += 1
                print(f"  kill {kills} after {time.monotonic() - started:.0f} s", flush=True)
                continue
        _, told = run.communicate()
        if run.returncode:
            sys.exit(told.decode())
        break
    (pool,) = {path.resolve() for path in (folder / "killed" / "rft").glob("seed*/2_sample")}
    pool_tokens = [len(r.token_ids) for r in rows.read(pool, Candidate, ["id", "token_ids"])]
    due, paid = sum(pool_tokens), int.from_bytes(count.read_bytes(), "little")
    print(
        f"{kills} kills in {time.monotonic() - started:.0f} s: {len(pool_tokens):,} samples of {due:,} "
        f"tokens, {paid:,} made: {paid / due - 1:.2%} more, {(paid - due) / max(kills, 1):,.0f} a kill"
    )


if __name__ == "__main__":
    main()
