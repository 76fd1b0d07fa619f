"""How fast is selecting? Two measurements on made-up candidates, each printed as a table.

    python scripts/bench/selecting.py                   # both, about 10 minutes on one core
    python scripts/bench/selecting.py --only farthest   # about two minutes
    python scripts/bench/selecting.py --only scaling --rows 10000 100000

* farthest: `diverse` on 100 correct paths a prompt against the RFT paper's procedure: in plain
  Python, with the compiled editdistance that the paper's code uses (where it is installed), and with
  rapidfuzz's edit distance, which shows what of the gain is that library's. The choices are asserted
  to be the same. Of the paper's code the check of each equation by `eval` is left out.
* scaling: each selector on more and more rows, 100 a prompt. Time and memory are of the selecting
  alone: the rows are made before, and memory is what is added at the peak.
  The exponent is the slope between the first and the last count, of log time over log rows: 1 is
  linear. Each count has its own process.
"""

import argparse
import functools
import importlib
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein

from rft.equations import _equation
from rft.selectors.balance import balance
from rft.selectors.correct import correct
from rft.selectors.decontaminate import decontaminate
from rft.selectors.dedupe import dedupe
from rft.selectors.distinct_equations import distinct_equations
from rft.selectors.diverse import diverse
from rft.selectors.length import length
from rft.selectors.random import random as random_rows
from rft.selectors.top import top
from rft.selectors.top_overall import top_overall
from rft.stages import select
from rft.types import Candidate, Finish, Group, Prompt, Score, Scored, Verdict

PER_PROMPT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("farthest", "scaling"))
    parser.add_argument("--prompts", type=int, default=2, help="prompts for farthest")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("RESULT", json.dumps(scale(args.child)))
        return
    if args.only != "scaling":
        compare(args.prompts)
    if args.only != "farthest":
        scaling(sorted(args.rows))


# Made-up candidates -----------------------------------------------------------------------------

OPENINGS = ("First,", "So", "Then", "Now", "Next,", "We see that", "After that", "This means")
WORDS = (
    "there are {e} of them in the two baskets that she brought.",
    "the total number of apples that they picked comes to {e} apples.",
    "she has {e} left over after she has given the others to her friend.",
    "we get {e}, which is what they had at the end of the week.",
    "that makes {e} dollars in all for what she bought at the market.",
)


