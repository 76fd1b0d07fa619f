"""How fast is scoring? Both sides in one run, each printed as a table.

    python scripts/bench/scoring.py                        # about three minutes
    python scripts/bench/scoring.py --only math --prompts 300 --differences differences.txt
    python scripts/bench/scoring.py --only gsm8k

* math: 64 candidates a prompt, made from MATH's own answers: as they are, rewritten without a change
  of value, and changed by little. The scorer runs in two processes over candidates in memory, each
  starting with empty caches; math-verify runs on one core in a loop as its users write it: parse the
  gold answer, parse the candidate, verify. Verdicts are compared one by one; `--differences` writes
  every distinct pair on which they differ.
* gsm8k: verdicts a second on GSM8K's own solutions and on the same with another number.

`--text box` gives each candidate as a bare box, which is math-verify's best case; `--text solution`
puts it at the end of the data set's worked solution, as a model's would be.
"""

import argparse
import json
import multiprocessing as mp
import os
import random
import re
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

from rft.scorers._equal import Form, form_of
from rft.scorers.math import math
from rft.types import Candidate, Finish, Prompt

DATA = Path(os.environ.get("RFT_DATA") or Path(__file__).parents[2] / "data")
PER_PROMPT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("math", "gsm8k"))
    parser.add_argument("--data", type=Path, default=DATA, help="folder with math/ and gsm8k/")
    parser.add_argument("--prompts", type=int, default=400, help="MATH prompts, drawn by seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--text", choices=("box", "solution"), default="box")
    parser.add_argument("--repeat", type=int, default=1, help="times the scorer's side is run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--differences", type=Path, help="file for the pairs that differ")
    args = parser.parse_args()
    if args.only != "gsm8k":
        measure_math(args)
    if args.only != "math":
        measure_gsm8k(args)


# Candidates from real answers -------------------------------------------------------------------

LAST_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}")


def last_box(solution: str) -> re.Match[str] | None:
    """The last box of a worked solution, which holds the gold answer."""
    found = list(LAST_BOX.finditer(solution))
    return found[-1] if found else None


def rewritten(gold: str) -> list[str]:
    """The same answer in other forms, each of which a model might write."""
    out = [gold, f" {gold} ", f"${gold}$"]
    out += [gold.replace("\\frac", other) for other in ("\\dfrac", "\\tfrac") if "frac" in gold]
    if re.search(r"\\[dt]frac", gold):
        out.append(re.sub(r"\\[dt]frac", r"\\frac", gold))
    if "\\left" not in gold and re.fullmatch(r"\(.*\)", gold):
        out.append(f"\\left{gold[:-1]}\\right)")
    out.append(gold.replace("\\left", "").replace("\\right", ""))
    out.append(re.sub(r"(?<!\d)\\frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", gold))
    out.append(re.sub(r"(?<=[\d}])(?=[-+=])", " ", gold))
    out.append(gold if "\\" in gold else gold.replace(" ", ""))
    out.append(gold.replace(",\\!", ",").replace("{,}", ","))
    out.append(gold.replace("\\sqrt", "\\cdot\\sqrt") if re.search(r"\d\s*\\sqrt", gold) else gold)
    out.append(gold.replace("^\\circ", "^{\\circ}").replace("^{{", "^{"))
    if (value := rational(gold)) is not None:
        if value.denominator == 1:
            out += [
                f"{value}.0",
                f"{value.numerator:,}",
                f"x = {value}",
                f"{value}\\text{{ units}}",
            ]
            out += [f"\\frac{{{value * 2}}}{{2}}"]
        else:
            out += [f"{value}", f"{value.numerator * 3}/{value.denominator * 3}"]
            out += [f"y={value}"] if "=" not in gold else []
            if 10**6 % value.denominator == 0:
                out.append(f"{float(value):.6f}".rstrip("0"))
    if "," in gold and not re.search(r"[(\[{]|\\!|\d,\d{3}(?!\d)", gold):
        members = [m.strip() for m in gold.split(",")]
        out += [", ".join(members[::-1]), "\\{" + ", ".join(members) + "\\}"]
        out.append(" \\text{ and } ".join(members))
    if re.fullmatch(r"[A-Z]|[a-zA-Z]{3,}", gold):
        out.append(f"\\text{{{gold}}}")
    if match := re.fullmatch(r"\\text\{\(?([A-Za-z]+)\)?\}", gold):
        out += [match[1], f"\\textbf{{{match[1]}}}"]
    return list(dict.fromkeys(out))


