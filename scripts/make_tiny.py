"""Make the embedded example: a tiny base model and a set of word problems, all offline.

The quickstart has to show rejection-sampling fine-tuning on a laptop without a download, so this
script makes everything from one seed and writes it to ``rft/embedded/``:

* ``model/``: a Llama of about one million parameters with a byte-level BPE tokenizer. It is
  pre-trained here on arithmetic facts, worked expressions, short stories and simple reading
  questions. It never sees a word problem together with its worked solution, so it is a base model.
* ``train.jsonl``: word problems. A few carry one worked solution, many carry only the answer.
  This is the setting where rejection sampling is useful: correct samples can stand in for the
  solutions that nobody wrote.
* ``eval.jsonl``: held-out problems from the same generator.

Why these choices:

* Every kind of problem has at least two right paths ((a + b) * c is also a * c + b * c), and the
  reference solution is one of them, picked uniformly. Nothing else is said about the other paths.
* Train, dev and eval come from one distribution. They share no question, even after names and
  things are masked, and no held-out question occurs in the pre-training text. The script asserts
  both.
* Numbers stay below 100 and every digit is one token, so a model this small can learn to compute.
* Two heads of 64 dimensions, because fast attention kernels support that size everywhere.

Run ``python scripts/make_tiny.py``. With the same seed the data files are the same bytes on every
machine, and the model is the same on the same machine with the same library versions. ``--dev``
also writes a development split, for choosing settings without looking at ``eval.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ["Ana", "Ben", "Cara", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ida", "Jon", "Kim", "Leo"]
THINGS = ["apples", "books", "coins", "cards", "eggs", "pens", "shells", "stamps", "toys", "keys"]
PLACES = ["boxes", "bags", "rows", "jars", "baskets"]
EOS, PAD = "<|endoftext|>", "<|pad|>"
MAX_NUMBER = 99
BATCH = 64

# The kinds of problem. First a line with the name, the range of each number, and the right paths;
# below it the ways to tell it. N, M, L are names, T and U things, P places; a, b, c, d the numbers.
# In a path, r is the result of the step before and q the result of the first step.
PROBLEMS = """
sum3 | a:2-30 b:2-30 c:2-30 | a+b r+c, b+c a+r, a+c r+b
    {N} has {a} {T}, {M} has {b} {T} and {L} has {c} {T}. How many {T} do they have?
    {N} finds {a} {T} on Monday, {b} on Tuesday and {c} on Friday. How many {T} does {N} find?
    A box holds {a} {T}. {N} adds {b} {T} and {M} adds {c} {T}. How many {T} are in the box?
add_take | a:8-40 b:8-30 c:2-7 | a+b r-c, a-c r+b, b-c a+r
    {N} has {a} {T}. {M} gives {N} {b} {T}. Then {N} loses {c} {T}. How many {T} does {N} have now?
    {N} buys {a} {T} and {b} {U}, then sells {c} of them. How many things are left?
    There are {a} {T} in a jar and {b} in a bag. {N} takes {c} {T}. How many {T} are left?
take_twice | a:30-90 b:2-14 c:2-14 | a-b r-c, b+c a-r, a-c r-b
    {N} has {a} {T}. {N} gives {b} to {M} and {c} to {L}. How many {T} does {N} have left?
    A shop has {a} {T}. It sells {b} {T} on Monday and {c} on Tuesday. How many {T} are left?
    {N} made {a} {T}. {b} of them broke and {N} lost {c}. How many {T} are left?
groups | a:2-9 b:2-9 c:2-6 | a+b r*c, a*c b*c q+r
    There are {c} {P}. Each has {a} {T} and {b} {U}. How many things are there in all?
    {N} gets {a} {T} from {M} and {b} from {L} every day. How many {T} does {N} get in {c} days?
    {N} fills {a} {P} and {M} fills {b} {P}, with {c} {T} each. How many {T} are there in all?
groups_take | a:6-12 b:2-5 c:2-8 | a-b r*c, a*c b*c q-r
    There are {c} {P} with {a} {T} each. {N} takes {b} {T} from each. How many {T} are left?
    {N} makes {a} {T} a day and sells {b} of them. How many {T} are left in {c} days?
    {N} has {a} {P} with {c} {T} each. {N} gives {b} {P} to {M}. How many {T} does {N} have left?
more | a:3-30 b:2-30 | a+b a+r, a+a r+b
    {N} has {a} {T}. {M} has {b} more {T} than {N}. How many {T} do they have?
    {N} finds {a} {T} on Monday and {b} more than that on Friday. How many {T} does {N} find?
