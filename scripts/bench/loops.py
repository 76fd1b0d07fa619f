"""What does stopping loops save, and whom does it lose?

    python scripts/bench/loops.py --model models/SmolLM2-135M-Instruct --data data

* saved: the same samples with `loops` and without, same seeds, on one engine. What a loop costs is
  counted without the rule's help: a sample that ran to its budget loops from the token on after which
  nine in ten of its 8-grams had been said before. Saved is what the engine drew less.
* lost: samples that are correct without the rule and stopped with it; and, since a small model gives
  few correct samples, the rule on texts that are right: gold solutions of GSM8K, MATH and HumanEval
  in the model's tokens (files of the names that the data sets give them, under --data). With --run,
  on the correct samples of finished runs as well.
* fast: microseconds of CPU for one look at a running sample, vLLM's own search and ours.

`--skip-engine` leaves out the first part.
"""

import argparse
import gzip
import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rft.chat import Renderer
from rft.config import Chat, Model
from rft.config_decoding import Decoding, Engine, Loops
from rft.loops import in_loop, is_audited, stopped_at
from rft.scoring import score_all
from rft.stats import wilson
from rft.types import Candidate, Finish, Prompt, Request, Setup, Verdict, digest

GRAM, SHARE, SHORTEST = 8, 0.9, 64
"""A loop by the bench's measure: so many tokens a gram, share of them known, tokens in all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--limit", type=int, default=96, help="GSM8K questions to sample for")
    parser.add_argument("--n", type=int, default=1, help="samples of each")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--rule", default="{}", help="JSON of sample.loops, default our defaults")
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="folders of finished runs")
    parser.add_argument("--skip-engine", action="store_true")
    args = parser.parse_args()
    rule = Loops(**json.loads(args.rule))
    model = Model(base=args.model, max_len=2048)
    renderer = Renderer(model, Chat())
    print(f"rule: {rule!r}")
    if not args.skip_engine:
        sampled(args, rule, model, renderer)
    on_right_texts(args.data, rule, renderer)
    for run in args.run:
        on_a_run(run, rule)
    fast(args.data, rule, renderer)


# What is saved -------------------------------------------------------------------------------------


def sampled(args: argparse.Namespace, rule: Loops, model: Model, renderer: Renderer) -> None:
    from rft.samplers.vllm import vllm

    lines = (args.data / "gsm8k" / "train.jsonl").read_text().splitlines()[: args.limit]
    prompts = {}
    for row in map(json.loads, lines):
        gold = row["answer"].rpartition("####")[2].strip()
        made = Prompt(digest(row["question"]), row["question"], gold)
        prompts[made.id] = made
    sampler = vllm(Setup(model=model, engine=Engine(), renderer=renderer, prompts=prompts))
    common = {"n": args.n, "temperature": args.temperature, "max_tokens": args.max_tokens}
    got: dict[str, dict[str, Candidate]] = {}
    seconds: dict[str, float] = {}
    for side, loops in (("without", None), ("with", rule)):
        decoding = Decoding(**common, loops=loops)
        began = time.monotonic()
        asked = requests(prompts, decoding, renderer)
        got[side] = {c.id: c for c in sampler.sample(asked)}
        seconds[side] = time.monotonic() - began
    sampler.close()
    without, stopped = got["without"], got["with"]
    assert without.keys() == stopped.keys()
    # A token whose rival is as likely can come out otherwise in other company.
    other = [
        id for id, c in stopped.items() if without[id].token_ids[: len(c.token_ids)] != c.token_ids
    ]
    for id in other:
        del without[id], stopped[id]
    tokens = {side: sum(len(c.token_ids) for c in rows.values()) for side, rows in got.items()}
    hit = {id for id, c in stopped.items() if c.finish is Finish.LOOP}
    print(
        f"\n{len(without)} samples of {len(prompts)} GSM8K questions, temperature {args.temperature}; "
        f"{len(other)} more differ between the sides and are left out"
    )
    for side in got:
        print(f"  {side}: {tokens[side]:,} tokens, {seconds[side]:.0f} s")
    print(
        f"  stopped: {len(hit)}, of which {sum(without[id].finish is Finish.STOP for id in hit)} would "
        f"have ended by themselves; {sum(is_audited(id, rule) for id in without)} samples were audited"
    )
    print(
        "  budget  cut off  looping  tokens  the loops cost  saved  of the cost  of all tokens  "
        "of the cost, had none been audited"
    )
    # Both sides are what a smaller budget would have given, cut there.
    for budget in sorted({512, 768, args.max_tokens}):
        if budget <= args.max_tokens:
            print(f"  {budget:>6}  {by_budget(without, stopped, rule, budget)}")
    pairs = [(prompts[c.prompt_id], c) for c in without.values()]
    specs = [{"use": "answer", "args": {}}]
    right = {row.id for _, row in score_all(pairs, specs) if row.verdict is Verdict.CORRECT}
    print(f"  correct without the rule: {len(right)}; of these stopped with it: {len(right & hit)}")


def by_budget(
    without: dict[str, Candidate], stopped: dict[str, Candidate], rule: Loops, budget: int
) -> str:
    """A line of the table."""
    ids = [c.token_ids[:budget] for c in without.values()]
    cut = [one for one in ids if len(one) == budget]
    began = [at for at in map(onset, cut) if at is not None]
    cost = sum(budget - at for at in began)
    tokens = sum(map(len, ids))
    saved = tokens - sum(min(len(c.token_ids), budget) for c in stopped.values())
    ends = [(stopped_at(one, rule) or len(one), len(one)) for one in ids]
    alone = sum(whole - end for end, whole in ends)
    return (
        f"{len(cut):>7}  {len(began):>7}  {tokens:>6,}  {cost:>14,}  {saved:>5,}  "
        f"{saved / max(cost, 1):>11.2f}  {saved / tokens:>13.2f}  "
        f"{alone / max(cost, 1):.2f}"
    )


def requests(
    prompts: dict[str, Prompt], decoding: Decoding, renderer: Renderer
) -> Iterator[Request]:
    for prompt in prompts.values():
        ids = renderer.prompt_ids(prompt.question)
        for index in range(decoding.n):
            key = digest(prompt.id, index)
            yield Request(key, prompt.id, index, ids, decoding, int(digest(key)[:15], 16))


def onset(token_ids: tuple[int, ...]) -> int | None:
    """Tokens of an answer before it only repeats itself; None where it does not."""
    known, seen = [], set()
    for end in range(GRAM, len(token_ids) + 1):
        gram = token_ids[end - GRAM : end]
        known.append(gram in seen)
        seen.add(gram)
    found, old = None, 0
    for count, is_known in enumerate(reversed(known), start=1):
        old += is_known
        if count >= SHORTEST and is_known and old >= SHARE * count:
            found = len(token_ids) - count
    return found


# Whom it loses -------------------------------------------------------------------------------------


def on_right_texts(data: Path, rule: Loops, renderer: Renderer) -> None:
    print("\ntexts that are right, and how many the rule would have stopped")
    total = lost = 0
    for name, texts in right_texts(data):
        ids = [renderer.completion_ids(text) for text in texts]
        hits = sum(stopped_at(one, rule) is not None for one in ids)
        total, lost = total + len(ids), lost + hits
        tokens = sum(map(len, ids)) / len(ids)
        print(
            f"  {name}: {hits} of {len(ids):,} (mean {tokens:.0f} tokens) {interval(hits, len(ids))}"
        )
    print(f"  all: {lost} of {total:,} {interval(lost, total)}")


def right_texts(data: Path) -> Iterator[tuple[str, list[str]]]:
    for split in ("train", "test"):
        lines = (data / "gsm8k" / f"{split}.jsonl").read_text().splitlines()
        yield f"GSM8K {split}", [json.loads(line)["answer"] for line in lines]
    lines = (data / "math" / "test.jsonl").read_text().splitlines()
    yield "MATH test", [json.loads(line)["solution"] for line in lines]
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    yield "HumanEval", [row["prompt"] + row["canonical_solution"] for row in rows]


def on_a_run(run: Path, rule: Loops) -> None:
    """Correct samples of a run on disk, which may have been drawn with the rule or without."""
    from rft import rows
    from rft.types import ScoreRow

    correct: set[str] = set()
    for folder in sorted((run / "stages").glob("score-*")):
        for row in rows.read(folder, ScoreRow, columns=["id", "verdict"]):
            if row.verdict is Verdict.CORRECT:
                correct.add(row.id)
    seen: set[str] = set()
    hits = 0
    for folder in sorted((run / "stages").glob("sample-*")):
        for c in rows.read(folder, Candidate, columns=["id", "finish", "token_ids"]):
            if c.id in correct and c.id not in seen and c.finish is not Finish.REFERENCE:
                seen.add(c.id)
                at = stopped_at(c.token_ids, rule)
                hits += at is not None and at < len(c.token_ids)
    if seen:
        print(f"  {run}: {hits} of {len(seen):,} correct samples {interval(hits, len(seen))}")


def interval(hits: int, total: int) -> str:
    got = wilson(hits, total)
    return f"= {got.value:.3%} (95%: {got.low:.3%} to {got.high:.3%})"


# How fast the look is ------------------------------------------------------------------------------


def fast(data: Path, rule: Loops, renderer: Renderer) -> None:
    from vllm.sampling_params import RepetitionDetectionParams
    from vllm.v1.utils import ConstantList

    found = importlib.util.find_spec("vllm.v1.core.sched.utils")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    params = RepetitionDetectionParams(rule.period, rule.least, rule.repeats)
    sides: dict[str, Any] = {
        "vLLM's": lambda ids: module.check_sequence_repetition(ids, params),
        "ours": lambda ids: in_loop(ids, rule.least, rule.period, rule.repeats),
    }
    text = "\n".join(text for text in next(right_texts(data))[1][:100])
    ids = list(renderer.completion_ids(text))
    running = [ConstantList(ids[:end]) for end in range(1000, 3000)]
    told = {}
    for name, look in sides.items():
        began = time.thread_time()
        said = [look(one) for one in running]
        told[name] = (time.thread_time() - began) / len(running) * 1e6, said
    assert told["vLLM's"][1] == told["ours"][1]
    print(
        "\none look at a running sample, CPU time: "
        + ", ".join(f"{name} {us:.1f} us" for name, (us, _) in told.items())
    )


if __name__ == "__main__":
    main()
