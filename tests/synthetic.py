"""A small finished run on disk, made of real rows and drawn from a fixed seed; no model involved.

For tests of what reads a run. `build` returns the job that the report stage would be given. Some
texts are hostile: they hold markup, scripts and control characters, as model text may.
"""

import json
import random
from pathlib import Path
from typing import Any

from rft import rows
from rft.config import Experiment
from rft.rundir import StageDir, stage_record, to_json
from rft.types import (
    Candidate,
    ChoiceRow,
    Finish,
    ProblemRow,
    Prompt,
    ScoreRow,
    TrainRow,
    Verdict,
    digest,
)

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</pre></details><h1>owned</h1>",
    "{{ 7 * 7 }} {% raw %} \x1b[31mred\u202e",
    "a_word_without_any_space_" * 20,
)
ACCURACY = {
    "base": 0.08, "sft": 0.35, "sft_matched": 0.38, "random": 0.3, "rft_repeats": 0.42, "rft": 0.5
}  # fmt: skip
SAMPLED = ("random", "rft_repeats", "rft")
OVERRIDES: dict[str, dict[str, Any]] = {
    "base": {"train": None},
    "sft": {"sample": {"use": "reference"}},
    "sft_matched": {"sample": {"use": "reference"}, "train": {"match": "arm:rft"}},
    "random": {"select": [{"use": "random", "args": {"rows": "arm:rft"}}]},
    "rft_repeats": {"select": [{"use": "correct"}]},
    "rft": {},
}


def build(
    root: Path,
    arms: tuple[str, ...] = ("base", "sft", "rft"),
    seeds: tuple[int, ...] = (0,),
    problems: int = 60,
    eval_n: int = 1,
    k: tuple[int, ...] = (1,),
    sample_n: int = 8,
    resamples: int = 2000,
    dtypes: tuple[str, ...] = (),
    scorers: tuple[str, ...] = ("answer",),
    margin: float | None = None,
    seen: int = 0,
    held_out: str = "held-out",
) -> dict[str, Any]:
    """Writes the run under `root` and returns the report stage's job. dtypes: number formats in which each
    arm is evaluated beside the main one, each a little worse. scorers: of the evaluation; a second one
    gives each sample it can judge a number, the higher the surer it is right. seen: so many training problems on
    which each arm is evaluated as well. held_out: another word makes other held-out problems."""
    rng = random.Random(7)
    prompts = _begin(root, "prompts", "all")
    train, held = _problems(rng, problems, "train"), _problems(rng, problems, held_out)
    rows.write_part(prompts / "train", train, Prompt)
    rows.write_part(prompts / "eval", held, Prompt)
    _commit(prompts, 0.4, rows=len(train), funnel=_funnel(problems + 2, problems, {"leaked": 2}))
    hardness = {p.id: rng.random() for p in held}
    entries = []
    for seed in seeds:
        pool = _pool(root, f"pool-{seed}", rng, train, sample_n, dict.fromkeys(hardness, 0.5))
        for arm in arms:
            entry: dict[str, Any] = dict.fromkeys(("select", "train"))
            entry |= {"arm": arm, "seed": seed, "prompts": str(prompts), "pools": []}
            entry["scorers"] = list(scorers)
            if arm in SAMPLED:
                entry["pools"] = [{"name": "", "sample": str(pool[0]), "score": str(pool[1])}]
            if arm != "base":
                sampled = pool if arm in SAMPLED else None
                entry["select"] = str(_select(root, f"{arm}-{seed}", rng, train, sampled))
                entry["train"] = str(_train(root, f"{arm}-{seed}", rng))
            level = ACCURACY[arm]
            odds = {i: min(1.0, level * 2 * h) for i, h in hardness.items()}
            valued = len(scorers) > 1
            drawn = _pool(root, f"eval-{arm}-{seed}", rng, held, eval_n, odds, valued)
            entry |= {"eval_sample": str(drawn[0]), "eval_score": str(drawn[1])}
            entry["eval"] = str(_eval(root, f"{arm}-{seed}", drawn))
            evaluations = ("eval_sample", "eval_score", "eval")
            first = {"dtype": "auto", "use": "transformers", **{k: entry[k] for k in evaluations}}
            entry["formats"] = [first] if dtypes else []
            for i, dtype in enumerate(dtypes, 1):
                name = f"{arm}-{seed}-{dtype}"
                worse = {key: odd * 0.9**i for key, odd in odds.items()}
                drawn = _pool(root, f"eval-{name}", rng, held, eval_n, worse)
                engine = {"weights_gb": 0.5 / i, "peak_rss_gb": 1.5 + seed}
                engine["tokens_per_s"] = 100.0 * i + seed
                _more(drawn[0], dtype=dtype, engine=engine)
                paths = (str(drawn[0]), str(drawn[1]), str(_eval(root, name, drawn)))
                other = {"dtype": dtype, "use": "transformers"}
                entry["formats"].append({**other, **dict(zip(evaluations, paths))})
            if seen:
                learnt = 0.2 if arm in SAMPLED else 0.3 if arm != "base" else 0.0
                odds = dict.fromkeys((p.id for p in train), min(1.0, level + learnt))
                drawn = _pool(root, f"seen-{arm}-{seed}", rng, train[:seen], eval_n, odds)
                paths = (
                    str(drawn[0]),
                    str(drawn[1]),
                    str(_eval(root, f"{arm}-{seed}-seen", drawn)),
                )
                entry["seen"] = dict(zip(evaluations, paths))
            entries.append(entry)
    return {
        "folder": str(root / "report"),
        "name": "synthetic <b>run</b>",
        "config": config(arms),
        "level": 0.95,
        "resamples": resamples,
        "margin": margin,
        "baseline": "sft",
        "k": list(k),
        "arms": entries,
    }


