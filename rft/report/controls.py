"""The five controls, and what can be claimed with those that there are.

A control is told by its settings, never by its name: an arm that happens to be called `random` proves
nothing. Each claim rests on one of them. Where it is missing, the claim cannot be made, whatever the
headline figure, and the report gives the lines that add it.
"""

from dataclasses import dataclass
from typing import Any

import yaml

from rft.report.compare import find, is_shown
from rft.report.load import ArmRun, pieces
from rft.report.settings import Settings, differing

REMOVES = ("dedupe", "distinct_equations", "diverse")
"""Selectors that leave out repeated answers."""
_VOLUME = ("cap", "random")
"""Selectors that only say how many are kept."""


@dataclass(frozen=True)
class Control:
    key: str
    """Also the arm's name in the lines that add it, unless that is taken."""
    about: str
    claim: str
    """What a difference from this control would show."""
    own: tuple[str, ...]
    """Beginnings of the dotted paths in which it is meant to differ from the headline arm, or whose
    values mean nothing to it."""


_SAMPLED = ("sample.", "select.", "rounds.", "train.loss.", "train.include_reference")
_LENGTH = ("train.match", "train.epochs")

CONTROLS = (
    Control(
        "base",
        "the model as it was before training",
        "Training changed what the model can do.",
        ("train", *_SAMPLED),
    ),
    Control(
        "sft",
        "trained on the data set's own solutions",
        "Training on samples is better than training on the data set's own solutions alone.",
        _SAMPLED,
    ),
    Control(
        "sft_matched",
        "the same solutions for as much training",
        "The gain is not merely more training.",
        (*_SAMPLED, *_LENGTH),
    ),
    Control(
        "random",
        "as many samples, drawn by chance",
        "The filter matters, not the volume of samples.",
        ("select.",),
    ),
    Control(
        "repeats",
        "samples with their duplicates",
        "Removing duplicates matters.",
        ("select.",),
    ),
)


def roles(settings: dict[str, Settings], headline: str) -> dict[str, list[str]]:
    """Control -> the arms that are it, for the arm of the headline; none where there is none."""
    mine = settings[headline]
    found: dict[str, list[str]] = {one.key: [] for one in CONTROLS}
    run, _, own = headline.rpartition("/")
    for name, arm in settings.items():
        # What an arm of another run (RUN/ARM) calls arm:NAME is that run's.
        target = f"arm:{own}" if name.rpartition("/")[0] == run else ""
        if name != headline and (role := _role(arm, mine, target)):
            found[role].append(name)
    return found


def _role(arm: Settings, mine: Settings, target: str) -> str | None:
    """target: how the arm would name the headline's."""
    if arm["model"] != mine["model"] or arm["prompts"] != mine["prompts"]:
        return None
    if arm["train"] is None:
        return "base"
    if arm["sample"]["use"] == "reference":
        match = arm["train"]["match"]
        if match is None:
            return "sft"
        return "sft_matched" if match == target else None
    if arm["sample"] != mine["sample"] or arm["score"] != mine["score"]:
        return None
    if arm["select"][0]["args"].get("rows") == target:
        # Beside another selector chance would choose among what that keeps: no control of the filter.
        return "random" if [one["use"] for one in arm["select"]] == ["random"] else None
    repeats = [one for one in arm["select"] if one["use"] in REMOVES]
    if removes(mine) and not repeats and _filter(arm) == _filter(mine):
        return "repeats"
    return None


def removes(arm: Settings) -> bool:
    """Whether an arm leaves repeated answers out."""
    return any(one["use"] in REMOVES for one in arm["select"])


def _volume(arm: Settings) -> list[dict[str, Any]]:
    return [one for one in arm["select"] if one["use"] in _VOLUME]


def _filter(arm: Settings) -> list[dict[str, Any]]:
    """The selectors that judge an answer by itself."""
    return [one for one in arm["select"] if one["use"] not in (*REMOVES, *_VOLUME)]


def claims(
    config: dict[str, Any],
    settings: dict[str, Settings],
    runs: list[ArmRun],
    comparison: dict[str, Any],
) -> list[dict[str, Any]]:
    """A row for each control, or for each arm that is one: the claim, whether it holds, by which
    difference, or the lines that would add what is missing. Empty where the headline arm's settings
    are not known, or it learns from no samples."""
    headline = comparison["headline"]["arm"]
    if headline not in settings or headline not in comparison["pooled"]:
        return []
    mine = settings[headline]
    if mine["train"] is None or mine["sample"]["use"] == "reference":
        return []
    found = roles(settings, headline)
    home, own = _home(config, headline)
    present = set(comparison["pooled"])
    out = []
    for control in CONTROLS:
        told: dict[str, Any] = {
            "control": control.key,
            "about": control.about,
            "claim": control.claim,
        }
        arms = [arm for arm in found[control.key] if arm in present]
        if not arms:
            idle = control.key == "repeats" and not removes(mine)
            lines = (
                None
                if idle or own not in (home.get("arms") or {})
                else missing(home, control.key, own)
            )
            told |= {"arm": None, "pair": None, "also": [], "steps": None, "lines": lines}
            out.append({**told, "state": "idle" if idle else "missing"})
        for arm in arms:
            pair = _told(find(comparison, headline, arm), comparison)
            steps = (
                _steps(runs, arm, headline, settings[arm]) if control.key == "sft_matched" else None
            )
            row = {"arm": arm, "pair": pair, "also": _also(control, settings[arm], mine)}
            state = _state(control, pair, comparison)
            out.append({**told, **row, "steps": steps, "lines": None, "state": state})
    return out


