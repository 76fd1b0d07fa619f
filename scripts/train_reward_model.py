"""Train a small reward model on the embedded example, so that the scorer is tested on a real one.

The embedded base model (rft/embedded/model) gets a head with one number, and learns to tell worked
solutions from corrupted ones: another number of the problem, another operator, or a wrong result, each
worked out to its end, so that only the reasoning or the arithmetic is wrong and never the form.

* The problems come from the generator that made rft/embedded (scripts/make_tiny.py): the 200 solved
  ones of train.jsonl are too few to learn from (AUC 0.58 on held-out ones). None has a question of
  eval.jsonl, even with names and things masked.
* The loss is binary cross-entropy at every token of an answer, which is right up to the token that
  spoils it; the usual comparison of two whole answers says where an error is far less often. The
  scorer reads the last token: log-odds of being right, so that 0 is a threshold that means something.
* Muon and AdamW as in make_tiny.py, for the same reason.

In a minute on one core it learns which operation a problem asks for, and hardly anything of
arithmetic: AUC on held-out problems 0.70 over all, 0.95 against wrong operators, 0.61 against wrong
numbers, 0.52 against wrong results. So it is a real reward model with the usual blind spots, and no
judge to rely on. Its folder carries a chat template, so `use: reward_model` needs nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from make_tiny import compute, make_problems, normalise
from transformers import AutoTokenizer, LlamaForSequenceClassification

EMBEDDED = Path(__file__).resolve().parents[1] / "rft" / "embedded"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }}\nAnswer:\n"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The prompt of configs/quickstart.yaml, so that the model also reads what policies write there."""
CORRUPTIONS = ("operand", "operator", "result")
STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
PROBLEMS = 2500
PAIRS = 32
"""Right and wrong solutions of as many problems in a step."""
Row = dict[str, Any]


def corrupt(rng: random.Random, row: Row, how: str) -> str:
    """A solution of the same form whose answer is wrong. how: one of CORRUPTIONS."""
    steps = [(int(a), op, int(b)) for a, op, b, _ in STEP.findall(row["solution"])]
    given = [int(n) for n in re.findall(r"\d+", row["question"])]
    for _ in range(100):
        at, side = rng.randrange(len(steps)), rng.randrange(2)
        right: list[int] = []
        said: list[int] = []
        lines = []
        for i, (left, op, other) in enumerate(steps):
            pair = [left, other]
            for k in (0, 1):
                if pair[k] in right:  # what an earlier step gave
                    pair[k] = said[right.index(pair[k])]
                elif (i, k, how) == (at, side, "operand"):
                    pair[k] = rng.choice([*given, max(1, pair[k] + rng.randint(-9, 9))])
            right.append(compute(left, op, other))
            if (i, how) == (at, "operator"):
                op = rng.choice("+-*".replace(op, ""))
            said.append(compute(pair[0], op, pair[1]))
            if (i, how) == (at, "result"):
                said[-1] += rng.choice((-10, -2, -1, 1, 2, 10))
            lines.append(f"{pair[0]} {op} {pair[1]} = {said[-1]}")
        # As right ones are: results from 2 to 99.
        if all(1 < n < 100 for n in said) and str(said[-1]) != row["answer"]:
            return "\n".join([*lines, f"#### {said[-1]}"])
    return corrupt(rng, row, "result")


def held_out() -> list[Row]:
    return [json.loads(line) for line in (EMBEDDED / "eval.jsonl").read_text().splitlines()]


def ids(tokenizer: Any, question: str, answer: str) -> list[int]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def loss_of(model: Any, rows: list[tuple[list[int], int, int]]) -> torch.Tensor:
    """rows: token ids, where the answer starts, and up to where it is right."""
    ends = [len(tokens) for tokens, _, _ in rows]
    width, pad = max(ends), model.config.pad_token_id
    tokens = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens, _, _ in rows])
    # Padding is on the right, so causal attention needs no mask to stay clear of it.
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    scores = model.score(hidden)[..., 0]
    at = torch.arange(width)
    starts, rights, ends_at = (
        torch.tensor(x)[:, None] for x in ([r[1] for r in rows], [r[2] for r in rows], ends)
    )
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, (at < rights).float(), reduction="none"
    )
    counts = (at >= starts) & (at < ends_at)
    return (each * counts).sum() / counts.sum()


def train(
    model: Any,
    tokenizer: Any,
    problems: list[Row],
    steps: int,
    lr: float,
    seed: int,
    corruptions: Sequence[str],
) -> None:
    rng = random.Random(seed)
    inner = [p for n, p in model.named_parameters() if p.dim() == 2 and ".layers." in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or ".layers." not in n]
    optimizers = [
        torch.optim.Muon(inner, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda step: min(1.0, (step + 1) / 30) * (1 - step / steps)
        )
        for o in optimizers
    ]
    model.train()
    queue: list[Row] = []
    total = 0.0
    for step in range(steps):
        batch = []
        for _ in range(PAIRS):
            queue = queue or rng.sample(problems, len(problems))
            row = queue.pop()
            start = len(ids(tokenizer, row["question"], "")) - 1
            right = ids(tokenizer, row["question"], row["solution"])
            wrong = ids(tokenizer, row["question"], corrupt(rng, row, rng.choice(corruptions)))
            until = next(i for i, (a, b) in enumerate(zip(right, wrong)) if a != b)
            batch += [(right, start, len(right)), (wrong, start, until)]
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in [*optimizers, *schedules]:
            part.step()
        model.zero_grad()
        total += loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {total / 50:.3f}")
            total = 0.0
    model.eval()


def make(
    folder: Path,
    steps: int = 250,
    lr: float = 4e-3,
    seed: int = 0,
    corruptions: Sequence[str] = CORRUPTIONS,
) -> None:
    """Trains one and saves it to `folder`."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "model")
    tokenizer.chat_template = TEMPLATE
    model = LlamaForSequenceClassification.from_pretrained(
        EMBEDDED / "model", num_labels=1, dtype=torch.float32
    )
    taken = {normalise(row["question"]) for row in held_out()}
    problems = make_problems(random.Random(f"{seed} reward"), PROBLEMS, taken)
    train(model, tokenizer, problems, steps, lr, seed, corruptions)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def auc(right: list[float], wrong: list[float]) -> float:
    """How often a right answer is above a wrong one (any two, not of one question)."""
    pairs = [(r > w) + 0.5 * (r == w) for r in right for w in wrong]
    return sum(pairs) / len(pairs)


@torch.inference_mode()
def evaluate(folder: Path, count: int = 300) -> dict[str, float]:
    """AUC of right against corrupted solutions of held-out problems, for all and each corruption."""
    rng, rows = random.Random(1), held_out()[:count]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder)

    def values(texts: list[str]) -> list[float]:
        found = [ids(tokenizer, row["question"], text) for row, text in zip(rows, texts)]
        return [model(input_ids=torch.tensor([row])).logits.item() for row in found]

    right = values([row["solution"] for row in rows])
    wrong = {how: values([corrupt(rng, row, how) for row in rows]) for how in CORRUPTIONS}
    every = [value for found in wrong.values() for value in found]
    return {"all": auc(right, every)} | {how: auc(right, wrong[how]) for how in CORRUPTIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("models/tiny-reward"))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    make(args.out, args.steps, args.lr, args.seed)
    print(f"{args.out}: {time.monotonic() - started:.0f} s; AUC on held-out problems:")
    for name, value in evaluate(args.out).items():
        print(f"  {name}: {value:.3f}")


if __name__ == "__main__":
    main()
