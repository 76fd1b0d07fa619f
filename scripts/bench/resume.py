"""What does a run pay that is killed again and again?

    python scripts/bench/resume.py
    python scripts/bench/resume.py --kills 20 --n 200

Draws a pool with the embedded model and real vLLM, and kills the run (SIGKILL, every process of it) at
random moments while it is sampling. A sampler in between writes down each request that the engine
takes. Afterwards the tokens of every sample are known, and a sample that was taken by two runs is
charged twice with all of its tokens, also if it had hardly begun: so the figure is an upper bound.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rft import rows
from rft.types import Candidate, Request, Sampler, Setup

LOG = "RFT_BENCH_LOG"
"""Environment variable: a file among a sampler's arguments would be part of every sample's id."""


def counted(setup: Setup) -> Sampler:
    """The vLLM sampler, with a line in the file named by LOG for every request that it takes."""
    from rft.samplers.vllm import vllm

    inner = vllm(setup)
    file = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    class Counted:
        def sample(self, source: Iterator[Request | None]) -> Iterator[Candidate]:
            return inner.sample(noted(source))

        def stats(self) -> dict[str, float]:
            return inner.stats()

        def close(self) -> None:
            inner.close()

    def noted(source: Iterator[Request | None]) -> Iterator[Request | None]:
        for request in source:
            if request is not None:
                os.write(file, f"{request.id}\n".encode())
            yield request

    return Counted()


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
    log = folder / "requests.log"
    os.environ[LOG] = str(log)
    command = [
        *(sys.executable, "-m", "rft.cli", "sample", args.config, f"runs={folder}", "name=killed"),
        *("arms.random=null", "arms.sft_matched=null", f"sample.n={args.n}"),
        f"sample.use={Path(__file__).resolve()}:counted",
    ]
    kills, started = 0, time.monotonic()
    while True:
        run = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        before = log.stat().st_size if log.exists() else 0
        # Not before it samples: what was never begun costs no tokens.
        while run.poll() is None and (log.stat().st_size if log.exists() else 0) == before:
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
    tokens = {r.id: len(r.token_ids) for r in rows.read(pool, Candidate, ["id", "token_ids"])}
    taken = Counter(log.read_text().split())
    assert taken.keys() == tokens.keys(), "every sample was taken, and all that was taken came"
    paid, due = sum(tokens[id] * times for id, times in taken.items()), sum(tokens.values())
    again = taken.total() - len(taken)
    print(
        f"{kills} kills in {time.monotonic() - started:.0f} s: {len(tokens):,} samples, {due:,} tokens; "
        f"{again:,} samples drawn again ({again / max(kills, 1):.0f} a kill), at most {paid - due:,} "
        f"tokens: {paid / due - 1:.2%} more"
    )


if __name__ == "__main__":
    main()
