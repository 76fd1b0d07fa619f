"""What stands beside the comparison: claims and their controls, confounds; and all of it as sections."""

from typing import Any

from rft.report import confounds, controls, settings
from rft.report.load import ArmRun
from rft.report.parts import ArmName, Item, Part, Table
from rft.report.words import between, level_name, p_value, points

STATES = {
    "shown": "shown",
    "opposite": "the opposite is shown",
    "open": "not shown",
    "missing": "cannot be claimed: no arm is this control",
    "idle": "does not arise: {arm} removes no duplicates",
}
_MARKS = {
    "flagged": ("look", "warned"),
    "unknown": ("not known", "plain"),
    "clear": ("clear", "kept"),
}
NAMES = {
    "problems": "different problems",
    "decoding": "different decoding",
    "formats": "different samplers or number formats",
    "contamination": "contaminated evaluation",
    "truncation": "truncation",
    "unknown": "answers without a verdict",
    "tuning": "tuned on the evaluation set",
    "matching": "matched control",
}


def gather(job: dict[str, Any], runs: list[ArmRun], comparison: dict[str, Any]) -> None:
    """Adds what this file is about to comparison.json."""
    arms = settings.resolved(job)
    comparison["claims"] = controls.claims(job.get("config") or {}, arms, runs, comparison)
    comparison["confounds"] = confounds.find(job, arms, runs, comparison)


def brief(comparison: dict[str, Any]) -> list[str]:
    """What the terminal says: a line for each claim that cannot be made, and one for what was found."""
    lines = [
        f"missing control: {one['about']}. Cannot be claimed: {one['claim'].rstrip('.')}."
        for one in comparison["claims"]
        if one["state"] == "missing"
    ]
    found = [NAMES[one["name"]] for one in comparison["confounds"] if one["state"] == "flagged"]
    return [*lines, *([f"look at: {', '.join(found)}"] if found else [])]


def parts(comparison: dict[str, Any]) -> list[Part]:
    """The sections in the order of the report."""
    found = [_claims(comparison), _confounds(comparison)]
    return [part for part in found if part]


def _claims(comparison: dict[str, Any]) -> Part | None:
    rows = comparison.get("claims")
    if rows is None:
        return None
    headline = comparison["headline"]["arm"]
    if not rows:
        return Part(
            "claims",
            "What this experiment can say",
            "Nothing of sampling: no arm that learns from samples is compared here, or its settings are not "
            "known, so no arm can be told to be a control.",
        )
    table, notes = [], []
    for one in rows:
        pair = one["pair"]
        cells = [one["claim"], ArmName(one["arm"]) if one["arm"] else "–"]
        if pair:
            many = f", adjusted for {pair['adjusted']}" if pair["adjusted"] else ""
            ends = between(pair["low"], pair["high"])
            cells += [f"{points(pair['difference'])} ({ends})", p_value(pair["p"]) + many]
        else:
            cells += ["–", "–"]
        table.append([*cells, STATES[one["state"]].format(arm=headline)])
        if one["also"]:
            said = ", ".join(
                f"{d['path']} ({_value(d['control'])}; {headline}: {_value(d['headline'])})"
                for d in one["also"]
            )
            notes.append(f"{one['arm']} differs from {headline} also in {said}.")
    level = level_name(comparison["level"])
    headings = [
        "claim",
        "control",
        f"{headline} minus it, points ({level})",
        "p",
        "this experiment",
    ]
    return Part(
        "claims",
        "What this experiment can say",
        f"Each claim about {headline} rests on one control. An arm is told to be one by its settings, not by "
        "its name.",
        tables=[Table(headings, table, "Claims and their controls", (0, 1, 4))],
        codes=[
            (
                f"To add the control “{one['about']}”, put this under `arms` of the experiment file:",
                one["lines"],
            )
            for one in rows
            if one["lines"]
        ],
        notes=notes,
    )


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def _confounds(comparison: dict[str, Any]) -> Part | None:
    rows = comparison.get("confounds")
    if not rows:
        return None
    items = {
        state: [
            Item(f"{mark}: {NAMES[one['name']]}", kind, one["text"], one["fix"])
            for one in rows
            if one["state"] == state
        ]
        for state, (mark, kind) in _MARKS.items()
    }
    count = len(items["flagged"])
    lead = (
        "Nothing was found that could explain a difference but the method."
        if not count
        else f"{count} thing{'' if count == 1 else 's'} besides the method could explain a difference, or part of it."
    )
    return Part(
        "confounds",
        "What else could explain it",
        lead,
        items=[*items["flagged"], *items["unknown"]],
        folded=items["clear"],
        rest=f"{len(items['clear'])} looked for and not found",
    )
