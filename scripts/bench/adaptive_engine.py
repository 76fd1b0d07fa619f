"""Does adaptive sampling save tokens on a real engine, and does the engine stay full?

    python scripts/bench/adaptive_engine.py
    python scripts/bench/adaptive_engine.py --config configs/svamp_smollm2.yaml --n 24 --price 8 \\
        --set prompts.args.path=data/svamp/SVAMP.json

The same policy and problems, real vLLM, scorers beside it: once `n` samples of every problem, once
adaptively at each price. The uniform pool, cut at every n, gives the tokens that uniform sampling needs
for the adaptive pool's coverage: the mean over problems of min(different right answers, 4), worked
solutions' own ways not counted. After each step of the engine its running sequences are counted:
occupancy is their share of `max_num_seqs` over time, until 98% of the tokens are made. Tokens a second are
held against a uniform run of as many samples, since an engine is slow in its first seconds.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rft import rows
from rft.tallies import KEYS
from rft.types import Candidate, Prompt, Request, Sampler, ScoreRow, Setup, Verdict

TARGET = 4

LOG = "RFT_BENCH_LOG"
"""Environment variable: a file among a sampler's arguments would be part of every sample's id."""


def watched(setup: Setup) -> Sampler:
    """The vLLM sampler; writes to the file named by LOG how full the engine was."""
    from rft.samplers.vllm import vllm

    inner: Any = vllm(setup)
    scheduler = inner._engine.engine_core.engine_core.scheduler
    step, trace = inner._engine.step, []

    def counted() -> Any:
        # Those that end in this step were running in it.
        out = step()
        ended = sum(one.finished for one in out)
        trace.append((time.monotonic(), len(scheduler.running) + ended, inner._stats["tokens"]))
        return out

    inner._engine.step = counted

    class Watched:
        def sample(self, source: Iterator[Request | None]) -> Iterator[Candidate]:
            return inner.sample(source)

        def stats(self) -> dict[str, float]:
            return inner.stats()

        def close(self) -> None:
            inner.close()
            slots = inner._engine.vllm_config.scheduler_config.max_num_seqs
            Path(os.environ[LOG]).write_text(json.dumps({"slots": slots, "trace": trace}))

    return Watched()


def rft(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "rft.cli", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"rft {' '.join(words)}:\n{done.stderr}")


def full(log: Path) -> tuple[float, float]:
    """Occupancy until 98% of the tokens, and tokens a second over the whole run."""
    told = json.loads(log.read_text())
    at, running, tokens = (np.array(column, float) for column in zip(*told["trace"]))
    last = int(np.searchsorted(tokens, 0.98 * tokens[-1]))
    spans = np.diff(at[: last + 1])
    # The first steps fill an empty engine.
    share = np.minimum(running[1 : last + 1], told["slots"]) / told["slots"]
    return float((share * spans).sum() / spans.sum()), float(tokens[-1] / (at[-1] - at[0]))


def outcome(home: Path, distinct: str) -> tuple[float, int, float]:
    """Coverage, tokens and mean samples of a problem, of a pool that may have drawn more of one problem than of another."""
    prompts = {p.id: p for p in rows.read(home / "1_prompts" / "train", Prompt)}
    verdicts = {r.id: r.verdict for r in rows.read(home / "3_score", ScoreRow)}
    way, tokens, samples = KEYS[distinct], 0, 0
    found: dict[str, set[int]] = {id: set() for id in prompts}
    for c in rows.read(home / "2_sample", Candidate, ["id", "prompt_id", "text", "token_ids"]):
        tokens += len(c.token_ids)
        samples += 1
        if verdicts[c.id] is Verdict.CORRECT:
            found[c.prompt_id].add(way(c.text))
    for id, prompt in prompts.items():
        if prompt.solution:
            found[id].discard(way(prompt.solution))
    coverage = float(np.mean([min(len(ways), TARGET) for ways in found.values()]))
    return coverage, tokens, samples / len(prompts)


def main() -> None:
    # Not above: stages load this file alone, for `watched`.
    from adaptive import at_coverage, dart, uniform_points
    from rate_model import recorded

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--arm", default="rft")
    parser.add_argument("--n", type=int, default=100, help="of the uniform pool")
    parser.add_argument("--most", type=int, default=512, help="sample.n of the adaptive ones")
    parser.add_argument("--price", type=float, nargs="+", default=[8.0, 24.0])
    parser.add_argument("--distinct", nargs="+", default=["equations"], choices=KEYS)
    parser.add_argument("--set", nargs="*", default=[], help="settings of all runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-adaptive"))
    args = parser.parse_args()
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "trace.json"
    os.environ[LOG] = str(log)
    common = [
        *(args.config, f"runs={folder}", *args.set),
        *("arms.random=null", "arms.rft_repeats=null", "arms.sft_matched=null"),
        f"sample.use={Path(__file__).resolve()}:watched",
    ]
    uniform = [*common, f"sample.n={args.n}", "name=uniform"]
    rft("score", *uniform)
    home = Path(args.arm) / "seed0"
    occupancy, _ = full(log)
    for distinct in args.distinct:
        world = recorded(folder / "uniform" / home, distinct)
        flat = uniform_points(world)
        covers = [cover for cover, _ in flat]
        print(
            f"{distinct}: uniform, n = {args.n}: {flat[-1][1]:,} tokens, coverage {covers[-1]:.2f}, "
            f"occupancy {occupancy:.3f}",
            flush=True,
        )
        for price in args.price:
            name = f"price{price:g}-{distinct}"
            words = [
                *(*common, f"sample.n={args.most}", "sample.allocate.use=adaptive"),
                f"sample.allocate.args={{target: {TARGET}, price: {price}}}",
                f"name={name}",
                f"sample.distinct={distinct}",
            ]
            rft("score", *words)
            coverage, tokens, samples = outcome(folder / name / home, distinct)
            occupancy, speed = full(log)
            rft("score", *common, f"sample.n={round(samples)}", f"name=even-{name}")
            _, even_speed = full(log)
            if coverage > covers[-1]:
                held = f"beyond the uniform pool, {tokens / flat[-1][1]:.3f} of all its tokens"
            else:
                n = float(np.interp(coverage, covers, range(len(covers))))
                published, setting = dart(world, coverage, True)
                ideal, _ = dart(world, coverage, False)
                held = (
                    f"as uniform n = {n:.1f}: {tokens / at_coverage(flat, coverage):.3f} of its "
                    f"tokens, {tokens / published:.3f} of DART's ({setting}), {tokens / ideal:.3f} "
                    "with a verdict after each sample"
                )
            print(
                f"  price {price:g}: {tokens:,} tokens, coverage {coverage:.2f}, {held}; occupancy "
                f"{occupancy:.3f}, {speed:,.0f} tokens/s, {speed / even_speed:.3f} of uniform n = "
                f"{round(samples)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
