"""What else could explain a difference: each looked for in the rows and settings, with its figure.

A confound is `flagged`, `clear`, or `unknown` where the run does not tell. None of them stops the
report: what a reader makes of a difference is theirs to say, once they know.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rft import paired, rows
from rft.overlap import WORDS, NGrams
from rft.report.load import ArmRun, pieces
from rft.report.settings import Settings, asked, differing
from rft.report.slices import mean_P
from rft.rundir import StageDir
from rft.types import Prompt, TrainRow

MOST_TEXTS = 40_000
"""Questions that are looked through for overlaps; with more of them nobody waits for a report."""
MOST_RUNS = 500
"""Run folders that are looked at for evaluations on the same problems."""
STEP_TOLERANCE = 0.02
"""A matched control may be trained this much more or less, as a share."""

Found = dict[str, Any]


def find(
    settings: dict[str, Settings],
    runs: list[ArmRun],
    comparison: dict[str, Any],
) -> list[Found]:
    """Every confound that was looked for: its name, state, a sentence, its figures, and what to do."""
    pairs = [(c["arm"], c["baseline"]) for c in comparison["comparisons"] if c["seed"] is None]
    level = comparison["level"]
    return [
        _problems(settings, runs),
        _decoding(settings, comparison),
        _formats(settings, runs),
        _leaked(settings, runs, comparison),
        _rates("truncation", "are cut off", _cut, runs, pairs, level),
        _rates("unknown", "cannot be judged", _unjudged, runs, pairs, level),
        _tuned(settings, runs),
        *_matched(comparison),
    ]


def _found(name: str, state: str, text: str, fix: str = "", **figures: Any) -> Found:
    fix = fix if state != "clear" else ""
    return {"name": name, "state": state, "text": text, "fix": fix, "figures": figures}


def _problems(settings: dict[str, Settings], runs: list[ArmRun]) -> Found:
    held = f"All arms answered the same {len(runs[0].problems):,} held-out problems"
    untold = [
        arm
        for arm in dict.fromkeys(run.arm for run in runs)
        if arm.partition("@")[0] not in settings
    ]
    if not settings:
        return _found("problems", "unknown", f"{held}; what they were trained on nobody told.")
    first = next(iter(settings))
    other = {
        name: list(paths)
        for name, arm in settings.items()
        if (paths := differing(arm["prompts"], settings[first]["prompts"]))
    }
    if not other and untold:
        text = f"{held}; what {', '.join(untold)} learnt from nobody told."
        return _found("problems", "unknown", text, "Compare runs whose settings are there.")
    if not other and (sets := _other_data(runs)):
        return _found(
            "problems",
            "flagged",
            f"{held}, and have the same settings of `prompts`, but these gave {', '.join(sets)} other training "
            "problems: the data has changed.",
            "Run them again on the same data.",
            arms={name: [] for name in sets},
        )
    if not other:
        return _found("problems", "clear", f"{held}, and were trained on the same problems.")
    said = "; ".join(f"{name} ({', '.join(paths)})" for name, paths in other.items())
    return _found(
        "problems",
        "flagged",
        f"{held}, but not all had the same training problems. Different from those of {first}: {said}.",
        "Read their differences as those of data and method together.",
        arms=other,
    )


def _other_data(runs: list[ArmRun]) -> list[str]:
    """Arms whose prompts are other rows than those of the first arm, by the keys of their stages."""
    found: dict[str, set[str]] = {}
    for run in pieces(runs):
        if "prompts" in run.folders:
            found.setdefault(run.arm, set()).add(run.folders["prompts"].name)
    first = next(iter(found.values()), set())
    return [arm for arm, sets in found.items() if sets != first]


def _decoding(settings: dict[str, Settings], comparison: dict[str, Any]) -> Found:
    baseline = comparison["headline"]["baseline"]
    if len(settings) < len({name.partition("@")[0] for name in comparison["pooled"]}):
        return _found(
            "decoding",
            "unknown",
            "How some arms' answers were drawn and judged is not known, so nobody can say that all "
            "were asked alike.",
            "Evaluate all arms in one experiment, with one `eval` section.",
        )
    first = baseline if baseline in settings else next(iter(settings))
    other = {
        name: paths
        for name, arm in settings.items()
        if (paths := differing(asked(arm), asked(settings[first])))
    }
    if not other:
        return _found("decoding", "clear", "All arms were asked, decoded and scored alike.")
    said = "; ".join(
        f"{name} ({', '.join(f'{path} {_short(a)} instead of {_short(b)}' for path, (a, b) in paths.items())})"
        for name, paths in other.items()
    )
    return _found(
        "decoding",
        "flagged",
        f"Not all arms were evaluated alike. Different from {first}: {said}.",
        "Give all arms the same `eval`, `chat` and `score`, or add an arm that has the other ones and "
        "nothing else.",
        arms={name: list(paths) for name, paths in other.items()},
    )


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _formats(settings: dict[str, Settings], runs: list[ArmRun]) -> Found:
    used = {
        run.arm: " in ".join(
            filter(None, [_sampler(settings.get(run.arm.partition("@")[0])), run.dtype])
        )
        for run in pieces(runs)
    }
    # A format is told by the manifest of an evaluation that was made here.
    if untold := [run.arm for run in pieces(runs) if "eval_sample" not in run.folders]:
        text = f"What {', '.join(dict.fromkeys(untold))} answered through is not known."
        return _found("formats", "unknown", text, "Evaluate all arms in one experiment.")
    if len(set(used.values())) == 1:
        return _found("formats", "clear", f"All arms answered through {next(iter(used.values()))}.")
    said = "; ".join(f"{name}: {how}" for name, how in used.items())
    return _found(
        "formats",
        "flagged",
        f"Arms answered through different samplers or number formats: {said}.",
        "Set one eval.use and eval.engine.dtype; `eval.inference.formats` tells what a format costs.",
        arms=used,
    )


def _sampler(arm: Settings | None) -> str:
    return arm["eval"]["use"] if arm else ""


def _leaked(settings: dict[str, Settings], runs: list[ArmRun], comparison: dict[str, Any]) -> Found:
    """Whole questions are kept apart by the gate (`prompts.leakage`); here n words in a row."""
    sets = _sets(runs)
    if not sets:
        text = "The questions are not at hand, so nobody can say whether training has seen them."
        return _found(
            "contamination", "unknown", text, "Compare runs whose prompts are still there."
        )
    gate = 0
    held: set[str] = set()
    met: set[str] = set()
    questions = 0
    for prompts, selects in sets.items():
        told = StageDir(prompts).manifest() or {}
        gate += told.get("funnel", {}).get("dropped", {}).get("held_out", 0)
        ids = {
            row.prompt_id
            for select in selects
            for row in rows.read(select / "train", TrainRow, ["id", "prompt_id"])
        }
        mine = rows.ids(prompts / "eval")
        held |= set(mine)
        questions += len(ids) + len(mine)
        if questions > MOST_TEXTS:
            break
        grams = NGrams()
        for one in rows.read(prompts / "train", Prompt, ["id", "question"]):
            if one.id in ids:
                grams.add(one.question, one.id)
        met |= {
            one.id
            for one in rows.read(prompts / "eval", Prompt, ["id", "question"])
            if grams.find(one.question)
        }
    gated = (
        f"{gate:,} training questions that are also held out were left out beforehand. "
        if gate
        else "No training question is held out as well. "
    )
    if questions > MOST_TEXTS:
        return _found(
            "contamination",
            "unknown",
            f"{gated}Shared parts of questions were not looked for: there are too many.",
            "Put the selector `decontaminate` first in `select`.",
        )
    figures: dict[str, Any] = {"held_out": len(held), "overlapping": len(met), "words": WORDS}
    if not met and (untold := _untold(settings, runs)):
        text = (
            f"{gated}None shares {WORDS} words in a row with one that is known to be trained on; of "
            f"{', '.join(untold)} that is not known."
        )
        fix = "Compare runs whose prompts and selected rows are still there."
        return _found("contamination", "unknown", text, fix, **figures)
    if not met:
        text = f"{gated}None shares {WORDS} words in a row with a question that was trained on."
        return _found("contamination", "clear", text, **figures)
    text = (
        f"{gated}But {len(met):,} of {len(held):,} held-out questions share {WORDS} words in a row with "
        "one that was trained on."
    )
    arm, baseline = comparison["headline"]["arm"], comparison["headline"]["baseline"]
    rest = _apart(runs, arm, baseline, met, comparison["level"]) if arm and baseline else None
    if rest:
        figures["without"] = rest
        text += (
            f" On the {rest['problems']:,} others {arm} minus {baseline} is "
            f"{100 * rest['difference']:+.1f} points ({100 * rest['low']:+.1f} to {100 * rest['high']:+.1f})."
        )
    return _found(
        "contamination",
        "flagged",
        text,
        "Expected where problems are made from templates; else put the selector `decontaminate` first in "
        "`select`.",
        **figures,
    )


def _untold(settings: dict[str, Settings], runs: list[ArmRun]) -> list[str]:
    """Arms of which nobody can say what they were trained on."""

    def is_told(run: ArmRun) -> bool:
        own = settings.get(run.arm.partition("@")[0])
        return "select" in run.folders or (own is not None and not own["train"])

    return list(dict.fromkeys(run.arm for run in pieces(runs) if not is_told(run)))


def _sets(runs: list[ArmRun]) -> dict[Path, list[Path]]:
    """Of each set of problems the select stages that chose from it. Folds are sets of their own: what
    one holds out another trains on."""
    found: dict[Path, list[Path]] = {}
    for run in pieces(runs):
        if "prompts" in run.folders:
            selects = found.setdefault(run.folders["prompts"], [])
            if "select" in run.folders and run.folders["select"] not in selects:
                selects.append(run.folders["select"])
    return found


def _apart(
    runs: list[ArmRun], arm: str, baseline: str, without: set[str], level: float
) -> dict[str, Any] | None:
    """The headline difference on the problems that are not among `without`."""
    kept_P = np.array([p.prompt_id not in without for p in runs[0].problems])
    if not kept_P.any():
        return None
    differences_P = mean_P(runs, arm) - mean_P(runs, baseline)
    got = paired.difference_interval(differences_P[kept_P], level)
    told = {"difference": got.value, "low": got.low, "high": got.high}
    return {"problems": int(kept_P.sum()), **told}


Count = Callable[[ArmRun], NDArray[np.int64]]
"""Of each problem, how many of its samples."""


def _cut(run: ArmRun) -> NDArray[np.int64]:
    return run.columns["truncated"].to_numpy()


def _unjudged(run: ArmRun) -> NDArray[np.int64]:
    # Of what is cut off no scorer is asked: that is told apart.
    return np.maximum(run.columns["unknown"].to_numpy() - run.columns["truncated"].to_numpy(), 0)


def _rates(
    name: str,
    what: str,
    count: Count,
    runs: list[ArmRun],
    pairs: Sequence[tuple[str, str]],
    level: float,
) -> Found:
    """Whether the share of such answers differs between the arms that are compared: sign flips of these
    shares by problem, as for accuracies, with Holm's adjustment."""
    if not all(run.counted for run in runs):
        text = f"How many answers {what} is not known of all arms."
        return _found(name, "unknown", text, "Evaluate them all here, or look into their logs.")
    counted = {(run.arm, run.seed): (count(run), run.n_P) for run in runs}
    every = {
        arm: float(np.mean([c / n for (one, _), (c, n) in counted.items() if one == arm]))
        for arm in dict.fromkeys(run.arm for run in runs)
    }
    if not pairs:
        most = max(every.values())
        return _found(name, "clear", f"{100 * most:.1f}% of the answers {what}.", rates=every)
    tested = []
    for arm, other in pairs:
        seeds = [run.seed for run in runs if run.arm == arm and (other, run.seed) in counted]
        mine, theirs = ([counted[one, seed] for seed in seeds] for one in (arm, other))
        steps_SP, denominator = paired.steps(mine, theirs)
        p = paired.sign_flip_p(steps_SP.sum(axis=0))[0]
        tested.append((p, float(steps_SP.mean()) / denominator))
    adjusted = paired.holm([p for p, _ in tested])
    differ: list[dict[str, Any]] = [
        {"arm": arm, "baseline": other, "difference": difference, "p_holm": p}
        for (arm, other), (_, difference), p in zip(pairs, tested, adjusted)
        if p <= 1 - level and difference
    ]
    rates = ", ".join(f"{arm} {100 * rate:.1f}%" for arm, rate in every.items())
    if not differ:
        text = f"Answers that {what}: {rates}; no difference between arms is shown."
        return _found(name, "clear", text, rates=every, differ=[])
    said = ", ".join(
        f"{one['arm']} minus {one['baseline']} {100 * one['difference']:+.1f} points"
        for one in differ
    )
    fix = (
        "They count as not correct. Raise eval.max_tokens until hardly any is cut off, or read part of the "
        "difference as one of length."
        if name == "truncation"
        else "They count as not correct. Look at some with `rft show`, and mend the scorer or the prompt."
    )
    return _found(
        name,
        "flagged",
        f"Answers that {what}: {rates}. That differs: {said}.",
        fix,
        rates=every,
        differ=differ,
    )


