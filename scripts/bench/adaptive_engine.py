"""Does adaptive sampling save tokens on a real engine, and does the engine stay full?

    python scripts/bench/adaptive_engine.py
    python scripts/bench/adaptive_engine.py --config configs/svamp_smollm2.yaml --n 24 --price 8 \\
        --set prompts.args.path=data/svamp/SVAMP.json

The same policy and problems, real vLLM, scorers beside it: once `n` samples of every problem, once
adaptively at each price. The uniform pool, cut at every n, gives the tokens that uniform sampling needs
for the adaptive pool's coverage: the mean over problems of min(different right answers, 4), worked
solutions' own ways not counted. After each step of the engine its running sequences are counted:
occupancy is their share of `max_num_seqs` over time, until 98% of the tokens are made.
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


def pool(home: Path, distinct: str) -> tuple[np.ndarray, np.ndarray]:
    """Different right answers and tokens of each problem's first i samples: (P, n + 1) each. Where
    a problem has fewer, both stay."""
    prompts = {p.id: p for p in rows.read((home / "1_prompts").resolve() / "train", Prompt)}
    verdicts = {r.id: r.verdict for r in rows.read((home / "3_score").resolve(), ScoreRow)}
    way = KEYS[distinct]
    by: dict[str, list[tuple[int, str | None, int]]] = {}
    columns = ["id", "prompt_id", "index", "text", "token_ids"]
    for c in rows.read((home / "2_sample").resolve(), Candidate, columns):
        text = c.text if verdicts[c.id] is Verdict.CORRECT else None
        by.setdefault(c.prompt_id, []).append((c.index, text, len(c.token_ids)))
    deep = max(map(len, by.values()))
    d, t = np.zeros((len(prompts), deep + 1)), np.zeros((len(prompts), deep + 1))
    for row, (id, prompt) in enumerate(prompts.items()):
        known = {way(prompt.solution)} if prompt.solution else set[int]()
        found: set[int] = set()
        for i, text, size in sorted(by.get(id, []), key=lambda one: one[0]):
            if text is not None:
                found |= {way(text)} - known
            d[row, i + 1 :] = min(len(found), TARGET)
            t[row, i + 1 :] += size
    return d, t


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--arm", default="rft")
    parser.add_argument("--n", type=int, default=100, help="of the uniform pool")
    parser.add_argument("--most", type=int, default=512, help="sample.n of the adaptive ones")
    parser.add_argument("--price", type=float, nargs="+", default=[8.0, 24.0])
    parser.add_argument("--distinct", default="equations", choices=KEYS)
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
        *("arms.random=null", "arms.sft_matched=null"),
        f"sample.use={Path(__file__).resolve()}:watched",
    ]
    uniform = [*common, f"sample.n={args.n}", "name=uniform"]
    rft("score", *uniform)
    even_d, even_t = pool(folder / "uniform" / args.arm / "seed0", args.distinct)
    even_occupancy, even_speed = full(log)
    covers = even_d.mean(axis=0)
    print(
        f"uniform, n = {args.n}: {even_t[:, -1].sum():,.0f} tokens, coverage {covers[-1]:.2f}, occupancy "
        f"{even_occupancy:.3f}, {even_speed:,.0f} tokens/s",
        flush=True,
    )
    for price in args.price:
        name = f"price{price:g}-{args.distinct}"
        words = [
            *(*common, f"sample.n={args.most}", "sample.allocate.use=adaptive"),
            f"sample.allocate.args={{target: {TARGET}, price: {price}}}",
            f"name={name}",
            f"sample.distinct={args.distinct}",
        ]
        rft("score", *words)
        d, t = pool(folder / name / args.arm / "seed0", args.distinct)
        coverage, tokens = d[:, -1].mean(), t[:, -1].sum()
        occupancy, speed = full(log)
        n = float(np.interp(coverage, covers, range(len(covers))))
        same = float(np.interp(n, range(len(covers)), even_t.sum(axis=0)))
        reached = "" if coverage <= covers[-1] else " (beyond the uniform pool)"
        print(
            f"price {price:g}: {tokens:,.0f} tokens, coverage {coverage:.2f}, as uniform n = {n:.1f}"
            f"{reached}: {tokens / same:.3f} of its tokens; occupancy {occupancy:.3f}, "
            f"{speed:,.0f} tokens/s, {speed / even_speed:.3f} of uniform",
            flush=True,
        )


if __name__ == "__main__":
    main()
