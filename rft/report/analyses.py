"""Sections of what the figures are made up of: by difficulty and kind, variety and gaps, cost."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from rft.report import figures
from rft.report.examples import clean
from rft.report.figures import Series, Spot
from rft.report.parts import ArmName, Part, Table
from rft.report.words import between, level_name, p_value, percent, points

Legend = list[Series]


def parts(comparison: dict[str, Any]) -> list[Part]:
    """The sections that there is something to say of."""
    tint = figures.colours(list(comparison["pooled"]), comparison["headline"]["baseline"])
    found = [_slices(comparison, tint), _diversity(comparison, tint), _cost(comparison)]
    return [part for part in found if part]


def _slices(comparison: dict[str, Any], tint: dict[str, int]) -> Part | None:
    told = comparison.get("slices") or {}
    hard, kind = told.get("difficulty"), told.get("kind")
    if not hard and not kind:
        return None
    arm, baseline = comparison["headline"]["arm"], comparison["headline"]["baseline"]
    shown = [one for one in (arm, baseline) if one]
    level = level_name(comparison["level"])
    tables, notes, drawn = [], [], []
    if hard:
        by = ", ".join(hard["told_by"])
        headings = ["problems", "number", f"right answers of {_few(hard['told_by'])} %"]
        body = [
            [
                _place(i, len(hard["groups"])),
                f"{one['problems']:,}",
                between(one["rate"][0], one["rate"][1], _whole)
                if one["rate"][0] < one["rate"][1]
                else _whole(one["rate"][0]),
                *_figures(one, shown, bool(baseline)),
            ]
            for i, one in enumerate(hard["groups"])
        ]
        tables.append(
            Table([*headings, *_headings(shown, baseline, level)], body, "Accuracy by difficulty")
        )
        drawn.append(_by_difficulty(hard, shown, tint, level))
        notes.append(
            f"Difficulty is the share of right answers of {by}"
            + (
                ", the very arms that are compared: whichever was lucky on a problem sorts it, too, so "
                "differences between groups are partly chance."
                if hard["compared_arms"]
                else "; the arms that are compared have no say in it."
            )
        )
        notes += _varies(hard, "difficulty", arm, baseline)
    if kind:
        body = [
            [_label(one["name"]), f"{one['problems']:,}", *_figures(one, shown, bool(baseline))]
            for one in kind["groups"]
        ]
        headings = ["kind", "number", *_headings(shown, baseline, level)]
        tables.append(Table(headings, body, "Accuracy by kind of problem"))
        notes += _varies(kind, "kind", arm, baseline)
    notes.append("Each interval is for its own group: of twenty groups one misses by chance.")
    return Part(
        "slices",
        "Where the difference lies",
        "Held-out problems by how hard they are"
        + (" and by what kind they are of." if kind else "."),
        tables=tables,
        figures=drawn,
        notes=notes,
    )


def _label(text: str) -> str:
    """A data set's own label: hostile, like all of its text, and of any length."""
    shown = clean(" ".join(text.split()))
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _few(arms: Sequence[str]) -> str:
    return arms[0] if len(arms) == 1 else f"{len(arms)} arms"


def _place(i: int, count: int) -> str:
    return "hardest" if i == 0 else "easiest" if i == count - 1 else f"{i + 1} of {count}"


def _whole(value: float) -> str:
    return percent(value, 0)


def _headings(shown: Sequence[str], baseline: str | None, level: str) -> list[str]:
    named = [f"{one} % ({level})" for one in shown]
    return [*named, f"difference, points ({level})"] if baseline and len(shown) > 1 else named


def _figures(group: dict[str, Any], shown: Sequence[str], paired: bool) -> list[str]:
    cells = [
        f"{percent(got['value'])} ({between(got['low'], got['high'], percent)})"
        for got in (group["arms"][one] for one in shown)
    ]
    if paired and group["difference"]:
        got = group["difference"]
        cells.append(f"{points(got['value'])} ({between(got['low'], got['high'])})")
    return cells