def _home(config: dict[str, Any], headline: str) -> tuple[dict[str, Any], str]:
    """The experiment that the headline arm is of, and what that calls it: of several runs it may be RUN/ARM."""
    runs = config.get("runs")
    if not isinstance(runs, dict):
        return config, headline
    label, _, own = headline.rpartition("/")
    homes = (one for run, one in runs.items() if label in ("", run) and own in one.get("arms", {}))
    return next(homes, {}), own


def _told(pair: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    """The headline arm minus the control. p: adjusted, but for the pair that was named beforehand."""
    main = (pair["arm"], pair["baseline"]) == tuple(comparison["headline"].values())
    p = pair["p"] if main or pair.get("family", 1) < 2 else pair["p_holm"]
    return {
        "difference": pair["difference"],
        "low": pair["low"],
        "high": pair["high"],
        "p": p,
        "adjusted": None if p is pair["p"] else pair["family"],
    }


def _state(control: Control, pair: dict[str, Any], comparison: dict[str, Any]) -> str:
    """`shown`, `opposite` or `open`."""
    if not is_shown(pair, comparison["level"]):
        return "open"
    return "shown" if pair["difference"] > 0 or control.key == "base" else "opposite"


def _also(control: Control, arm: Settings, mine: Settings) -> list[dict[str, Any]]:
    """In what else a control differs from the headline arm: its difference is that of both."""
    kept, mine_kept = _volume(arm), _volume(mine)
    volume = {"path": "how many answers select keeps", "control": kept, "headline": mine_kept}
    more = [volume] if control.key == "repeats" and kept != mine_kept else []
    return more + [
        {"path": path, "control": theirs, "headline": ours}
        for path, (theirs, ours) in differing(arm, mine).items()
        # What the evaluation differs in is told among the confounds.
        if not path.startswith((*control.own, "eval."))
    ]


def _steps(
    runs: list[ArmRun], arm: str, headline: str, settings: Settings
) -> dict[str, Any] | None:
    """How much a matched control was trained, by what it is matched by, and the headline arm: of each
    seed a pair."""
    by = settings["train"]["match_by"]

    def told(one: str, seed: int) -> list[Any]:
        mine = [run for run in runs if (run.arm, run.seed) == (one, seed)]
        return [run.manifests.get("train", {}).get(by) for run in pieces(mine)]

    seeds = [run.seed for run in runs if run.arm == arm]
    # zip: the parts of an arm are those of the other, in the same order.
    pairs = [[a, b] for seed in seeds for a, b in zip(told(arm, seed), told(headline, seed))]
    known = [pair for pair in pairs if None not in pair]
    return {"by": by, "pairs": known} if known else None


def missing(config: dict[str, Any], key: str, headline: str) -> str:
    """The lines of YAML that add a control to the experiment file. Its arm keeps what the headline arm
    replaces of the body, but for what makes it a control."""
    own = dict((config.get("arms") or {}).get(headline) or {})
    train = own.pop("train", None) or {}
    kept = {k: v for k, v in own.items() if k not in ("sample", "select", "rounds")}
    if key == "base":
        arm: dict[str, Any] = {**kept, "train": None}
    elif key in ("sft", "sft_matched"):
        learnt = {k: v for k, v in train.items() if k not in ("match", "match_by")}
        if key == "sft_matched":
            learnt = {k: v for k, v in learnt.items() if k != "epochs"}
            learnt["match"] = f"arm:{headline}"
        arm = {**kept, "sample": {"use": "reference"}, **({"train": learnt} if learnt else {})}
    else:
        arm = {**own, **({"train": train} if train else {})}
        select = own.get("select", config.get("select", []))
        if key == "random":
            arm["select"] = [{"use": "random", "args": {"rows": f"arm:{headline}"}}]
        else:
            arm["select"] = [_brief(one) for one in select if one["use"] not in REMOVES]
    name = key if key != "repeats" else f"{headline}_repeats"
    if name in (config.get("arms") or {}):
        name = f"{name}_of_{headline}"
    body = yaml.safe_dump(arm, default_flow_style=True, sort_keys=False, width=1000).strip()
    return f"arms:\n  {name}: {body}"


def _brief(component: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in component.items() if value != {}}