fewer | a:14-45 b:2-12 | a-b a+r, a+a r-b
    {N} has {a} {T}. {M} has {b} fewer {T} than {N}. How many {T} do they have?
    {N} sells {a} {T} on Monday and {b} fewer than that on Friday. How many {T} does {N} sell?
times | a:3-30 b:2-12 | a*b r+a, b+1 a*r
    {N} has {a} {T}. {M} has {b} times as many {T} as {N}. How many {T} do they have?
    {N} made {a} {T} on Monday and {b} times as many on Friday. How many {T} does {N} have?
    A jar holds {a} {T}. A box holds {b} times as many. How many {T} do they hold?
times_more | a:3-30 b:3-12 | a*b r-a, b-1 a*r
    {N} has {a} {T}. {M} has {b} times as many {T} as {N}. How many more {T} does {M} have?
    A bag holds {a} {T}. A box holds {b} times as many. How many more {T} does the box hold?
    {N} gets {a} {T} and {M} gets {b} times as many. How many more {T} does {M} get?
chain | a:3-30 b:2-30 c:2-30 | a+b r+c, b+c a+r
    {N} has {a} {T}. {M} has {b} more than {N}. {L} has {c} more than {M}. How many {T} does {L} have?
    A bag holds {a} {T}. A jar holds {b} more than the bag. A box holds {c} more than the jar. How many {T} does the box hold?
