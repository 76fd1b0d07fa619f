"""How fast and how lean is training? Against TRL's SFTTrainer, on the same rows.

    pip install trl                     # not among the dependencies
    python scripts/bench/train.py --model models/SmolLM2-135M-Instruct --data data/gsm8k/train.jsonl
    python scripts/bench/train.py --model models/SmolLM2-135M-Instruct \\
        --rows runs/svamp_smollm2/rft/seed0/4_select/train

The first trains on a data set's own solutions, one row a problem; the second on what a run has
selected, several survivors a prompt. LoRA of rank 16 on all linear layers, loss over the completions
only, the same learning rate and as many rows a step on both sides, each in a process of its own, in
turns, because a shared machine drifts. TRL packs (bfd); `--length` gives the lengths of a packed row to
try, of which the fastest counts.

`--shape 0.5B` (or 7B) makes a model of that size with random weights, and random rows of `--survivors` answers a
prompt, for machines without weights; scripts/bench/gpu.sh runs all that a GPU is asked for. On a GPU in 16
bits TRL gets FlashAttention by torch's own varlen_attn, which needs no flash-attn to be built.

* tokens/s: tokens of the rows (each with its prompt) over the time from the first step to the end of
  the last; with several `--epochs` the first is not counted, in which a GPU's kernels are compiled. Both sides have the same rows, so the ratio is that of the times.
* memory: the process's largest resident set, or the most that torch had on the GPU.
* loss: mean of the completion tokens' cross-entropy over rows that neither has seen, by one function.
* share of the machine (MFU): operations that the model needs (rft.training.model.Cost, and those of attention)
  over the time, against the best square matrix product that torch manages in that format.
"""

import argparse
import inspect
import itertools
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "plain": {"layout": "rows"},
    "mkl": {},
    "checkpointed": {"gradient_checkpointing": True},
    "compiled": {"compile": True},
    "full": {"lora": None, "lr": 2e-5},
    "full_8bit": {"lora": None, "lr": 2e-5, "optimizer": "adamw_8bit"},
}
"""Settings of `train`. mkl: with the products that torch takes by itself on a CPU."""

PEERS = ("trl", "liger")
"""TRL as it is, and with Liger's kernels."""

VARIANTS = (*OURS, *PEERS)

CHILDREN = (*VARIANTS, "model", "peak")
"""What has a process of its own, whose memory is free afterwards."""