def _tuned(settings: dict[str, Settings], runs: list[ArmRun]) -> Found:
    """What a run folder and its neighbours tell of how often the held-out problems were looked at."""
    done = [run.folders["eval"] for run in pieces(runs) if "eval" in run.folders]
    mine = {digest for place in done if (digest := _questions(place))}
    stops = [name for name, arm in settings.items() if (arm["train"] or {}).get("early_stop")]
    early = "Early stopping looks at training problems alone. " if stops else ""
    if not mine:
        text = f"{early}How often these held-out problems were used before cannot be told."
        return _found("tuning", "unknown", text, "Choose settings on another split than this one.")
    used = {
        one.folders["eval"].name
        for run in pieces(runs)
        for one in run.evaluations
        if "eval" in one.folders
    }
    here = sorted({place.parent for place in done})
    near = [run for home in here for run in sorted(home.parent.parent.glob("*/stages"))]
    others: dict[str, int] = {}
    stale = 0
    for stages in dict.fromkeys([*here, *near[:MOST_RUNS]]):
        found = [p for p in stages.glob("eval-*") if p.name not in used and _questions(p) in mine]
        if stages in here:
            stale += len(found)
        elif found:
            others[stages.parent.name] = len(found)
    figures: dict[str, Any] = {"stale": stale, "runs": others}
    if not stale and not others:
        text = f"{early}No other evaluation in this folder of runs used these held-out problems."
        return _found("tuning", "clear", text, **figures)
    parts = []
    if others:
        names = ", ".join(list(others)[:6]) + (", ..." if len(others) > 6 else "")
        parts.append(
            f"{len(others):,} other run{'' if len(others) == 1 else 's'} in this folder ({names}) evaluated on the "
            f"same held-out problems, {sum(others.values()):,} times with other settings or seeds"
        )
    if stale:
        parts.append(f"this run's folder holds {stale:,} evaluations of settings it has no more")
    text = f"{early}{parts[0][0].upper()}{', and '.join(parts)[1:]}."
    return _found(
        "tuning",
        "flagged",
        text,
        "If settings were chosen by these results, the intervals say too much: choose on another split "
        "(prompts.eval), and report on this one once.",
        **figures,
    )