def _varies(told: dict[str, Any], what: str, arm: str | None, baseline: str | None) -> list[str]:
    if told["varies_p"] is None or not (arm and baseline):
        return []
    shown = told["varies_p"] <= 0.05
    return [
        f"That {arm} minus {baseline} differs by {what} is {'' if shown else 'not '}shown "
        f"({p_value(told['varies_p'])}, permutation test)."
    ]


def _by_difficulty(
    hard: dict[str, Any], shown: Sequence[str], tint: dict[str, int], level: str
) -> tuple[str, Legend, Markup]:
    series = [
        Series(
            arm,
            tint[arm],
            [(i + 1.0, 100 * one["arms"][arm]["value"]) for i, one in enumerate(hard["groups"])],
            [
                (100 * one["arms"][arm]["low"], 100 * one["arms"][arm]["high"])
                for one in hard["groups"]
            ],
        )
        for arm in shown
    ]
    ticks = [i + 1.0 for i in range(len(hard["groups"]))]
    ends = "; ".join(
        f"{one.name}: {', '.join(f'{y:.0f}%' for _, y in one.points)}" for one in series
    )
    svg = figures.curves(
        series, "group of problems, hardest first", "accuracy (%)",
        f"Accuracy by difficulty, hardest first. {ends}", height=200, marks=True, x_ticks=ticks, start_at=0.0,
    )  # fmt: skip
    return f"Accuracy by difficulty. Bars are {level} intervals.", series, svg


def _diversity(comparison: dict[str, Any], tint: dict[str, int]) -> Part | None:
    told = comparison.get("diversity") or {}
    rows = told.get("arms")
    if not rows:
        return None
    level = level_name(comparison["level"])
    baseline = comparison["headline"]["baseline"]
    gaps = any(one["gap"] for one in rows)
    headings = ["arm", "answers", "problems covered %", "ways a problem"]
    headings += ["entropy, bits", "similarity"]
    headings += [f"gain over {baseline}, points"] if baseline else []
    headings += ["seen %", f"gap, points ({level})"] if gaps else []
    body = []
    for one in rows:
        cells = [ArmName(one["arm"]), _number(one.get("answers"), 0), _percent(one.get("covered"))]
        cells += [_number(one.get(key), 2) for key in ("ways", "entropy", "alike")]
        if baseline:
            cells.append(
                "baseline" if one["arm"] == baseline else points(one["gain"]["difference"])
            )
        if gaps:
            gap = one["gap"]
            cells.append(_percent(one["seen"]["value"]) if one["seen"] else "–")
            cells.append(
                f"{points(gap['value'])} ({between(gap['low'], gap['high'])})" if gap else "–"
            )
        body.append(cells)
    notes = [
        "Ways (reasoning paths): different sets of equations among a problem's training answers, or texts, where "
        "`sample.distinct` says so; entropy: that of a problem's ways. Similarity: mean share of three-word pieces "
        "that two answers to one problem have in common (Jaccard); a dash where no problem has two answers.",
        *_relation(told["ways_and_gain"], f"a larger gain over {baseline}", "a smaller one"),
        *(
            _relation(told["ways_and_gap"], "a larger gap", "a smaller gap")
            if gaps
            else [
                "Memorisation is not measured: set `eval.train_problems` to evaluate every arm "
                "on problems it was trained on as well."
            ]
        ),
    ]
    if gaps:
        asked = sorted({one["seen"]["problems"] for one in rows if one["seen"]})
        many = " or ".join(f"{count:,}" for count in asked)
        notes.insert(
            1,
            f"Seen: accuracy on {many} training problems. Gap: that minus accuracy on the held-out ones. Problems of "
            "both kinds differ, so a gap is not all memorisation: compare it with that of the arm that "
            "was not trained.",
        )
    return Part(
        "diversity",
        "Variety of what was learnt, and what it brought",
        "How varied the answers are that each arm was trained on, averaged over seeds.",
        tables=[Table(headings, body, "Variety of training answers by arm")],
        figures=_scatters(rows, tint, baseline, level),
        notes=notes,
    )