"""

# Stories for pre-training, each with the equations of what happens, in the order it happens.
STORIES = """
a+b | {N} has {a} {T}. {N} finds {b} {T}.
a+b | {N} has {a} {T}. {M} gives {N} {b} {T}.
a+b | {N} has {a} {T} and {b} {U}.
a+b | {N} has {a} {T} and {M} has {b} {T}.
a+b | A box holds {a} {T}. {N} adds {b} {T}.
a+b | {N} finds {a} {T} on Monday and {b} on Friday.
a+b | There are {a} {T} in a jar and {b} in a bag.
a-b | {N} has {a} {T}. {N} loses {b} {T}.
a-b | {N} buys {a} {T}, then sells {b} of them.
a-b | {N} has {a} {T}. {N} gives {b} to {M}.
a-b | A shop has {a} {T}. It sells {b} {T} on Tuesday.
a-b | {N} made {a} {T}. {b} of them broke.
a-b | A jar holds {a} {T}. {N} takes {b} {T}.
a+b | {N} has {a} {T}. {M} has {b} more {T} than {N}.
a-b | {N} has {a} {T}. {M} has {b} fewer {T} than {N}.
a*b | {N} has {a} {T}. {M} has {b} times as many {T} as {N}.
a*b | There are {a} {P}. Each has {b} {T}.
a*b | There are {a} {P} with {b} {T} each.
a*b | {N} fills {a} {P} with {b} {T} each.
a*b | {N} gets {a} {T} every day in {b} days.
a+b r-c | {N} has {a} {T}. {N} finds {b} {T}. Then {N} loses {c}.
a-b r+c | {N} has {a} {T}. {N} loses {b} {T}. Then {M} gives {N} {c}.
a+b r+c | {N} buys {a} {T} on Monday, {b} on Tuesday and {c} on Friday.
a*b r+c | There are {a} {P} with {b} {T} each. {N} adds {c} {T}.
a*b r-c | There are {a} {P} with {b} {T} each. {N} takes {c} {T}.
a+b r*c | {N} has {a} {T} and {M} has {b} {T}. {L} has {c} times as many as they do.
a+c | {N} has {a} {T}, {M} has {b} {T} and {L} has {c} {T}. Add what {N} and {L} have.
b+c | {N} has {a} {T}, {M} has {b} {T} and {L} has {c} {T}. Add what {M} and {L} have.
b+a | {N} has {a} {T}. {M} has {b} {U}. {L} has {c} {T}. Add what {M} and {N} have.
c+b | A bag holds {a} {T}. A jar holds {b} {T}. A box holds {c} {T}. Add the box and the jar.
a+c | A bag holds {a} {T}. A jar holds {b} {T}. A box holds {c} {T}. Add the bag and the box.
a+c | {N} has {a} {T} and {b} {U}. {M} has {c} {T} and {d} {U}. Add the {T}.
b+d | {N} has {a} {T} and {b} {U}. {M} has {c} {T} and {d} {U}. Add the {U}.
c+d | Four jars hold {a}, {b}, {c} and {d} {T}. Add the last two.
b+c | {N} made {a} {T} on Monday, {b} on Tuesday and {c} on Friday. Leave out Monday.
a+b | {N} made {a} {T} on Monday, {b} on Tuesday and {c} on Friday. Leave out Friday.
a-c | {N} has {a} {T}. {b} of them are from {M}. {N} gives {c} to {L}.
b*c | {N} has {a} {T}. {M} has {b} {P} with {c} {T} each. Only {M} counts.
"""

# Questions for pre-training that only ask to find something in the text, each with its answer.
READINGS = """
{N} has {a} {T}. {M} has {b} {U} and {L} has {c} {T}. Who has {U}? {M}
{N} has {a} {T}. {M} has {b} {U} and {L} has {c} {U}. Who has {T}? {N}
{N} has {a} {T}. {M} has {b} {U}. What does {M} have? {U}
{N} has {a} {T}, {M} has {b} {T} and {L} has {c} {T}. How many {T} does {N} have? {a}
{N} has {a} {T}, {M} has {b} {T} and {L} has {c} {T}. How many {T} does {M} have? {b}
{N} has {a} {T}, {M} has {b} {T} and {L} has {c} {T}. How many {T} does {L} have? {c}
{N} has {a} {T} and {b} {U}. How many {T} does {N} have? {a}
{N} has {a} {T} and {b} {U}. How many {U} does {N} have? {b}
{N} finds {a} {T} on Monday, {b} on Tuesday and {c} on Friday. How many on Monday? {a}
{N} finds {a} {T} on Monday, {b} on Tuesday and {c} on Friday. How many on Tuesday? {b}
{N} finds {a} {T} on Monday, {b} on Tuesday and {c} on Friday. How many on Friday? {c}
A bag holds {a} {T}. A jar holds {b} more than the bag. How many {T} does the bag hold? {a}
There are {a} {P} with {b} {T} each. How many {P} are there? {a}
There are {a} {P} with {b} {T} each. How many {T} are in each? {b}
"""

# Expressions for pre-training, worked out from left to right.
WORKED = """
a+b r+c | {a} + {b} + {c}
a+b r-c | {a} + {b} - {c}
a-b r+c | {a} - {b} + {c}
a-b r-c | {a} - {b} - {c}
a*b r+c | {a} * {b} + {c}
a*b r-c | {a} * {b} - {c}
a+b r*c | ({a} + {b}) * {c}
a-b r*c | ({a} - {b}) * {c}
a+b r+c r+d | {a} + {b} + {c} + {d}
a*b c*d q+r | {a} * {b} + {c} * {d}
a*b c*d q-r | {a} * {b} - {c} * {d}
"""


class Kind(NamedTuple):
    ranges: dict[str, tuple[int, int]]
    paths: list[str]
    tellings: list[str]


def read_kinds(table: str) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for block in re.split(r"\n(?=\S)", table.strip()):
        head, *tellings = block.split("\n    ")
        name, numbers, paths = head.split(" | ")
        spans = (n.replace(":", "-").split("-") for n in numbers.split())
        ranges = {v: (int(low), int(high)) for v, low, high in spans}
        kinds[name] = Kind(ranges, paths.split(", "), tellings)
    return kinds


KINDS = read_kinds(PROBLEMS)
EXPRESSIONS = [line.split(" | ") for line in WORKED.strip().splitlines()]
ACCOUNTS = [line.split(" | ") for line in STORIES.strip().splitlines()]


def compute(left: int, op: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[op]


def solve(path: str, numbers: dict[str, int]) -> tuple[list[str], list[int]]:
    """The equations of one path, and their results."""
    lines, results = [], []
    for step in path.split():
        env = dict(numbers)
        if results:
            env.update(q=results[0], r=results[-1])
        x, op, y = step
        left, right = (env[v] if v in env else int(v) for v in (x, y))
        results.append(compute(left, op, right))
        lines.append(f"{left} {op} {right} = {results[-1]}")
    return lines, results


def solutions(kind: str, numbers: dict[str, int]) -> list[str]:
    """Every distinct right path of a problem, as solution text."""
    texts = []
    for path in KINDS[kind][1]:
        lines, results = solve(path, numbers)
        if all(1 < r <= MAX_NUMBER for r in results):
            texts.append("\n".join([*lines, f"#### {results[-1]}"]))
    return list(dict.fromkeys(texts))


def fill(rng: random.Random, telling: str, numbers: dict[str, int], thing: str) -> str:
    n, m, other = rng.sample(NAMES, 3)
    second = rng.choice([t for t in THINGS if t != thing])
    place = rng.choice(PLACES)
    return telling.format(N=n, M=m, L=other, T=thing, U=second, P=place, **numbers)


def make_problem(rng: random.Random, kind: str) -> dict[str, str | None]:
    """One problem with one of its right paths as the solution."""
    ranges, _, tellings = KINDS[kind]
    while True:
        numbers = {v: rng.randint(*ranges[v]) for v in ranges}
        texts = solutions(kind, numbers)
        if len(texts) > 1:
            break
    question = fill(rng, rng.choice(tellings), numbers, rng.choice(THINGS))
    solution = rng.choice(texts)
    answer = solution.rsplit(" ", 1)[1]
    return {"question": question, "answer": answer, "solution": solution, "kind": kind}


def normalise(text: str) -> str:
    """Lower case, words and numbers only, with names, things and places masked."""
    masks = {w.lower(): m for ws, m in ((NAMES, "N"), (THINGS, "T"), (PLACES, "P")) for w in ws}
    return " ".join(masks.get(w, w) for w in re.findall(r"[a-z]+|\d+", text.lower()))


def make_problems(rng: random.Random, count: int, taken: set[str]) -> list[dict[str, str | None]]:
    """Problems whose masked questions are not in ``taken``, which they then join."""
    rows: list[dict[str, str | None]] = []
    while len(rows) < count:
        # A new try keeps the kind, so that the kinds stay equally frequent in every split.
        kind = rng.choice(list(KINDS))
        for _ in range(1000):
            row = make_problem(rng, kind)
            key = normalise(str(row["question"]))
            if key not in taken:
                break
        else:
            raise ValueError(f"there are no new problems of the kind {kind}: ask for fewer rows")
        taken.add(key)
        rows.append(row)
    return rows


def make_fact(rng: random.Random) -> str:
    """True equations with results from 1 to MAX_NUMBER."""
    return "\n".join(make_equation(rng) for _ in range(6))


def make_equation(rng: random.Random) -> str:
    op = rng.choice("++--*")
    if op == "*":
        x = rng.randint(2, 49)
        y = rng.randint(2, MAX_NUMBER // x)
        if rng.random() < 0.5:
            x, y = y, x
    else:
        total = rng.randint(3, MAX_NUMBER)
        part = rng.randint(1, total - 1)
        x, y = (total - part, part) if op == "+" else (total, part)
    return f"{x} {op} {y} = {compute(x, op, y)}"


def make_expression(rng: random.Random) -> str:
    """An expression in symbols, worked out line by line."""
    while True:
        numbers = {v: rng.randint(2, 40 if rng.random() < 0.5 else 9) for v in "abcd"}
        path, head = rng.choice(EXPRESSIONS)
        lines, results = solve(path, numbers)
        if all(0 < r <= MAX_NUMBER for r in results):
            return "\n".join([head.format(**numbers), *lines, f"#### {results[-1]}"])


def make_account(rng: random.Random) -> str:
    """A short story, the equations of what happened in it, and the number that came out."""
    while True:
        path, telling = rng.choice(ACCOUNTS)
        top = 12 if "*" in path else rng.choice([12, 50, 80])
        numbers = {v: rng.randint(2, top) for v in "abcd"}
        lines, results = solve(path, numbers)
        if all(1 < r <= MAX_NUMBER for r in results):
            break
    thing = rng.choice(THINGS)
    story = fill(rng, telling, numbers, thing)
    return "\n".join([story, *lines, f"That makes {results[-1]} {thing}."])


def make_reading(rng: random.Random) -> str:
    """A question that only asks to find a word or a number in the text."""
    numbers = {v: rng.randint(2, rng.choice([12, 90])) for v in "abc"}
    telling = rng.choice(READINGS.strip().splitlines())
    question, answer = fill(rng, telling, numbers, rng.choice(THINGS)).rsplit(" ", 1)
    return f"Question: {question}\nAnswer: {answer}"


def make_document(rng: random.Random) -> str:
    """One pre-training text."""
    makers = [make_fact, make_expression, make_account, make_reading]
    maker = rng.choices(makers, [5, 15, 60, 20])[0]
    return maker(rng)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text comes back unchanged, and pieces never cross a digit or a line."""
    core = Tokenizer(models.BPE())
    # An operator keeps its spaces and a digit stands alone, so "12 + 7 = 19" is seven tokens. A
    # newline is its own piece, so prompt and completion can be tokenised apart.
    pattern = r"\d|\n| [-+*=] |#### | ?[A-Za-z]+|."
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def make_batches(
    tokenizer: PreTrainedTokenizerFast, documents: list[str], rng: random.Random
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input ids and labels: one document a row, as at inference, and rows of similar length."""
    encoded = tokenizer([d + EOS for d in documents])["input_ids"]
    batches = []
    for start in range(0, len(encoded), 64 * BATCH):
        rows = sorted(encoded[start : start + 64 * BATCH], key=len)
        for first in range(0, len(rows), BATCH):
            tensors = [torch.tensor(r) for r in rows[first : first + BATCH]]
            ids, labels = (
                torch.nn.utils.rnn.pad_sequence(tensors, True, value)
                for value in (tokenizer.pad_token_id, -100)
            )
            batches.append((ids, labels))
    rng.shuffle(batches)
    return batches


def pretrain(
    tokenizer: PreTrainedTokenizerFast, documents: list[str], seed: int
) -> LlamaForCausalLM:
    """One pass over the packed documents with AdamW and a cosine schedule."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    batches = make_batches(tokenizer, documents, random.Random(seed))
    steps = len(batches)
    size = sum(p.numel() for p in model.parameters())
    tokens = sum(int((labels >= 0).sum()) for _, labels in batches)
    print(f"pre-training {size:,} parameters on {tokens:,} tokens, {steps} steps")
    # Muon on the matrices learns to copy numbers in a third of the steps that AdamW alone takes.
    inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(inner, lr=4e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=4e-3, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda step: min(1.0, (step + 1) / 50) * (1 - step / steps)
        )
        for o in optimizers
    ]
    model.train()
    started, total = time.time(), 0.0
    for step, (ids, labels) in enumerate(batches):
        # Padding is on the right, so causal attention needs no mask to stay clear of it.
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in [*optimizers, *schedules]:
            part.step()
        model.zero_grad()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {total / 100:.3f}, {time.time() - started:.0f} s")
            total = 0.0
    return model.eval()