def config(arms: tuple[str, ...]) -> dict[str, Any]:
    """The experiment of these arms, resolved."""
    told = {
        "name": "synthetic",
        "model": {"base": "tiny"},
        "prompts": {"use": "jsonl"},
        "chat": {"system": HOSTILE[0]},
        "arms": {arm: OVERRIDES[arm] for arm in arms},
    }
    return Experiment.model_validate(told).model_dump(mode="json")


def _problems(rng: random.Random, count: int, split: str) -> list[Prompt]:
    found = []
    for i in range(count):
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        question = f"[{split} {i}] Ann has {a} shells and finds {b} more. How many are there?"
        if i % 7 == 0:
            question += " " + HOSTILE[i // 7 % len(HOSTILE)]
        text = f"{a} + {b} = {a + b}\nAnswer: {a + b}"
        kind = ("shells", "found | later", HOSTILE[0])[i % 3]
        found.append(Prompt(digest(question), question, str(a + b), text if i % 2 else None, kind))
    return found


def _pool(
    root: Path,
    name: str,
    rng: random.Random,
    prompts: list[Prompt],
    n: int,
    odds: dict[str, float],
    valued: bool = False,
) -> tuple[Path, Path]:
    """Candidates and their scores. odds: how likely a sample is correct, by prompt id. valued: a second
    scorer has given each that is not cut off a number."""
    sample = _begin(root, "sample", name)
    score = _begin(root, "score", name, candidates=name, gold="g", score=[{"use": "answer"}])
    drawn, told = [], []
    for prompt in prompts:
        chance = odds.get(prompt.id, rng.random() * 0.6)
        for i in range(n):
            roll = rng.random()
            right, cut = roll < chance, roll > 0.95
            answer = prompt.answer if right else str(rng.randint(1, 6))
            text = f"Let me add.\nAnswer: {answer}"
            if rng.random() < 0.1:
                text = rng.choice(HOSTILE) + "\n" + text
            key = digest(name, prompt.id, i)
            finish = Finish.LENGTH if cut and not right else Finish.STOP
            ids = tuple(range(20 + i))
            drawn.append(Candidate(key, prompt.id, i, text, (1, 2), ids, finish, -3.5))
            if finish is Finish.LENGTH:
                row = ScoreRow(key, prompt.id, Verdict.UNKNOWN, "truncated", None, None, "[]")
            else:
                verdict = Verdict.CORRECT if right else Verdict.WRONG
                value = 1 - roll if valued else None
                each = json.dumps(
                    [[str(verdict), None, answer, None], [str(verdict), None, None, value]]
                )
                row = ScoreRow(
                    key, prompt.id, verdict, None, answer, value, each if valued else "[]"
                )
            told.append(row)
    rows.write_part(sample, drawn, Candidate)
    rows.write_part(score, told, ScoreRow)
    total = len(drawn)
    tokens = sum(len(candidate.token_ids) for candidate in drawn)
    _commit(sample, 61.2, rows=total, tokens=tokens, funnel=_funnel(total, total, {}))
    verdicts = {str(v): sum(r.verdict is v for r in told) for v in Verdict}
    _commit(score, 2.5, rows=total, verdicts=verdicts, funnel=_funnel(total, total, {}))
    return sample, score


def _select(
    root: Path, name: str, rng: random.Random, train: list[Prompt], pool: tuple[Path, Path] | None
) -> Path:
    folder = _begin(root, "select", name)
    choices, kept, seen = [], [], set()
    for prompt in train:
        if prompt.solution:
            key = digest("reference", prompt.id)
            choices.append(ChoiceRow(key, prompt.id, None))
            kept.append(TrainRow(key, prompt.id, (1, 2), (3, 4), True))
    for row in rows.read(pool[1], ScoreRow) if pool else ():
        reason = None if row.verdict is Verdict.CORRECT else (row.reason or "wrong answer")
        if reason is None and (row.prompt_id, rng.randint(0, 2)) in seen:
            reason = "same equations"
        seen.add((row.prompt_id, rng.randint(0, 2)))
        choices.append(ChoiceRow(row.id, row.prompt_id, reason))
        if reason is None:
            kept.append(TrainRow(row.id, row.prompt_id, (1, 2), (3, 4), False))
    rows.write_part(folder / "choices", choices, ChoiceRow)
    rows.write_part(folder / "train", kept, TrainRow)
    reasons = [c.reason for c in choices if c.reason]
    dropped = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    sampled = sum(not r.is_reference for r in kept)
    funnel = _funnel(len(choices), len(kept), dropped)
    _commit(folder, 0.8, rows=len(kept), sampled=sampled, funnel=funnel)
    return folder


def _train(root: Path, name: str, rng: random.Random) -> Path:
    folder = _begin(root, "train", name)
    steps = 120 if name.startswith("rft") else 60
    lines = [
        json.dumps({"step": i + 1, "loss": 2.2 * 0.97**i + 0.3 + rng.random() * 0.2, "lr": 1e-3})
        for i in range(steps)
    ]
    rows.write_bytes(folder / "metrics.jsonl", ("\n".join(lines) + "\n").encode())
    _commit(
        folder, 300.0 + steps, steps=steps, tokens=1000 * steps, funnel=_funnel(steps, steps, {})
    )
    return folder


def _eval(root: Path, name: str, drawn: tuple[Path, Path]) -> Path:
    folder = _begin(root, "eval", name)
    told = {r.id: r for r in rows.read(drawn[1], ScoreRow)}
    groups: dict[str, list[Candidate]] = {}
    for candidate in rows.read(drawn[0], Candidate):
        groups.setdefault(candidate.prompt_id, []).append(candidate)
    found = []
    # The order in the file must not matter, so it differs between arms.
    for prompt_id in sorted(groups, key=lambda i: digest(name, i)):
        got = groups[prompt_id]
        hits = tuple(told[c.id].verdict is Verdict.CORRECT for c in got)
        found.append(
            ProblemRow(
                prompt_id,
                len(got),
                sum(hits),
                sum(told[c.id].verdict is Verdict.UNKNOWN for c in got),
                sum(c.finish is Finish.LENGTH for c in got),
                tuple(told[c.id].extracted or "" for c in got),
                hits,
                sum(len(c.token_ids) for c in got),
            )
        )
    rows.write_part(folder, found, ProblemRow)
    _commit(folder, 0.3, rows=len(found), funnel=_funnel(len(found), len(found), {}))
    return folder


def _funnel(came: int, left: int, dropped: dict[str, int]) -> dict[str, Any]:
    return {"in": came, "out": left, "dropped": dropped}


def _begin(root: Path, kind: str, name: str, **inputs: Any) -> Path:
    """A stage's folder, named by its key."""
    inputs = {"kind": kind, "name": name, **inputs}
    key = stage_record(kind, inputs)["key"]
    stage = StageDir(root / "stages" / f"{kind}-{key[:12]}")
    stage.path.mkdir(parents=True, exist_ok=True)
    stage.begin(kind, inputs)
    return stage.path


def _commit(folder: Path, seconds: float, **record: Any) -> None:
    StageDir(folder).commit(seconds, **record)


def _more(folder: Path, **record: Any) -> None:
    """More in a stage's manifest."""
    manifest = {**(StageDir(folder).manifest() or {}), **record}
    del manifest["digest"]
    rows.write_bytes(folder / "manifest.json", to_json({**manifest, "digest": digest(manifest)}))
