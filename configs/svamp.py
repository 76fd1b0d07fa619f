"""SVAMP (Patel et al. 2021, arXiv:2103.07191) as prompts: many answers, few worked solutions.

    prompts: {use: ./svamp.py:svamp, args: {path: data/SVAMP.json, solutions: 100}}

SVAMP gives an answer and an equation, no worded solution. The textbook split is MAWPS for training
and all 1,000 problems for testing; here a part is held out and the rest trained on, since what is
compared is arms on one split, not models on a leaderboard. Choices:

- A solution is written from the equation, one step a line, in GSM8K's form (`#### answer` last).
- The split follows a hash of the question, so it doesn't change with the order of the file.
- Problems with the same question (but for case, spacing and punctuation) count once. If their
  answers differ, nobody can say which is right, so all of them are dropped. Public SVAMP has neither.
- An equation that doesn't give the answer, or has no step, makes no solution; the problem keeps its
  answer. (In public SVAMP: chal-680, whose equation gives 5 and whose answer is 1, and chal-555.)
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

HOW_TO_GET = (
    "Take the file SVAMP.json from https://github.com/arkilpatel/SVAMP, or save both splits of "
    "the hub's data set ChilleD/SVAMP as JSON lines into one file, and give its place as "
    "prompts.args.path."
)
OPERATORS: dict[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


def svamp(
    *,
    path: str,
    solutions: int = 100,
    answers: int = 600,
    held_out: int | None = None,
    fold: int | None = None,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Split SVAMP into `train` (solutions + answers problems) and `eval` (held_out problems).

    Args:
        path: SVAMP.json, or JSON lines with the same fields.
        solutions: how many train problems keep their worked solution. A larger number keeps these
            and adds more; the held-out problems stay the same.
        answers: how many more train problems have an answer only.
        held_out: how many problems are kept for the evaluation; 300 where there are no folds.
        fold: hold out this one of `folds` equal parts instead, from 0, so that the folds together
            evaluate every problem once.
        folds: how many parts there are.
        seed: another seed is another split.

    Returns:
        For each split its rows: question, answer, solution (None where there is none to see) and
        kind (SVAMP's Type).

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file isn't SVAMP, or has fewer problems than were asked for.
    """
    if fold is not None and held_out is not None:
        raise ValueError("prompts.args: fold holds a part out, so leave held_out out")
    if fold is not None and not 0 <= fold < folds:
        raise ValueError(f"prompts.args.fold is {fold}; of {folds} folds it is 0 to {folds - 1}")
    for name, count in (
        ("solutions", solutions),
        ("answers", answers),
        ("held_out", held_out or 0),
    ):
        if count < 0:
            raise ValueError(f"prompts.args.{name} is {count}; it must be 0 or more")
    problems = distinct(read_problems(Path(path).expanduser()))
    start, held_out = 0, 300 if held_out is None else held_out
    if fold is not None:
        start = fold * len(problems) // folds
        held_out = (fold + 1) * len(problems) // folds - start
    wanted = solutions + answers + held_out
    if wanted > len(problems):
        raise ValueError(
            f"solutions + answers + held_out is {wanted}, but {path} has {len(problems)} problems; "
            "lower one of them in prompts.args"
        )
    problems.sort(key=lambda row: split_key(row["question"], seed))
    # A fold's training problems follow it, round the end, so that each fold has other solutions.
    problems = problems[start:] + problems[:start]
    train = problems[held_out:wanted]
    left = solutions
    for row in train:
        if row["solution"] is not None and left > 0:
            left -= 1
        else:
            row["solution"] = None
    if left:
        log.warning(
            "only %d train problems have a solution, not %d",
            solutions - left,
            solutions,
        )
    return {"train": train, "eval": problems[:held_out]}


def read_problems(path: Path) -> list[dict[str, Any]]:
    """All rows of the file, with every solution that its equation yields."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no SVAMP file at {path}. {HOW_TO_GET}")
    text = path.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            raw = json.loads(text)
        else:
            raw = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [problem(row) for row in raw]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not SVAMP: {error!r}. {HOW_TO_GET}") from error


def problem(raw: dict[str, Any]) -> dict[str, Any]:
    answer = Fraction(str(raw["Answer"]))
    return {
        "question": join(raw["Body"], raw["Question"]),
        "answer": short(answer),
        "solution": worked_solution(raw["Equation"], answer),
        "kind": raw["Type"].replace("Divison", "Division"),  # one row is misspelt
    }


def join(body: str, question: str) -> str:
    """One text. SVAMP cut some sentences at a comma (`If ... on each pack` | `How much ...`)."""
    body, question = body.strip(), question.strip()
    if not body:
        return question
    if body[-1] in ".?!":
        return f"{body} {question}"
    # The other half of a cut sentence: its first word, How or What, was raised by the cut.
    return f"{body.rstrip(',;')}, {question[:1].lower()}{question[1:]}"


def distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each question; none for a question with several answers."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(normalised(row["question"]), []).append(row)
    kept, repeated, disputed = [], 0, 0
    for group in groups.values():
        if len({row["answer"] for row in group}) > 1:
            disputed += len(group)
            continue
        repeated += len(group) - 1
        # By content, not by place, so that the order of the file doesn't matter.
        kept.append(
            min(
                group,
                key=lambda r: (r["solution"] is None, sorted(map(str, r.values()))),
            )
        )
    if repeated or disputed:
        log.warning(
            "SVAMP: dropped %d repeated problems and %d whose answers differ",
            repeated,
            disputed,
        )
    return kept


def normalised(question: str) -> str:
    """Words and numbers alone, so that spacing, case and punctuation make no new question.

    The split follows from it, so it is written out here: a better rule in rft's leakage gate must
    not move problems between training and held-out.
    """
    return " ".join(re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", question.lower()))


def split_key(question: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{normalised(question)}".encode()).hexdigest()


def worked_solution(equation: str, answer: Fraction) -> str | None:
    """The equation as steps, innermost and leftmost first, or None if it doesn't give the answer.

    >>> print(worked_solution("( ( 8.0 - 3.0 ) * 2.0 )", Fraction(10)))
    8 - 3 = 5
    5 * 2 = 10
    #### 10
    """
    steps: list[str] = []
    try:
        value = evaluate(ast.parse(equation.strip(), mode="eval").body, steps)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None
    # The answers in the data are rounded where the division doesn't end, so compare as written.
    if not steps or short(value) != short(answer):
        return None
    return "\n".join([*steps, f"#### {short(answer)}"])


def evaluate(node: ast.expr, steps: list[str]) -> Fraction:
    """The exact value of a tree of numbers and + - * /, noting each step. Never Python's eval."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        sign, apply = OPERATORS[type(node.op)]
        left, right = evaluate(node.left, steps), evaluate(node.right, steps)
        value = apply(left, right)
        steps.append(f"{short(left)} {sign} {short(right)} = {short(value)}")
        return value
    raise ValueError(f"not a number or one of + - * /: {ast.dump(node)}")


def short(value: Fraction) -> str:
    """Exact and without trailing zeros; two places, as in GSM8K, if the decimals don't end.

    Only the print is rounded: the next step goes on with the exact value (60 * (55 / 15) prints
    3.67 and gives 220).
    """
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        value = round(value, 2)
    places = 0
    while value.denominator != 1 and (value * 10**places).denominator != 1:
        places += 1
    digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return f"-{text}" if value < 0 else text
