"""How fast is testing of code? HumanEval's solutions and a mutant of each, against fresh processes.

    python scripts/bench/testing_code.py      # about a minute

Both sides run the same 328 candidates on two cores, and must give the same verdicts: the scorer
`code` in two worker processes, as the score stage has it, and `python -I file` for each candidate, two
at a time. A fresh process is not even a sandbox: `os._exit(0)` passes its tests. A mutant is the
solution with one operator, comparison, constant or result changed, so that its tests fail in a fresh
process. The two sides take turns, and times are the least of the turns: other work on the machine only
adds. Starting (workers, sandboxes) is timed apart.

Data: HumanEval.jsonl.gz of openai/human-eval (--data).
"""

import argparse
import ast
import copy
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rft import workers
from rft.scorers.code import code
from rft.types import Candidate, Finish, Prompt, Verdict, digest

DATA = Path(os.environ.get("RFT_DATA") or Path(__file__).parents[2] / "data")
WORKERS = 2
TIMEOUT_S = 5.0

Pair = tuple[Prompt, Candidate]


def problems(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def prompt_of(problem: dict[str, str]) -> Prompt:
    tests = f"{problem['test']}\n\ncheck({problem['entry_point']})\n"
    return Prompt(digest(problem["prompt"]), problem["prompt"], tests=tests)


def candidate_of(prompt: Prompt, text: str) -> Candidate:
    return Candidate(digest(prompt.id, text), prompt.id, 0, text, (), (), Finish.STOP)


# Mutants -------------------------------------------------------------------------------------------

_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutants(problem: dict[str, str], seed: int = 0) -> Iterator[str]:
    """The solution with one thing changed, in an order by chance; each as a whole function."""
    tree = ast.parse(problem["prompt"] + problem["canonical_solution"])
    name = problem["entry_point"]
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    function.body = function.body[1:]  # without the docstring, which is no code
    count = sum(1 for _ in _changes(function))
    for number in random.Random(seed).sample(range(count), count):
        changed = copy.deepcopy(function)
        for i, change in enumerate(_changes(changed)):
            if i == number:
                change()
                break
        yield ast.unparse(ast.fix_missing_locations(changed))


def _changes(function: ast.FunctionDef) -> Iterator[Callable[[], None]]:
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in _SWAPS:
                yield lambda n=node: setattr(n, "op", _SWAPS[type(n.op)]())
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
                yield lambda n=node: n.ops.__setitem__(0, _SWAPS[type(n.ops[0])]())
            elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int):
                flipped = not node.value if isinstance(node.value, bool) else node.value + 1
                yield lambda n=node, value=flipped: setattr(n, "value", value)
            elif isinstance(node, ast.Return) and node.value is not None:
                yield lambda n=node: setattr(n, "value", ast.Constant(None))


def failing_mutant(problem: dict[str, str]) -> str:
    """The first mutant that a fresh process says fails."""
    prompt = prompt_of(problem)
    return next(m for m in mutants(problem) if fresh((prompt, candidate_of(prompt, m))) is False)


# The two sides -------------------------------------------------------------------------------------


def fresh(pair: Pair) -> bool | None:
    """Whether the tests pass in a new process; None if they take too long."""
    prompt, candidate = pair
    assert prompt.tests is not None
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(f"{prompt.question}\n{candidate.text}\n{prompt.tests}")
        file.flush()
        try:
            done = subprocess.run(
                [sys.executable, "-I", file.name], capture_output=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return None
    return done.returncode == 0


def make() -> Callable[[list[Pair], Callable[[int], None]], list[bool | None]]:
    """In a worker process: the scorer, as a function of a chunk of pairs."""
    scorer = code(timeout_s=TIMEOUT_S)
    verdicts = {Verdict.CORRECT: True, Verdict.WRONG: False, Verdict.UNKNOWN: None}

    def judge(chunk: list[Pair], begin: Callable[[int], None]) -> list[bool | None]:
        said = []
        for i, pair in enumerate(chunk):
            begin(i)
            said.append(verdicts[scorer(*pair).verdict])
        return said

    return judge


class Scorer:
    """The scorer's workers, kept between turns as a stage keeps them over all its candidates."""

    def __init__(self) -> None:
        self.waiting: list[list[Pair]] = []
        self.open = True
        self.results = workers.run(make, (), self._chunks(), workers=WORKERS, timeout_s=30)

    def _chunks(self) -> Iterator[Any]:
        while self.open:
            yield self.waiting.pop(0) if self.waiting else None

    def __call__(self, pairs: list[Pair]) -> dict[str, bool | None]:
        self.waiting = [pairs[i : i + 8] for i in range(0, len(pairs), 8)]
        said: dict[str, bool | None] = {}
        for chunk, results in self.results:
            said |= {c.id: r for (_, c), r in zip(chunk, results, strict=True)}
            if len(said) == len(pairs):
                return said
        raise AssertionError("the workers ended")

    def close(self) -> None:
        self.results.close()  # type: ignore[attr-defined]


def fresh_all(pairs: list[Pair]) -> dict[str, bool | None]:
    with ThreadPoolExecutor(WORKERS) as pool:
        said = pool.map(fresh, pairs)
        return {c.id: s for (_, c), s in zip(pairs, said, strict=True)}


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    got = what()
    return time.perf_counter() - begun, got


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "humaneval" / "HumanEval.jsonl.gz")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    given = problems(args.data)
    with ThreadPoolExecutor(WORKERS) as pool:
        changed = list(pool.map(failing_mutant, given))
    pairs = []
    for problem, mutant in zip(given, changed, strict=True):
        prompt = prompt_of(problem)
        texts = (problem["canonical_solution"], mutant)
        pairs += [(prompt, candidate_of(prompt, text)) for text in texts]
    scorer = Scorer()
    start, _ = timed(lambda: scorer(pairs[: 2 * 8 * WORKERS]))
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(args.turns):
        seconds, said = timed(lambda: scorer(pairs))
        ours.append(seconds)
        seconds, expected = timed(lambda: fresh_all(pairs))
        theirs.append(seconds)
        # None is a time-out: on a machine that stands still for seconds, run it again.
        assert said == expected, {k: (v, expected[k]) for k, v in said.items() if v != expected[k]}
    scorer.close()
    correct = sum(v is True for v in said.values())
    print(
        f"{len(pairs)} candidates on {WORKERS} cores: {correct} correct, the others wrong, by both"
    )
    print(f"start of workers and sandboxes, with {16 * WORKERS} candidates: {start:.2f} s")
    for name, seconds in (("fresh processes", min(theirs)), ("scorer code", min(ours))):
        print(f"{name:16} {seconds:6.2f} s  {len(pairs) / seconds:6.0f} candidates/s")
    print(f"ratio {min(theirs) / min(ours):.1f}")


if __name__ == "__main__":
    main()