def _questions(evaluation: Path) -> str | None:
    """Digest of the questions that a finished evaluation has asked, by way of its score and sample
    stages; None where that cannot be told, as in a run that is another user's or version's."""
    try:
        if StageDir(evaluation).manifest() is None:
            return None
        place = evaluation
        for kind, key in (("score", "scores"), ("sample", "candidates")):
            told = str(_inputs(place).get(key, ""))
            place = evaluation.parent / f"{kind}-{told[:12]}"
        found = _inputs(place).get("questions")
    except OSError:
        return None
    return str(found) if found else None


def _inputs(stage: Path) -> dict[str, Any]:
    found = (StageDir(stage).inputs() or {}).get("inputs")
    return found if isinstance(found, dict) else {}


def _matched(comparison: dict[str, Any]) -> list[Found]:
    """Whether matched controls were trained for as long as what they are matched to."""
    out = []
    for row in comparison.get("claims", []):
        if row["control"] != "sft_matched" or not row["steps"]:
            continue
        by, pairs = row["steps"]["by"], row["steps"]["pairs"]
        headline = comparison["headline"]["arm"]
        mine, theirs = (", ".join(f"{n:,}" for n in sorted(set(one))) for one in zip(*pairs))
        off = max(abs(a - b) / max(b, 1) for a, b in pairs)
        text = f"{row['arm']} was trained for {mine} {by}, {headline} for {theirs}"
        if off <= STEP_TOLERANCE:
            out.append(_found("matching", "clear", f"{text}.", off=off))
        else:
            out.append(
                _found(
                    "matching",
                    "flagged",
                    f"{text}, up to {100 * off:.0f}% apart: it is no matched control.",
                    "Run it again with `train.match`, without early stopping in either arm.",
                    off=off,
                )
            )
    return out