def write_rows(path: Path, rows: list[dict[str, str | None]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded tiny model and its data.")
    parser.add_argument("--out", type=Path, default=Path("rft/embedded"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--solved", type=int, default=200, help="train rows with a solution")
    parser.add_argument("--unsolved", type=int, default=500, help="train rows with an answer only")
    parser.add_argument("--held-out", type=int, default=1000, help="rows of eval (and of dev)")
    parser.add_argument("--documents", type=int, default=130_000, help="pre-training documents")
    parser.add_argument("--dev", type=Path, help="also write a development split to this file")
    args = parser.parse_args()
    torch.set_num_threads(2)
    args.out.mkdir(parents=True, exist_ok=True)

    taken: set[str] = set()
    splits = {}
    # Each split has its own stream, so changing the size of one keeps the others' problems.
    for name, count in [
        ("eval", args.held_out),
        ("dev", args.held_out),
        ("train", args.solved + args.unsolved),
    ]:
        splits[name] = make_problems(random.Random(f"{args.seed} {name}"), count, taken)
    for row in splits["train"][args.solved :]:
        row["solution"] = None
    # Mixed, so that the first few rows are a small set of the same kind.
    random.Random(f"{args.seed} order").shuffle(splits["train"])

    rng = random.Random(f"{args.seed} pre-training")
    documents = [make_document(rng) for _ in range(args.documents)]
    text = " | ".join(normalise(d) for d in documents)
    keys = {k: {normalise(str(r["question"])) for r in rows} for k, rows in splits.items()}
    assert not keys["eval"] & (keys["train"] | keys["dev"]) and not keys["dev"] & keys["train"]
    assert not any(key in text for key in keys["eval"] | keys["dev"])
    print(f"{len(documents):,} documents; no held-out question is in them or in train")

    write_rows(args.out / "train.jsonl", splits["train"])
    write_rows(args.out / "eval.jsonl", splits["eval"])
    if args.dev:
        write_rows(args.dev, splits["dev"])

    tokenizer = make_tokenizer(documents[:20_000])
    model = pretrain(tokenizer, documents, args.seed)
    model.save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    print(f"wrote {args.out / 'model'}")


if __name__ == "__main__":
    main()