def nearly(gold: str, random_: random.Random) -> list[str]:
    """Other answers that look like it."""
    out = []
    spots = [match.start() for match in re.finditer(r"\d", gold)]
    for at in random_.sample(spots, min(6, len(spots))):
        for by in random_.sample(range(1, 10), 2):
            out.append(f"{gold[:at]}{(int(gold[at]) + by) % 10}{gold[at + 1 :]}")
    out.append(gold[1:].lstrip() if gold.startswith("-") else f"-{gold}")
    out.append(gold.replace("+", "-", 1) if "+" in gold else gold.replace("-", "+", 1))
    out.append(re.sub(r"\\sqrt\{?(\d+)\}?", r"\1", gold))
    out.append(re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\\frac{\2}{\1}", gold))
    out.append(gold.replace("\\pi", "", 1).strip())
    out.append(gold.replace("[", "(", 1) if "[" in gold else gold.replace("(", "[", 1))
    if "," in gold and not re.search(r"\\!|\d,\d{3}(?!\d)", gold):
        out.append(gold.rpartition(",")[0].strip() + (")" if gold.endswith(")") else ""))
        if match := re.fullmatch(r"\(([^,()]*),([^,()]*)\)", gold):
            out.append(f"({match[2]},{match[1]})")
    if (value := rational(gold)) is not None:
        out += [f"{value + 1}", f"{value}0", f"{gold}x", f"{gold}\\sqrt{{2}}"]
        if value.denominator != 1 and value.denominator < 10**6:
            out.append(f"{float(value):.2f}")
    if re.fullmatch(r"\\text\{\(?[A-E]\)?\}|[A-E]", gold):
        out += [f"\\text{{{other}}}" for other in "ABCDE" if other not in gold]
    return [text for text in dict.fromkeys(out) if text and text != gold]


def rational(gold: str) -> Fraction | None:
    form = form_of(gold)
    if isinstance(form, Form) and form.kind == "value" and not form.units:
        if isinstance(form.value, int | Fraction) and form.value.denominator < 10**9:
            return Fraction(form.value)
    return None


def math_prompts(
    data: Path, count: int, text: str, seed: int
) -> list[tuple[Prompt, list[Candidate]]]:
    rows = [json.loads(line) for line in (data / "math/test.jsonl").read_text().split("\n") if line]
    random_ = random.Random(seed)
    random_.shuffle(rows)
    out = []
    for row in rows:
        box = last_box(row["solution"])
        if box is None:
            continue
        gold = box[1]
        same, other = rewritten(gold), nearly(gold, random_)
        drawn = random_.choices(same, k=PER_PROMPT // 2) + random_.choices(
            other or same, k=PER_PROMPT - PER_PROMPT // 2
        )
        random_.shuffle(drawn)
        before = row["solution"][: box.start()] if text == "solution" else "$"
        after = row["solution"][box.end() :] if text == "solution" else "$"
        prompt = Prompt(f"p{row['idx']}", row["problem"], gold)
        made = [f"{before}\\boxed{{{said}}}{after}" for said in drawn]
        out.append((prompt, [candidate(prompt, i, said) for i, said in enumerate(made)]))
        if len(out) == count:
            break
    return out


def candidate(prompt: Prompt, index: int, text: str) -> Candidate:
    return Candidate(f"{prompt.id}.{index}", prompt.id, index, text, (), (), Finish.STOP)


# Both sides -------------------------------------------------------------------------------------


def score(groups: list[tuple[Prompt, list[Candidate]]], pipe: Any, go: Any) -> None:
    """One process of the scorer's side: sends the seconds that it took, and its scores."""
    go.wait()
    begun = time.perf_counter()
    scores = [math(prompt, one) for prompt, many in groups for one in many]
    took = time.perf_counter() - begun
    pipe.send((took, [(str(s.verdict), s.reason, s.extracted) for s in scores]))


def score_all(
    groups: list[tuple[Prompt, list[Candidate]]], processes: int
) -> tuple[float, dict[str, tuple[str, str | None, str | None]]]:
    """Seconds of the slowest process, and (verdict, reason, extracted) by candidate id."""
    context = mp.get_context("spawn")
    go = context.Event()
    parts = [groups[i::processes] for i in range(processes)]
    pipes, workers = [], []
    for part in parts:
        ours, theirs = context.Pipe()
        worker = context.Process(target=score, args=(part, theirs, go))
        worker.start()
        pipes.append(ours)
        workers.append(worker)
    time.sleep(3)  # all have started
    go.set()
    got = [pipe.recv() for pipe in pipes]
    for worker in workers:
        worker.join()
    verdicts = {
        one.id: said
        for part, (_, scores) in zip(parts, got, strict=True)
        for one, said in zip((c for _, many in part for c in many), scores, strict=True)
    }
    return max(took for took, _ in got), verdicts


def verify_all(groups: list[tuple[Prompt, list[Candidate]]]) -> tuple[float, dict[str, bool]]:
    """math-verify as its users call it."""
    from math_verify import parse, verify

    parse("$1$")
    verdicts = {}
    begun = time.perf_counter()
    for prompt, many in groups:
        for one in many:
            verdicts[one.id] = verify(parse(f"${prompt.answer}$"), parse(one.text))
    return time.perf_counter() - begun, verdicts


def measure_math(args: argparse.Namespace) -> None:
    groups = math_prompts(args.data, args.prompts, args.text, args.seed)
    count = sum(len(many) for _, many in groups)
    took, verdicts = min(
        (score_all(groups, args.processes) for _ in range(args.repeat)), key=lambda got: got[0]
    )
    theirs_took, theirs = verify_all(groups)
    print(f"MATH, {len(groups)} prompts x {PER_PROMPT} candidates ({args.text})")
    print(f"  math-verify, one core   {count / theirs_took:12,.0f} verdicts/s")
    print(f"  scorer, {args.processes} processes     {count / took:12,.0f} verdicts/s")
    print(f"  ratio                   {theirs_took / took:12.1f}")
    told = Counter(verdict for verdict, _, _ in verdicts.values())
    reasons = Counter(reason for _, reason, _ in verdicts.values() if reason)
    print(f"  verdicts                {dict(told)}, unknown: {dict(reasons)}")
    differ: dict[tuple[str, str], tuple[str, str | None, bool]] = {}
    cells: Counter[tuple[str, str]] = Counter()
    for prompt, many in groups:
        for one in many:
            verdict, reason, said = verdicts[one.id]
            cells[verdict, "correct" if theirs[one.id] else "wrong"] += 1
            if (verdict == "correct") != theirs[one.id]:
                differ[said or "", prompt.answer or ""] = (verdict, reason, theirs[one.id])
    for (ours, other), number in sorted(cells.items()):
        print(f"  scorer {ours:8} math-verify {other:8} {number:8,}")
    print(f"  {len(differ)} distinct pairs differ")
    if args.differences:
        lines = [
            f"{'accepts' if other else 'refuses'}\t{verdict}\t{reason}\t{said}\t{gold}"
            for (said, gold), (verdict, reason, other) in sorted(differ.items())
        ]
        args.differences.write_text("\n".join(sorted(lines)) + "\n")


def measure_gsm8k(args: argparse.Namespace) -> None:
    rows = [
        json.loads(line)
        for name in ("train", "test")
        for line in (args.data / f"gsm8k/{name}.jsonl").read_text().split("\n")
        if line
    ]
    groups = []
    for i, row in enumerate(rows):
        body, _, gold = row["answer"].rpartition("#### ")
        prompt = Prompt(f"g{i}", row["question"], gold)
        other = str(int(gold.replace(",", "")) + 1)
        texts = [row["answer"], f"{body}#### {other}"] * (PER_PROMPT // 2)
        # Each a text of its own, as samples are.
        groups.append((prompt, [candidate(prompt, k, f"{t} ") for k, t in enumerate(texts)]))
    count = sum(len(many) for _, many in groups)
    took, verdicts = score_all(groups, args.processes)
    told = Counter(verdict for verdict, _, _ in verdicts.values())
    assert told == {"correct": count // 2, "wrong": count // 2}, told
    few = [(prompt, many[:2]) for prompt, many in groups[:2000]]
    theirs_took, theirs = verify_all(few)
    rate, theirs_rate = count / took, sum(len(many) for _, many in few) / theirs_took
    print(f"GSM8K, {len(groups)} prompts x {PER_PROMPT} candidates")
    print(f"  math-verify, one core   {theirs_rate:12,.0f} verdicts/s")
    print(f"  scorer, {args.processes} processes     {rate:12,.0f} verdicts/s")
    print(f"  ratio                   {rate / theirs_rate:12.1f}")
    right = sum(theirs.values())
    print(f"  math-verify calls {right:,} of {len(theirs):,} correct, where half are")


if __name__ == "__main__":
    main()