def group(number: int, count: int = PER_PROMPT) -> Group:
    """A prompt whose samples go some of 30 ways, likely ones more often, each in many wordings; two
    samples in five are wrong."""
    chance = random.Random(number)
    ways = [_way(chance) for _ in range(30)]
    rows = []
    for index in range(count):
        way = ways[min(int(chance.expovariate(0.2)), 29)]
        lines = [
            f"{chance.choice(OPENINGS)} {chance.choice(WORDS).format(e=equation)}"
            for equation in way
        ]
        text = "\n".join(lines) + "\n#### 42"
        verdict = Verdict.WRONG if chance.random() < 0.4 else Verdict.CORRECT
        candidate = Candidate(
            f"{number:012x}{index:012x}", f"{number:024x}", index, text, (), (), Finish.STOP
        )
        score = Score(verdict, value=chance.gauss(0, 1))
        rows.append(Scored(candidate, score, len(text) // 4))
    question = " ".join(chance.choices(("apples", "pears", "Ann", "buys", "sells", "and"), k=40))
    prompt = Prompt(f"{number:024x}", f"{number}: {question}", "42", kind=f"topic {number % 7}")
    return Group(prompt, tuple(rows))


def _way(chance: random.Random) -> list[str]:
    steps = []
    for _ in range(chance.randint(3, 5)):
        a, b = chance.randint(2, 9), chance.randint(2, 9)
        sign = chance.choice("+-*")
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        steps.append(f"{a}{sign}{b}=<<{a}{sign}{b}={result}>>{result}")
    return steps


# The paper's choice -----------------------------------------------------------------------------


def paper(paths: list[str], distance: Callable[[str, str], int]) -> list[str]:
    """The selected paths, as OFA-Sys/gsm8k-ScRel selects them, step for step."""
    selected: list[str] = []
    appeared: list[str] = []
    for path in paths:
        equations = "|".join(re.findall(r"<<([^>]*)>>", path)).replace(" ", "")
        if equations not in appeared:
            selected.append(path)
            appeared.append(equations)
            continue
        at = appeared.index(equations)
        now = selected[at]
        now_score = sum(distance(now, other) for other in selected if other != now)
        new_score = sum(distance(path, other) for other in selected if other != now)
        if new_score > now_score:
            selected[at] = path
    return selected


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance, one row of the table at a time."""
    above = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b)))
        above = row
    return above[-1]


def compare(prompts: int) -> None:
    distances: dict[str, Callable[[str, str], int]] = {
        "plain Python": edit_distance,
        "with rapidfuzz": Levenshtein.distance,
    }
    try:
        distances["with editdistance"] = importlib.import_module("editdistance").eval
    except ImportError:
        print("without editdistance, the paper's own library: pip install editdistance")
    list(diverse([group(-1)]))  # warm-up
    total = dict.fromkeys([*distances, "ours"], 0.0)
    kept = letters = 0
    for number in range(prompts):
        given = group(number)
        paths = [row.candidate.text for row in given.rows]
        letters += sum(map(len, paths))

        def ours(given: Group = given) -> list[str]:
            _equation.cache_clear()  # a new prompt has new equations
            return [row.candidate.text for row, reason in diverse([given]) if reason is None]

        seconds, chosen = timed(ours, 9)
        total["ours"] += seconds
        chosen = sorted(chosen)
        for name, distance in distances.items():
            run = functools.partial(paper, paths, distance)
            seconds, theirs = timed(run, 1 if distance is edit_distance else 9)
            total[name] += seconds
            assert sorted(theirs) == chosen, f"{name} chose otherwise for prompt {number}"
        kept += len(chosen)
    print(
        f"farthest: {prompts} prompts of {PER_PROMPT} paths, {letters / prompts / PER_PROMPT:.0f} "
        f"characters each on average, {kept / prompts:.1f} selected of a prompt; same choice"
    )
    for name, seconds in total.items():
        print(
            f"  {name:<18} {1000 * seconds / prompts:>10.1f} ms a prompt"
            f"   {seconds / total['ours']:>8.1f} times ours"
        )


def timed(run: Callable[[], list[str]], times: int) -> tuple[float, list[str]]:
    """Median seconds of so many runs, and what the last one gave."""
    each = []
    for _ in range(times):
        began = time.perf_counter()
        got = run()
        each.append(time.perf_counter() - began)
    return statistics.median(each), got


# Scaling ----------------------------------------------------------------------------------------


def scaling(counts: list[int]) -> None:
    results = {}
    for count in counts:
        command = [sys.executable, __file__, "--child", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (line,) = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")] or [None]
        if line is None:
            sys.exit(f"{count} rows failed:\n{done.stderr[-4000:]}")
        results[count] = json.loads(line.removeprefix("RESULT "))
        print(f"  {count:,} rows done", file=sys.stderr)
    print(f"scaling: {PER_PROMPT} rows a prompt; seconds and added MiB of the selecting alone")
    print(f"{'selector':<24}" + "".join(f"{c:>12,}{'':>9}" for c in counts) + " exponent")
    for name in results[counts[0]]:
        each = [results[count][name] for count in counts]
        shown = "".join(f"{seconds:>10.2f} s{mib:>5.0f} MiB" for seconds, mib in each)
        first, last = each[0][0], each[-1][0]
        slope = math.log(last / first) / math.log(counts[-1] / counts[0]) if len(each) > 1 else 0
        print(f"{name:<24}{shown}{slope:>9.2f}")


def scale(count: int) -> dict[str, tuple[float, float]]:
    """{selector: (seconds, added MiB)} on so many rows."""
    made = [group(i) for i in range(count // PER_PROMPT)]
    with tempfile.TemporaryDirectory() as folder:
        # As many held-out problems as GSM8K has, with nothing to be found.
        held_out = Path(folder) / "held_out.txt"
        lines = (group(-i, 1).prompt.question[::-1] for i in range(1, 1320))
        held_out.write_text("\n".join(lines))
        runs: dict[str, Callable[[Any], Any]] = {
            "correct": correct,
            "distinct_equations": distinct_equations,
            "diverse": diverse,
            "diverse, k: 4": lambda g: diverse(g, k=4),
            "diverse, by: edit, k: 4": lambda g: diverse(g, by="edit", k=4),
            "dedupe": dedupe,
            "dedupe, minhash": lambda g: dedupe(g, method="minhash"),
            "top, k: 4": lambda g: top(g, k=4),
            "top_overall": lambda g: top_overall(g, share=0.1),
            "random": lambda g: random_rows(g, rows=count // 10),
            "balance": balance,
            "length, over: all": lambda g: length(g, prefer="band", high=0.9, over="all"),
            "decontaminate": lambda g: decontaminate(g, against=str(held_out)),
        }
        found = {name: _measured(lambda run=run: run(made)) for name, run in runs.items()}
    # What the stage does with them, on all rows at once.
    chain = [correct, diverse, lambda g: top(g, k=4)]
    found["correct, diverse, top"] = _measured(lambda: applied(chain, made))
    return found


def applied(chain: list[Any], groups: list[Group]) -> list[None]:
    select.apply(chain, groups, lambda choice: None)
    return []


def _measured(run: Callable[[], Any]) -> tuple[float, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
    before = _mib("VmRSS")
    began = time.perf_counter()
    deque(run(), maxlen=0)
    return time.perf_counter() - began, max(0.0, _mib("VmHWM") - before)


def _mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+)", status)[0]) / 1024


if __name__ == "__main__":
    main()