SHAPES = {
    # hidden_size, intermediate_size, layers, heads, key heads, vocabulary
    "tiny": (64, 176, 2, 4, 2, 1024),
    "0.5B": (896, 4864, 24, 14, 2, 151936),
    "7B": (3584, 18944, 28, 28, 4, 152064),
}
"""Of Qwen2.5's models."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of the model")
    parser.add_argument("--shape", choices=SHAPES, help="instead: random weights of this size")
    parser.add_argument("--data", type=Path, help="gsm8k/train.jsonl")
    parser.add_argument("--rows", type=Path, help="rows that a run has selected")
    parser.add_argument("--survivors", type=int, default=4, help="answers a prompt, with --shape")
    parser.add_argument("--limit", type=int, default=256, help="rows to train on")
    parser.add_argument("--held-out", type=int, default=64, help="rows for the final loss")
    parser.add_argument("--rows-per-step", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--compute", default="fp32", choices=("fp32", "tf32", "bf16", "fp16"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1024], help="tokens_per_batch")
    parser.add_argument("--length", type=int, nargs="+", default=[512], help="TRL's packed length")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--made", type=Path, help="folder to keep the model of --shape in")
    parser.add_argument("--variants", default="ours,trl")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sides = {"trl": trl, "liger": trl, "model": random_model, "peak": gemm_peak}
        side = sides.get(args.child, ours)
        print("RESULT", json.dumps(side(args)))
        return
    args.folder = Path(tempfile.mkdtemp(prefix="bench-train-"))
    if args.shape:
        args.model = in_a_process(args, "model")["folder"]
    facts = prepare(args)
    print(", ".join(f"{name} {value:,}" for name, value in facts.items()), flush=True)
    peak = in_a_process(args, "peak")["gflops"]
    print(f"matrix product: {peak:,.0f} GFLOP/s in {args.compute}", flush=True)
    needed = operations(args)
    chosen = args.variants.split(",")
    sides = [
        (variant, size)
        for variant in chosen
        for size in (args.length if variant in PEERS else args.batch)
    ]
    got: dict[tuple[str, int], list[dict[str, Any]]] = {side: [] for side in sides}
    for i in range(args.rounds):
        for side in sides if i % 2 == 0 else sides[::-1]:
            one = in_a_process(args, *side)
            if not one:
                continue
            got[side].append(one)
            shown = f"{facts['row tokens'] / one['seconds']:.0f} tokens/s"
            print(f"  round {i + 1}, {side[0]} ({side[1]}): {shown}, {one}", flush=True)
    best = {
        variant: min(
            (side for side in sides if side[0] == variant and got[side]),
            key=lambda side: statistics.median(one["seconds"] for one in got[side]),
        )
        for variant in chosen
        if any(side[0] == variant and got[side] for side in sides)
    }
    for variant, side in best.items():
        middle = statistics.median(one["seconds"] for one in got[side])
        print(
            f"{variant:<6} ({side[1]}): {facts['row tokens'] / middle:,.0f} tokens/s, "
            f"{max(one['peak_gb'] for one in got[side]):.2f} GiB, held-out loss "
            f"{statistics.mean(one['held_out'] for one in got[side]):.4f}, "
            f"{needed[variant] / middle / peak / 1e9:.2f} of the machine"
        )
    pairs = itertools.product(sorted(best.keys() - PEERS), sorted(best.keys() & PEERS))
    for variant, peer in pairs:
        mine, theirs = got[best[variant]], got[best[peer]]
        faster = [b["seconds"] / a["seconds"] for a, b in zip(mine, theirs)]
        leaner = [a["peak_gb"] / b["peak_gb"] for a, b in zip(mine, theirs)]
        print(
            f"{variant} / {peer}: {statistics.median(faster):.2f} times the tokens/s (rounds "
            f"{', '.join(f'{x:.2f}' for x in faster)}), {statistics.median(leaner):.2f} of its memory"
        )


def in_a_process(args: argparse.Namespace, child: str, size: int = 0) -> dict[str, Any]:
    """What the child says; nothing where it failed, for instance for want of memory."""
    words = [sys.executable, __file__, *sys.argv[1:], "--child", child, "--size", str(size)]
    words += ["--folder", str(args.folder), *(["--model", args.model] if args.model else [])]
    done = subprocess.run(words, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        print(f"  {child} ({size}) failed: {done.stderr.strip()[-2000:]}", flush=True)
        if child not in VARIANTS:
            sys.exit(1)
        return {}
    told: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return told


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Writes training and held-out rows; facts about them."""
    from rft import rows
    from rft.training.data import read_groups
    from rft.types import TrainRow

    if args.shape:
        every = random_rows(args)
        prompts = list(dict.fromkeys(row.prompt_id for row in every))
    elif args.rows:
        every = sorted(rows.read(args.rows, TrainRow), key=lambda row: (row.prompt_id, row.id))
        prompts = list(dict.fromkeys(row.prompt_id for row in every))
    else:
        every = from_text(args)
        prompts = [row.prompt_id for row in every]
    held = set(prompts[:: max(len(prompts) // args.held_out, 2)] if args.held_out else [])
    train = [row for row in every if row.prompt_id not in held][: args.limit]
    test = [row for row in every if row.prompt_id in held][: args.held_out]
    rows.write_part(args.folder / "train", train, TrainRow)
    if test:
        rows.write_part(args.folder / "test", test, TrainRow)
    groups = read_groups(train)
    return {
        "rows": len(train),
        "prompts": len(groups),
        "row tokens": sum(group.separate_tokens for group in groups),
        "tree tokens": sum(group.tokens for group in groups),
        "completion tokens": sum(group.completion_tokens for group in groups),
        "held-out rows": len(test),
    }


def from_text(args: argparse.Namespace) -> list[Any]:
    from transformers import AutoTokenizer

    from rft.types import TrainRow

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    made = []
    for number, line in enumerate(args.data.read_text().splitlines()[: 2 * args.limit + 200]):
        one = json.loads(line)
        prompt = tokenizer(f"Question: {one['question']}\nAnswer:\n")["input_ids"]
        ids = [*tokenizer(one["answer"])["input_ids"], tokenizer.eos_token_id]
        made.append(TrainRow(str(number), f"p{number:06d}", tuple(prompt), tuple(ids), True))
    return made


def random_model(args: argparse.Namespace) -> dict[str, str]:
    """A folder with a model of the shape and the embedded tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    hidden, inner, layers, heads, keys, words = SHAPES[args.shape]
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=words,
        tie_word_embeddings=args.shape != "7B",
    )
    stored = torch.float32 if args.compute in ("fp32", "tf32") else torch.bfloat16
    folder = (args.made or args.folder) / f"{args.shape}-{stored}"
    if folder.exists():
        return {"folder": str(folder)}
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen2ForCausalLM(config).to(stored).save_pretrained(folder)
    for path in (Path(__file__).resolve().parents[2] / "rft" / "embedded" / "model").glob("token*"):
        shutil.copy(path, folder)
    return {"folder": str(folder)}


def random_rows(args: argparse.Namespace) -> list[Any]:
    """Prompts of 40 to 160 tokens, answers of 20 to 240, as GSM8K's are."""
    from rft.types import TrainRow

    draw, words = random.Random(0), SHAPES[args.shape][-1]
    made = []
    for number in range((args.limit + args.held_out) // args.survivors + 2):
        prompt = tuple(draw.randrange(words) for _ in range(draw.randint(40, 160)))
        for k in range(args.survivors):
            ids = tuple(draw.randrange(words) for _ in range(draw.randint(20, 240)))
            made.append(TrainRow(f"{number}-{k}", f"p{number:06d}", prompt, ids, k == 0))
    return made


def gemm_peak(args: argparse.Namespace) -> dict[str, float]:
    """GFLOP/s of the best of several square products."""
    import torch

    from rft.precision import DTYPES
    from rft.training.products import product

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = args.compute == "tf32"
    best = 0.0
    for size in (1024, 2048, 8192) if device == "cuda" else (1024, 2048):
        a = torch.randn(size, size, device=device, dtype=DTYPES.get(args.compute, torch.float32))
        for _ in range(8):
            start = time.perf_counter()
            product(a, a)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return {"gflops": best}


def operations(args: argparse.Namespace) -> dict[str, float]:
    """Of an epoch, for the rows as each side lays them out."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rft import rows
    from rft.config_train import Train
    from rft.training.data import read_groups
    from rft.training.model import Cost, adapt
    from rft.types import TrainRow

    config = AutoConfig.from_pretrained(args.model)
    groups = read_groups(rows.read(args.folder / "train", TrainRow))
    # Two products of a query with each key, forward, and twice as much back; half of them are hidden.
    each = 6 * config.hidden_size * config.num_hidden_layers
    singles = [single for group in groups for single in group.singles()]
    costs = []
    for train in (Train(), Train(lora=None)):
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config)
            adapt(base, train, 0)
        costs.append(Cost.measure(base))
    found = {}
    for variant in VARIANTS:
        cost = costs[variant.startswith("full")]
        some = singles if variant in ("plain", *PEERS) else groups
        attention = sum(each * group.tokens**2 for group in some)
        found[variant] = float(sum(map(cost.of, some)) + attention)
    return found


def ours(args: argparse.Namespace) -> dict[str, Any]:
    from rft.config import Model
    from rft.config_train import Train
    from rft.training import attention, products
    from rft.training.job import train_job
    from rft.training.loop import Run
    from rft.training.stop import StopSignal

    if args.child == "mkl":
        products.HAS_ONEDNN = attention.HAS_ONEDNN = False
    folder = args.folder / f"ours-{time.monotonic_ns()}"
    tokens, steps = _tree_tokens(args)
    settings = {
        "lr": args.lr,
        "epochs": args.epochs,
        "tokens_per_step": round(tokens / steps),
        "tokens_per_batch": args.size,
        "precision": {
            "compute": args.compute,
            "base": args.compute if args.compute in ("bf16", "fp16") else "fp32",
        },
        **OURS[args.child],
    }
    folder.mkdir()
    job = {
        "folder": str(folder),
        "label": "bench",
        "model": Model(base=args.model).model_dump(mode="json"),
        "train": Train(**settings).model_dump(mode="json"),
        "seed": 0,
        "rows": str(args.folder / "train"),
    }
    times: list[float] = []
    step = Run.step

    def timed(self: Run, number: int) -> Any:
        times.append(time.perf_counter())
        told = step(self, number)
        times.append(time.perf_counter())
        return told

    Run.step = timed  # type: ignore[method-assign]
    train_job(job, StopSignal())
    peak = peak_gb()
    return {
        "seconds": seconds(times, args.epochs),
        "steps": len(times) // 2,
        "peak_gb": round(peak, 3),
        "held_out": held_out(args, folder),
    }


def seconds(times: list[float], epochs: int) -> float:
    """Of an epoch, from beginnings and ends of the steps."""
    first = len(times) // 2 // epochs * 2 if epochs > 1 else 0
    return round((times[-1] - times[first]) / max(epochs - 1, 1), 3)


def peak_gb() -> float:
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _tree_tokens(args: argparse.Namespace) -> tuple[int, int]:
    """Tokens of all trees, and steps of an epoch."""
    from rft import rows
    from rft.training.data import read_groups
    from rft.types import TrainRow

    groups = read_groups(rows.read(args.folder / "train", TrainRow))
    count = sum(len(group.completions) for group in groups)
    return sum(group.tokens for group in groups), max(1, round(count / args.rows_per_step))


def trl(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from rft import rows
    from rft.types import TrainRow

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    train = list(rows.read(args.folder / "train", TrainRow))
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt_token_ids, *row.token_ids],
                "completion_mask": [0] * len(row.prompt_token_ids) + [1] * len(row.token_ids),
            }
            for row in train
        ]
    )
    tokens = sum(len(row.prompt_token_ids) + len(row.token_ids) for row in train)
    _, steps = _tree_tokens(args)
    packed = -(-tokens // args.size)
    folder = args.folder / f"trl-{time.monotonic_ns()}"
    config = SFTConfig(
        output_dir=str(folder),
        packing=True,
        max_length=args.size,
        completion_only_loss=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=max(1, round(packed / steps)),
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.05 * steps * args.epochs),
        bf16=args.compute == "bf16",
        fp16=args.compute == "fp16",
        tf32=args.compute == "tf32" or None,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=1000,
        disable_tqdm=True,
        use_liger_kernel=args.child == "liger",
    )
    stored = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.compute, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = args.compute == "tf32"
    by = flash_attention() if torch.cuda.is_available() and stored.itemsize == 2 else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=stored, attn_implementation=by)
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    peak = peak_gb()
    trainer.model.save_pretrained(folder)
    return {
        "seconds": seconds(times, args.epochs),
        "steps": trainer.state.global_step,
        "peak_gb": round(peak, 3),
        "held_out": held_out(args, folder),
    }


def flash_attention() -> str:
    """The name under which transformers then has FlashAttention by torch."""
    import torch
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface

    old = "is_causal" in inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if old else {"window_size": (-1, 0)}

    def attend(
        module: Any, q: Any, k: Any, v: Any, mask: Any, cu_seq_lens_q: Any = None, **told: Any
    ) -> Any:
        if cu_seq_lens_q is None:
            size = q.shape[2]
            cu_seq_lens_q = torch.arange(
                0, len(q) * size + 1, size, dtype=torch.int32, device=q.device
            )
            told["max_length_q"] = size
        times, longest = q.shape[1] // k.shape[1], int(told["max_length_q"])
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        flat = (x.transpose(1, 2).flatten(0, 1).to(v.dtype) for x in (q, k, v))
        out = varlen_attn(*flat, cu_seq_lens_q, cu_seq_lens_q, longest, longest, **causal)
        return out.view(len(q), -1, *out.shape[1:]), None

    AttentionInterface.register("varlen", attend)
    return "varlen"


def held_out(args: argparse.Namespace, adapter: Path) -> float:
    """Mean cross-entropy of the held-out completions' tokens, nats; 0 without any."""
    if not args.held_out:
        return 0.0
    import torch
    from peft import PeftModel
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    from rft import rows
    from rft.types import TrainRow

    device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = torch.float32 if device == "cpu" else torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=stored).to(device)
    if (adapter / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(base, adapter).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(adapter, dtype=stored).to(device).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows.read(args.folder / "test", TrainRow):
            ids = torch.tensor([[*row.prompt_token_ids, *row.token_ids]], device=device)
            logits = (
                model(input_ids=ids).logits[0, len(row.prompt_token_ids) - 1 : -1].float().cpu()
            )
            total += float(cross_entropy(logits, torch.tensor(row.token_ids), reduction="sum"))
            count += len(row.token_ids)
    return round(total / count, 4)


if __name__ == "__main__":
    main()
