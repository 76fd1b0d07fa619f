"""What stands beside the comparison: claims and their controls, confounds; and all of it as sections."""

from typing import Any

from rft.report import analyses, confounds, controls, cost, diversity, settings, slices
from rft.report.load import ArmRun
from rft.report.parts import ArmName, Item, Marked, Part, Table
from rft.report.words import between, level_name, p_value, points

STATES = {
    "shown": ("shown", "kept"),
    "opposite": ("the opposite is shown", "dropped"),
    "open": ("not shown", "plain"),
    "missing": ("cannot be claimed: no arm is this control", "warned"),
    "idle": ("does not arise: {arm} removes no duplicates", "plain"),
}
"""What can be said of a claim, and in which colour."""
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
    comparison["confounds"] = confounds.find(arms, runs, comparison)
    comparison["slices"] = slices.gather(runs, comparison)
    comparison["diversity"] = diversity.gather(arms, runs, comparison)
    comparison["cost"] = cost.gather(job, arms, runs, comparison)
    comparison["settings"] = settings.table(arms)


def brief(comparison: dict[str, Any]) -> list[str]:
    """What the terminal says: a line for each claim that cannot be made, and one for what was found."""
    lines = [
        f"missing control: {one['about']}. Cannot be claimed: {one['claim'].rstrip('.')}."
        for one in comparison["claims"]
        if one["state"] == "missing"
    ]
    found = [NAMES[one["name"]] for one in comparison["confounds"] if one["state"] == "flagged"]
    return [*lines, *([f"what else could explain it: {', '.join(found)}"] if found else [])]


def parts(comparison: dict[str, Any]) -> list[Part]:
    """The sections in the order of the report."""
    found = [_claims(comparison), _confounds(comparison)]
    return [*(part for part in found if part), *analyses.parts(comparison)]


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
        said, kind = STATES[one["state"]]
        cells = [one["claim"], Marked(said.format(arm=headline), kind)]
        cells.append(ArmName(one["arm"]) if one["arm"] else "–")
        if pair:
            many = f", adjusted for {pair['adjusted']}" if pair["adjusted"] else ""
            ends = between(pair["low"], pair["high"])
            cells += [f"{points(pair['difference'])} ({ends})", p_value(pair["p"]) + many]
        table.append([*cells, *["–"] * (5 - len(cells))])
        if one["also"]:
            said = ", ".join(
                f"{d['path']} ({_value(d['control'])}; {headline}: {_value(d['headline'])})"
                for d in one["also"]
            )
            notes.append(f"{one['arm']} differs from {headline} also in {said}.")
    level = level_name(comparison["level"])
    headings = ["claim", "here", "control", f"{headline} minus it, points ({level})", "p"]
    return Part(
        "claims",
        "What this experiment can say",
        f"Each claim about {headline} rests on one control. An arm is recognised as one by its settings, not "
        "by its name.",
        tables=[Table(headings, table, "Claims and their controls", (0, 1, 2))],
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
        "Nothing was found that could explain a difference but the method"
        + (", as far as that is known." if items["unknown"] else ".")
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