def _relation(told: dict[str, Any] | None, more: str, less: str) -> list[str]:
    if told is None:
        return []
    rho = told["spearman"]
    way = "nothing in particular" if abs(rho) < 0.1 else more if rho > 0 else less
    return [
        f"Among the {told['arms']} arms that train, more ways a problem go with {way} (rank correlation "
        f"{rho:+.2f}, {p_value(told['p'])}). So few arms, which differ in more than this, make it an "
        "observation, not a cause."
    ]


def _scatters(
    rows: list[dict[str, Any]], tint: dict[str, int], baseline: str | None, level: str
) -> list[tuple[str, Legend, Markup]]:
    out = []
    for key, value, name in (
        ("gain", "difference", f"gain over {baseline} (points)"),
        ("gap", "value", "accuracy on training problems minus held-out (points)"),
    ):
        known = [one for one in rows if one.get("ways") and one[key]]
        if len(known) < 2:
            continue
        spots = [
            Spot(
                one["arm"],
                tint[one["arm"]],
                one["ways"],
                *(100 * one[key][end] for end in (value, "low", "high")),
            )
            for one in known
        ]
        legend = [Series(one.name, one.colour, ()) for one in spots]
        said = "; ".join(f"{one.name}: {one.x:.2f} ways, {one.y:+.1f} points" for one in spots)
        svg = figures.scatter(spots, "ways a problem", name, f"{name} by ways a problem. {said}")
        out.append(
            (
                f"{name[0].upper()}{name[1:]} by ways a problem. Bars are {level} intervals.",
                legend,
                svg,
            )
        )
    return out


def _cost(comparison: dict[str, Any]) -> Part | None:
    told = comparison.get("cost")
    if not told:
        return None
    prices, baseline = told["prices"], comparison["headline"]["baseline"]
    energy = any(one["kwh"] is not None for one in told["arms"])
    money = any(one["money"] is not None for one in told["arms"])
    currency = prices.get("currency") or ""
    headings = [
        "arm",
        "tokens sampled",
        "tokens trained",
        "sample",
        "score",
        "select",
        "train",
        "in all",
    ]
    headings += ["kWh"] if energy else []
    headings += [currency] if money else []
    headings += ["evaluation"]
    body = []
    for one in told["arms"]:
        cells: list[str] = [ArmName(one["arm"])]
        cells += [f"{one[key]:,.0f}" for key in ("tokens_sampled", "tokens_trained")]
        cells += [duration(seconds) for seconds in one["by_stage"].values()]
        cells.append(duration(one["seconds"]))
        cells += [_number(one["kwh"], 3)] if energy else []
        cells += [_number(one["money"], 2)] if money else []
        body.append([*cells, duration(one["evaluation_seconds"])])
    total = f"The whole run, shared stages counted once: {duration(told['total']['seconds'])}"
    if told["total"]["kwh"] is not None:
        total += f", {told['total']['kwh']:.3f} kWh"
    if told["total"]["money"] is not None:
        total += f", {told['total']['money']:.2f} {currency}"
    notes = [f"{total}. Hours of an attempt that was interrupted are not in it."]
    notes += [
        f"Each point that {one['arm']} gains over {baseline} takes {_per_point(one['per_point'], currency)} more."
        for one in told["arms"]
        if one["per_point"]
    ]
    if energy:
        notes.append(
            f"Energy is estimated as hours times {prices['watts']:g} W (`compare.cost.watts`), not measured."
        )
    else:
        notes.append("For energy and money set `compare.cost`: `{watts: 65, price_per_kwh: 0.3}`.")
    return Part(
        "cost",
        "What it cost",
        "To make each arm, with what it needs of others (an arm that samples from another's policy needs its "
        "training), averaged over seeds.",
        tables=[Table(headings, body, "Cost by arm")],
        notes=notes,
    )


def _per_point(told: dict[str, Any], currency: str) -> str:
    ends = told["seconds"]
    text = f"{duration(ends['value'])} ({duration(ends['low'])} to {duration(ends['high'])})"
    if money := told.get("money"):
        text += f" and {money['value']:.2g} {currency}"
    return text


def duration(seconds: float) -> str:
    """`0`, `48 s`, `3.1 min` or `2.4 h`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size * 0.9995:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s" if seconds else "0"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)
