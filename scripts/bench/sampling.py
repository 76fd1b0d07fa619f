"""How fast is sampling? Two ratios of output tokens per second, each run in its own process.

    python scripts/bench/sampling.py --model models/SmolLM2-135M-Instruct \
        --prompts data/svamp/SVAMP.json

* loop: our pulled requests against `vllm.LLM.generate` with all requests given at once, on the
  same engine settings. What streaming, resuming and a seed for each sample cost.
* defaults: our defaults against `vllm.LLM(model=...)` as it comes, with nothing set but the size of
  the key-value cache, without which it doesn't start on a small machine. Its requests have no seeds,
  since on a CPU it dies on them. With AVX-512 or AMX vLLM's own choice of bfloat16 is fast, and the
  ratio low; without them it is slow, and the ratio high.

`--isa avx2` keeps both sides from using AVX-512 and AMX, to measure on a newer machine what an
older one sees: torch, oneDNN and MKL are told so, and torch's feature tests, by which vLLM chooses
its kernels, answer no.

Starts and a short warm-up aren't counted. The variants take turns, because a shared machine drifts.
Run it on a quiet machine: on 2 cores one busy neighbour costs more than what is measured here.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS = ("ours", "generate", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--prompts", required=True, type=Path, help="SVAMP.json, or a .jsonl")
    parser.add_argument("--limit", type=int, default=60, help="prompts to take")
    parser.add_argument("--n", type=int, default=8, help="samples per prompt")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--max-len", type=int, default=512, help="model.max_len")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--isa", choices=("native", "avx2"), default="native")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("RESULT", json.dumps(measure(args.child, args)))
        return

    print(f"machine: {machine()}; both sides use {args.isa} instructions")
    chosen = args.variants.split(",")
    rates: dict[str, list[float]] = {variant: [] for variant in chosen}
    for i in range(args.rounds):
        # Forth and back, so that a drift of the machine favours nobody.
        for variant in chosen if i % 2 == 0 else chosen[::-1]:
            got = in_a_process(variant, args.isa)
            rates[variant].append(got["tokens"] / got["seconds"])
            print(f"  round {i + 1}, {variant}: {rates[variant][-1]:.1f} tokens/s ({got})")
    print(f"{'variant':<10} {'median':>8} {'each round, tokens/s'}")
    for variant, each in rates.items():
        shown = " ".join(f"{rate:.1f}" for rate in each)
        print(f"{variant:<10} {statistics.median(each):>8.1f} {shown}")
    for other, name in (("generate", "loop"), ("plain", "defaults")):
        if "ours" in rates and other in rates:
            each = [a / b for a, b in zip(rates["ours"], rates[other], strict=True)]
            print(
                f"{name}: ours / {other} = {statistics.median(each):.3f} (median of rounds "
                f"{', '.join(f'{r:.3f}' for r in each)})"
            )


AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
NO_NEWER_ISA = """
import torch
for name in ("avx512", "avx512_bf16", "amx_tile", "amx_fp16", "vnni"):
    if hasattr(torch.cpu, f"_is_{name}_supported"):
        setattr(torch.cpu, f"_is_{name}_supported", lambda: False)
"""


def in_a_process(variant: str, isa: str) -> dict[str, float]:
    env = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        if isa == "avx2":
            # Every Python that starts below imports it, vLLM's engine process included.
            (Path(folder) / "sitecustomize.py").write_text(NO_NEWER_ISA)
            env |= AVX2 | {"PYTHONPATH": f"{folder}:{env.get('PYTHONPATH', '')}"}
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", variant],
            capture_output=True,
            text=True,
            check=False,
            env=env,
        )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    sys.exit(f"{variant} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def questions(path: Path) -> list[str]:
    if path.suffix == ".json":
        return [f"{row['Body']} {row['Question']}" for row in json.loads(path.read_text())]
    return [json.loads(line)["question"] for line in path.read_text().splitlines()]


def measure(variant: str, args: argparse.Namespace) -> dict[str, float]:
    """{tokens, seconds, start_s} of one variant, in this process."""
    from rft.chat import Renderer
    from rft.config import Chat, Model, Sample
    from rft.types import Request, Setup

    settings = Sample(n=args.n, max_tokens=args.max_tokens)
    model = Model(base=args.model, max_len=args.max_len)
    renderer = Renderer(model, Chat())
    setup = Setup(model=model, engine=settings.engine, renderer=renderer, prompts={})
    texts = questions(args.prompts)
    prompts = [renderer.prompt_ids(text) for text in texts[: args.limit]]
    warm = [renderer.prompt_ids(text[::-1]) for text in texts[:4]]

    def requests(of: list[tuple[int, ...]], tag: str) -> list[Request]:
        return [
            Request(f"{tag}{i}-{j}", f"{tag}{i}", j, ids, settings, 1000 * i + j)
            for i, ids in enumerate(of)
            for j in range(args.n)
        ]

    began = time.monotonic()
    if variant == "ours":
        from rft.samplers.vllm import vllm as sampler_of

        sampler = sampler_of(setup)

        def run(of: list[tuple[int, ...]], tag: str) -> int:
            return sum(len(c.token_ids) for c in sampler.sample(iter(requests(of, tag))))
    else:
        llm, params = raw_llm(variant, setup, settings)

        def run(of: list[tuple[int, ...]], tag: str) -> int:
            if variant == "generate":
                asked = requests(of, tag)
                inputs: Any = [{"prompt_token_ids": list(r.prompt_token_ids)} for r in asked]
                out = llm.generate(inputs, [params(r) for r in asked], use_tqdm=False)
            else:
                inputs = [{"prompt_token_ids": list(ids)} for ids in of]
                out = llm.generate(inputs, params(None), use_tqdm=False)
            return sum(len(one.token_ids) for o in out for one in o.outputs)

    ready = time.monotonic()
    run(warm, "warm")
    start = time.monotonic()
    tokens = run(prompts, "p")
    return {
        "tokens": tokens,
        "seconds": round(time.monotonic() - start, 3),
        "start_s": round(ready - began, 1),
    }


def raw_llm(variant: str, setup: Any, settings: Any) -> tuple[Any, Any]:
    """vLLM without us: an LLM, and SamplingParams for a request (None: for all)."""
    from rft.samplers import vllm as ours

    if variant == "generate":
        ours._set_environment(setup.model, setup.engine)
    else:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(int(setup.engine.kv_cache_gb))
        os.environ["HF_HUB_OFFLINE"] = "1"
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    if variant == "generate":
        llm = LLM(**ours.engine_args(setup, current_platform.is_cpu()))
        return llm, lambda request: ours._params(request, request.decoding.max_tokens)
    return LLM(model=setup.model.base), lambda _: SamplingParams(
        n=settings.n, temperature=settings.temperature, max_tokens=settings.max_tokens
    )


def machine() -> str:
    flags, name = set(), platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    isa = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return f"{name}, {cores} cores, {' '.join(isa)}, load {load:.1f} before the start"


if __name__ == "__main__":
    main()
