"""Figures as words: the answer in one sentence, report.md, and the table on the terminal."""

import io
import os
from collections.abc import Sequence
from typing import Any

from rft.report import parts
from rft.report.compare import find, is_shown
from rft.report.parts import Part
from rft.stats import first_pass_at_k


def percent(value: float, digits: int = 1) -> str:
    """A fraction as percent, without the sign: 0.2467 -> `24.7`."""
    return f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A signed difference of fractions in percentage points; zero has no sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def p_value(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def level_name(level: float) -> str:
    return f"{100 * level:g}%"


def between(low: float, high: float, write: Any = points) -> str:
    return f"{write(low)} to {write(high)}"


def sentence(comparison: dict[str, Any], arm: str, other: str) -> str:
    """What can be said of two arms, exactly: `better`, `worse`, or that nothing can be shown."""
    pair = find(comparison, arm, other)
    level, p = level_name(comparison["level"]), p_value(pair["p"])
    # The headline pair was named before the results were known; any other is one of several.
    if (arm, other) != tuple(comparison["headline"].values()) and pair["family"] > 1:
        p += f", adjusted for {pair['family']} comparisons {p_value(pair['p_holm'])}"
        pair = {**pair, "p": pair["p_holm"]}
    seeds = f", averaged over {len(pair['seeds'])} seeds" if len(pair["seeds"]) > 1 else ""
    where = f"on the same {pair['problems']:,} problems{seeds}"
    if not is_shown(pair, comparison["level"]):
        return (
            f"No difference between {arm} and {other} can be shown {where}: the difference is "
            f"{points(pair['difference'])} points ({level} interval "
            f"{between(pair['low'], pair['high'])}, {p})."
        )
    better = pair["difference"] > 0
    ends = (pair["low"], pair["high"]) if better else (-pair["high"], -pair["low"])
    return (
        f"{arm} is {'better' if better else 'worse'} than {other} by "
        f"{percent(abs(pair['difference']))} points ({level} interval "
        f"{between(*ends, percent)}, {p}) {where}."
    )


def by_seed(comparison: dict[str, Any]) -> list[str]:
    """The headline difference seed by seed, a line each; none where there is one seed."""
    arm, baseline = comparison["headline"]["arm"], comparison["headline"]["baseline"]
    return [
        f"seed {c['seed']}: {arm} minus {baseline} {points(c['difference'])} points "
        f"({between(c['low'], c['high'])}, {p_value(c['p'])})"
        for c in comparison["comparisons"]
        if (c["arm"], c["baseline"]) == (arm, baseline) and c["seed"] is not None
    ]


def answer(comparison: dict[str, Any]) -> str:
    """The report's first sentence."""
    arm, baseline = comparison["headline"]["arm"], comparison["headline"]["baseline"]
    if arm and baseline:
        return sentence(comparison, arm, baseline)
    lone = arm or baseline
    got = comparison["pooled"][lone]["accuracy"]
    return (
        f"{lone} solves {percent(got['value'])}% of {comparison['problems']:,} problems "
        f"({level_name(comparison['level'])} interval {between(got['low'], got['high'], percent)}%)."
    )


def arm_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One row an arm, over its seeds: what the terminal, report.md and the page all list."""
    baseline = comparison["headline"]["baseline"]
    out = []
    for arm, pooled in comparison["pooled"].items():
        mine = [one for one in comparison["arms"] if one["arm"] == arm]
        pair = find(comparison, arm, baseline) if baseline and arm != baseline else None
        out.append(
            {
                "arm": arm,
                "is_baseline": arm == baseline,
                "rows": _range([one["train_rows"] for one in mine]),
                "steps": _range([one["steps"] for one in mine]),
                "accuracy": pooled["accuracy"],
                "seed_accuracies": pooled["seed_accuracies"],
                "seed_spread": pooled["seed_spread"],
                "pair": pair,
                "samples": sum(one["samples"] for one in mine),
                "truncated": _sum(mine, "truncated"),
                "unknown": sum(one["unknown"] for one in mine),
                "tokens": _sum(mine, "tokens"),
            }
        )
    return out


def _sum(arms: list[dict[str, Any]], key: str) -> int | None:
    told = [one[key] for one in arms]
    return None if None in told else sum(told)


def _range(values: list[int | None]) -> str:
    """`280`, or `270 to 285` where the seeds differ; a dash where the arm trains nothing."""
    known = sorted({v for v in values if v is not None})
    if not known:
        return "–"
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"


def arm_cells(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    baseline, level = comparison["headline"]["baseline"], level_name(comparison["level"])
    headings = ["arm", "rows", "steps", f"accuracy % ({level})"]
    if baseline:
        headings += [f"points vs {baseline}", "p"]
    table = []
    for row in arm_rows(comparison):
        got, pair = row["accuracy"], row["pair"]
        cells = [row["arm"], row["rows"], row["steps"]]
        cells.append(f"{percent(got['value'])} ({between(got['low'], got['high'], percent)})")
        if pair:
            ends = between(pair["low"], pair["high"])
            cells += [f"{points(pair['difference'])} ({ends})", p_value(pair["p"])[2:].lstrip("= ")]
        elif baseline:
            cells += ["baseline" if row["is_baseline"] else "", ""]
        table.append(cells)
    return headings, table


def task_cells(
    comparison: dict[str, Any], task: dict[str, Any]
) -> tuple[list[str], list[list[str]]]:
    """The table of a task of lm-evaluation-harness; no rows where arms cannot be compared on it."""
    baseline, level = comparison["headline"]["baseline"], level_name(comparison["level"])
    headings = [task["task"], f"mean % ({level})"]
    headings += [f"points vs {baseline}", "p", "p (Holm)"] if baseline else []
    table = []
    for arm, pooled in task["pooled"].items():
        got = pooled["accuracy"]
        cells = [arm, f"{percent(got['value'])} ({between(got['low'], got['high'], percent)})"]
        if arm == baseline:
            cells += ["baseline", "", ""]
        elif baseline:
            pair = find(task, arm, baseline)
            cells.append(f"{points(pair['difference'])} ({between(pair['low'], pair['high'])})")
            cells += [p_value(pair[p])[2:].lstrip("= ") for p in ("p", "p_holm")]
        table.append(cells)
    return headings, table


def task_note(task: dict[str, Any]) -> str:
    """What a task's table shows, or why there is none."""
    if task["fault"]:
        return f"{task['task']} (lm-evaluation-harness): cannot be compared: {task['fault']}."
    parts = f", of {len(task['tasks'])} tasks" if len(task["tasks"]) > 1 else ""
    cut = task["cut_prompts"]
    return (
        f"{task['task']} (lm-evaluation-harness): mean of {task['metric']} over the same "
        f"{task['problems']:,} problems{parts}."
        + (f" {cut:,} prompts were too long for the model and lack their beginning." if cut else "")
    )


def format_cells(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of number formats; no rows where arms were evaluated in one only."""
    headings = ["arm", "format", f"accuracy % ({level_name(comparison['level'])})"]
    headings += ["points vs baseline", "weights GiB", "peak GiB", "tokens/s"]
    table = []
    for one in comparison.get("formats", []):
        got, pair = one["accuracy"], one["pair"]
        cells = ["" if pair else one["arm"], one["format"]]
        cells.append(f"{percent(got['value'])} ({between(got['low'], got['high'], percent)})")
        if pair:
            ends = between(pair["low"], pair["high"])
            cells.append(f"{points(pair['difference'])} ({ends})")
        else:
            cells.append("baseline")
        for name, digits in (("weights_gb", 2), ("peak_gb", 2), ("tokens_per_s", 0)):
            cells.append("–" if one[name] is None else f"{one[name]:,.{digits}f}")
        table.append(cells)
    return headings, table


def format_note(comparison: dict[str, Any]) -> str:
    """How to read the table of number formats."""
    use = " and ".join(dict.fromkeys(one["use"] for one in comparison["formats"]))
    return (
        f"Number formats of inference, all through {use}: the same problems, prompts and seeds, so the "
        "format alone differs. Memory and tokens/s were measured while sampling; arms that one engine "
        "served share them. vLLM's key-value cache is in the peak, and on a CPU libraries and loading."
    )


def pool_pass_at_k(hits: list[list[bool]], manifest: dict[str, Any]) -> str:
    """What a training pool tells of pass@k. hits: of each problem, in index order; manifest: of its
    sample stage."""
    if manifest.get("shows_answer"):
        return "No pass@k can be told: the prompts held the gold answer."
    allocation = manifest.get("allocation")
    most = min(map(len, hits))
    first = most if allocation is None else min(most, allocation["first"])
    ks = sorted({k for i in range(12) if (k := 4**i) < first} | {first}) if first else []
    told = [
        f"pass@{k} {percent(found.value)}% ({between(found.low, found.high, percent)})"
        for k, found in first_pass_at_k(hits, first, ks).items()
        if found
    ]
    text = ", ".join(told)
    if allocation is None:
        return f"{text}."
    if not told:
        return "No pass@k can be told: verdicts decided how many samples each problem got."
    return (
        f"{text}, from the first {first} of each: verdicts decided how many more were drawn, so no "
        "larger k can be told."
    )


def formats(arm: str, manifest: dict[str, Any]) -> dict[str, str]:
    """What a training stage has computed in, and what it has proved of it; a dash where there was
    nothing to prove."""
    told, proofs = manifest.get("precision", {}), manifest.get("proofs", {})
    formats, sampler = proofs.get("formats"), proofs.get("sampler")
    layout = manifest.get("layout", {})
    skipped = told.get("skipped_steps")
    return {
        "arm": arm,
        "compute": told.get("compute", "–") + (f" ({skipped:,} steps skipped)" if skipped else ""),
        "base": told.get("base", "–"),
        "formats": f"{formats['gradient_cosine']:.4f}" if formats else "–",
        "sampler": ", ".join(f"{one['difference']:.1g}" for one in sampler) if sampler else "–",
        "sharing": f"{layout['sharing_gain']:.2f}" if "sharing_gain" in layout else "–",
        "speed": f"{manifest['tokens_per_s']:,.0f}" if "tokens_per_s" in manifest else "–",
    }


def notes(comparison: dict[str, Any]) -> list[str]:
    """What a reader must know to read the figures rightly, in full sentences."""
    n = comparison["samples_per_problem"]
    drawn = (
        f"{n['smallest']:,}"
        if n["smallest"] == n["largest"]
        else "{smallest} to {largest}".format(**n)
    )
    seeds = len({one["seed"] for one in comparison["arms"]})
    out = [
        f"All arms answered the same {comparison['problems']:,} held-out problems, with {drawn} "
        f"sample{'' if drawn == '1' else 's'} for each.",
        "Intervals and p-values say what other problems of the same kind might give. They treat "
        "the trained models as given: "
        + (
            f"the {seeds} seeds show how much another training run may differ."
            if seeds > 1
            else "with one seed, this report cannot say how much another training run would differ."
        ),
    ]
    arm, baseline = comparison["headline"]["arm"], comparison["headline"]["baseline"]
    if arm and baseline:
        out += evidence(comparison, find(comparison, arm, baseline))
    family = [
        c for c in comparison["comparisons"] if c["seed"] is None and c["baseline"] == baseline
    ]
    if len(family) > 1:
        told = ", ".join(f"{c['arm']} {p_value(c['p_holm'])[2:].lstrip('= ')}" for c in family)
        out.append(
            "Each p-value in the table is for its own comparison. Adjusted for all "
            f"{len(family)} (Holm): {told}."
        )
    return out + comparison["notes"]


def evidence(comparison: dict[str, Any], pair: dict[str, Any]) -> list[str]:
    """What a pair's difference rests on, a sentence each: other seeds, the least difference that could
    have been shown, where the noise comes from, and the margin if there is one."""
    names, over, able = f"{pair['arm']} minus {pair['baseline']}", pair["over_seeds"], pair["power"]
    out = []
    if over:
        ends = between(over["low"], over["high"])
        few = "; so few seeds make it rough" if len(pair["seeds"]) < 6 else ""
        out.append(
            f"Counting what other training seeds would give as well: {names} is "
            f"{points(over['value'])} points ({ends}, {p_value(over['p'])}{few})."
        )
    if able:
        needed = f"{able['problems_for_one_point']:,} problems"
        if able["samples_for_one_point"]:
            needed += f", or {able['samples_for_one_point']:,} samples for each of these,"
        out.append(
            f"In {100 * able['power']:.0f} of 100 such experiments a true difference of "
            f"{percent(able['detectable'])} points between {pair['arm']} and {pair['baseline']} is "
            f"shown; to show one of 1 point takes about {needed} with these trained models."
        )
        kinds = {
            "problem": "problems",
            "seed": "training seeds",
            "interaction": "seeds on single problems",
            "sample": "samples",
        }
        shares = [f"{kinds[k]} {percent(v, 0)}%" for k, v in able["shares"].items()]
        if len(shares) > 1:
            out.append(f"Where the variance of {names} comes from: {', '.join(shares)}.")
    elif pair["problems"] == 1:
        out.append("One problem says nothing of others: no variance can be told.")
    else:
        out.append(
            f"{names} is {points(pair['difference'])} points on every problem, so what this "
            "experiment could have shown cannot be told."
        )
    if same := pair["equivalence"]:
        shown = same["p_no_worse"] <= 1 - comparison["level"]
        both = same["p_equivalent"] <= 1 - comparison["level"]
        out.append(
            f"{pair['arm']} is {'' if shown else 'not '}shown to be no worse than {pair['baseline']} by "
            f"{percent(same['margin'])} points or more ({p_value(same['p_no_worse'])}), and "
            f"{'' if both else 'not '}to be equivalent within them ({p_value(same['p_equivalent'])})."
        )
    return out


def markdown(comparison: dict[str, Any], more: Sequence[Part] = ()) -> str:
    """report.md. more: the sections after the results."""
    name = " ".join(str(comparison["name"]).split()).replace("<", "&lt;")
    files = (
        "report.html has the figures and examples, comparison.json every number with its method."
    )
    rest = [line for part in more for line in parts.markdown(part)]
    return "\n".join([f"# {name}", "", results(comparison), *rest, "", files, ""])


def results(comparison: dict[str, Any]) -> str:
    """What report.md and cards say."""
    lines = [f"**Careful: {flag}**\n" for flag in comparison["flags"]]
    lines += [f"**{comparison['answer']}**", ""]
    lines += parts.grid(*arm_cells(comparison))
    if seeds := by_seed(comparison):
        lines += ["", *[f"- {line}" for line in seeds]]
    if comparison.get("formats"):
        lines += ["", *parts.grid(*format_cells(comparison)), "", format_note(comparison)]
    for task in comparison.get("harness", []):
        lines += ["", task_note(task)]
        if task["pooled"]:
            lines += ["", *parts.grid(*task_cells(comparison, task))]
    arm, baseline = comparison["headline"]["arm"], comparison["headline"]["baseline"]
    controls = [c for c in comparison["pooled"] if c not in (arm, baseline)]
    if arm and baseline and controls:
        lines += ["", f"{arm} against the other arms:", ""]
        lines += [f"- {sentence(comparison, arm, other)}" for other in controls]
    lines += ["", "How to read this:", "", *[f"- {note}" for note in notes(comparison)]]
    return "\n".join(lines)


def terminal(comparison: dict[str, Any], brief: Sequence[str] = ()) -> str:
    """The table and the answer for the terminal that RFT_TERMINAL names; plain where it is none. brief:
    lines after them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    handle = int(os.environ.get("RFT_TERMINAL", "2"))
    try:
        live, width = os.isatty(handle), os.get_terminal_size(handle).columns
    except OSError:
        live, width = False, 100
    out = io.StringIO()
    console = Console(
        file=out, width=max(width, 60), force_terminal=live, no_color=not live, highlight=False
    )

    def show(headings: list[str], table: list[list[str]]) -> None:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for i, heading in enumerate(headings):
            grid.add_column(heading, justify="left" if i == 0 else "right")
        for cells in table:
            style = "bold" if cells[0] == comparison["headline"]["arm"] else ""
            grid.add_row(*(Text(cell) for cell in cells), style=style)
        console.print()
        console.print(grid)
        console.print()

    for flag in comparison["flags"]:
        console.print(Text(f"Careful: {flag}", style="bold red"))
    show(*arm_cells(comparison))
    console.print(Text(comparison["answer"], style="bold"))
    for line in by_seed(comparison):
        console.print(Text(f"  {line}"))
    if comparison.get("formats"):
        show(*format_cells(comparison))
        console.print(Text(format_note(comparison)))
    for task in comparison.get("harness", []):
        if task["pooled"]:
            show(*task_cells(comparison, task))
        console.print(Text(task_note(task)))
    for line in brief:
        console.print(Text(f"  {line}"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
