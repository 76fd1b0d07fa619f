"""`rft check`: everything that can be known to be wrong before a model is loaded.

Settings, data, leakage and component arguments are checked by building the plan. Then the scorers
judge the data set's own solutions: if they do not come out correct, the filter would throw away
good samples too, and the run would be wasted.
"""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from rft import components, harness
from rft.combine import UNJUDGED
from rft.config import Arm, Experiment
from rft.nodes import Node, refuse_formats
from rft.plan import Plan
from rft.scoring import score_all
from rft.types import Candidate, Finish, Prompt, ScoreRow, Verdict, digest

SHOWN = 5
"""Gold solutions shown that do not come out correct."""


def check(experiment: Experiment, path: str) -> int:
    """Prints the plan and what the scorers say of the gold solutions; 0 if all is well, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    plan = Plan(experiment)
    refuse_formats(plan.nodes())
    harness.refuse(plan.nodes())
    for arm in plan.arms.values():
        for split in ("train", "eval"):
            setting, scorers, _ = arm.scorers(split)
            for i, scorer in enumerate(scorers):
                components.make("scorers", scorer, f"{setting}.{i}")
    console.print(f"{path}: settings, data and arguments are in order")
    fine = True
    judged: set[str] = set()
    for name, arm in plan.arms.items():
        what = [arm.prompts.model_dump(mode="json"), arm.chat.solution]
        if digest(what) not in judged:
            judged.add(digest(what))
            _data(console, plan, name, arm)
        for splits in [("train", "eval")] if arm.eval.score is None else [("train",), ("eval",)]:
            _, scorers, rule = arm.scorers(splits[0])
            tried = [*what, splits, [s.model_dump() for s in scorers], rule.model_dump()]
            if digest(tried) not in judged:
                judged.add(digest(tried))
                fine &= _gold(console, plan, arm, splits)
    _print_plan(console, plan)
    return 0 if fine else 1


def _data(console: Console, plan: Plan, name: str, arm: Arm) -> None:
    got = plan.identity.prompt_set(arm)
    answers = sum(p.answer is not None for p in got.train)
    solutions = sum(p.solution is not None for p in got.train)
    lost, eval_lost = (
        "".join(f", {n:,} dropped: {reason}" for reason, n in dropped.items())
        for dropped in (got.dropped, got.eval_dropped)
    )
    console.print(
        f"data (arm {name}): {len(got.train):,} training problems ({answers:,} with an answer, {solutions:,} "
        f"with a solution{lost}), {len(got.eval):,} held out{eval_lost}"
    )


def _gold(console: Console, plan: Plan, arm: Arm, splits: tuple[str, ...]) -> bool:
    """What the scorers of these splits say of their gold solutions; whether all is well."""
    got = plan.identity.prompt_set(arm)
    prompts = [p for split in splits for p in (got.train if split == "train" else got.eval)]
    where = "" if len(splits) > 1 else f" ({splits[0]})"
    _, given, rule = arm.scorers(splits[0])
    plain = [s for s in given if not components.is_stream(s.use)]
    models = ", ".join(s.use for s in given if s not in plain)
    if models:
        console.print(f"  {models}: not tried here, since a model or whole prompts are needed")
    if not plain:
        return True

    def pairs() -> Iterator[tuple[Prompt, Candidate]]:
        for prompt in prompts:
            text = prompt.solution or prompt.answer
            if text is not None and (prompt.answer or prompt.tests):
                solution = arm.chat.solution.replace("{solution}", text)
                made = Candidate(prompt.id, prompt.id, 0, solution, (), (), Finish.REFERENCE)
                yield prompt, made

    count = 0
    bad: list[tuple[Prompt, ScoreRow]] = []
    if rule.weights:
        weights = [w for s, w in zip(given, rule.weights, strict=True) if s in plain]
        rule = rule.model_copy(update={"weights": weights})
    for (prompt, _), row in score_all(pairs(), [s.model_dump() for s in plain], rule):
        # Where there is no solution, only an answer that the scorer cannot read tells anything.
        count += prompt.solution is not None
        fine = row.verdict is Verdict.CORRECT or row.reason == UNJUDGED
        if _bad_gold(row) or (prompt.solution is not None and not fine):
            bad.append((prompt, row))
    scorers = " and ".join(s.use for s in plain)
    if not count and not bad:
        console.print(f"  no solution to try the scorer {scorers} on{where}")
        return True
    wrong = sum(prompt.solution is not None for prompt, _ in bad)
    console.print(f"  {scorers}: {count - wrong:,} of {count:,} gold solutions are correct{where}")
    if unread := sum(_bad_gold(row) for _, row in bad):
        console.print(f"  {unread:,} gold answers or tests cannot be read: nothing would be right")
    for prompt, row in sorted(bad, key=lambda pair: pair[0].id)[:SHOWN]:
        console.print(
            f"  {row.verdict}{f' ({row.reason})' if row.reason else ''}: read {row.extracted!r}, "
            f"gold {prompt.answer!r}\n    question: {prompt.question[:200]}\n"
            f"    solution: {(prompt.solution or '')[-200:]!r}",
            markup=False,
        )
    if any(row.reason == "no_gold" and prompt.tests for prompt, row in bad):
        console.print("  These problems have tests: the scorer code runs them.")
    if bad and all(prompt.tests and "IndentationError" in (r.extracted or "") for prompt, r in bad):
        console.print("  If solutions are bodies of functions, name the function's column with")
        console.print("  prompts.args.entry_point, so that the question's code goes in front.")
    if bad:
        console.print("  Fix the data or the scorer's arguments: it would drop good samples too.")
    return not bad


def _bad_gold(row: ScoreRow) -> bool:
    """Whether a scorer could not read the gold answer, or the tests: `bad_gold`, `bad_tests`."""
    return (row.reason or "").startswith("bad_")


def _print_plan(console: Console, plan: Plan) -> None:
    nodes = sorted(plan.nodes(), key=lambda node: node.late)
    table = Table(title=f"plan: {plan.folder}", title_justify="left")
    for heading in ("stage", "for", "work", "state"):
        table.add_column(heading)
    for node in nodes:
        users = [f"{r.arm}/{r.seed}" for r in plan.rows if node.key in _keys(r.links.values())]
        who = ", ".join(users[:4]) + (f" +{len(users) - 4}" if len(users) > 4 else "")
        table.add_row(node.kind, who, _work(plan, node), "done" if node.done else "to do")
    console.print(table)
    shared = sum(len(r.links) for r in plan.rows) - len(nodes)
    console.print(
        f"{len(nodes)} stages, {sum(node.done for node in nodes)} of them done; {shared} more would "
        "run if arms and seeds did not share them"
    )


def _keys(nodes: Iterable[Node]) -> set[str]:
    return {node.key for node in nodes}


def _work(plan: Plan, node: Node) -> str:
    if node.kind != "sample":
        return ""
    job = node.job
    for row in plan.rows:
        if any(n is node for n in row.links.values()):
            prompts = plan.identity.problems(plan.arms[row.arm.partition("@")[0]], job["split"])
            if job["use"] == "reference":
                return f"{sum(p.solution is not None for p in prompts):,} solutions"
            decoding = job["decoding"]
            count = len(prompts) * decoding["n"]
            held_out = {"train": "", "eval": "held-out ", "seen": "training-problem "}[job["split"]]
            fewer = job["allocate"]["use"] != "uniform" or job["unless_solved_by"]
            return f"{'at most ' if fewer else ''}{count:,} {held_out}samples, at most {count * decoding['max_tokens']:,} tokens"
    return ""
