"""Write the tables of docs/results.md from the reports of run folders.

    python scripts/results.py runs            # every table whose runs are there
    python scripts/results.py runs --check    # say which tables are not what the runs tell

docs/results.md holds places such as

    <!-- arms svamp_folds/comparison.json -->
    <!-- end -->

and what stands between the two lines is written anew, if that file (or runs/NAME/report/comparison.json) is
there. Kinds of table: `arms` (accuracy and differences), `headline` (the headline arm against each control),
`gaps` (what was learnt by heart, a mean over several reports), `curve` (arms k1, k3, ...), and `paper`, which is
the RFT paper's own table with the intervals that it lacks.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from rft import stats
from rft.report import parts, words

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"
PLACE = re.compile(r"(<!-- (\w+)((?: \w[\w./]*)*) -->\n).*?(<!-- end -->)", re.DOTALL)

PAPER = {
    "SFT": (None, 35.9),
    "k=1": (1.17, 37.6),
    "k=3": (1.44, 39.0),
    "k=6": (1.74, 39.5),
    "k=12": (2.20, 41.6),
    "k=25": (2.93, 40.9),
    "k=50": (3.94, 40.7),
    "k=100": (5.25, 41.7),
}
"""LLaMA-7B on GSM8K's 1,319 test problems, greedy (Yuan et al. 2023, arXiv 2308.01825): distinct paths a
question, accuracy in percent."""
PAPER_PROBLEMS = 1319


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("runs", type=Path, help="folder that holds the run folders")
    options.add_argument(
        "--check", action="store_true", help="change nothing; 1 where a table is another"
    )
    asked = options.parse_args()
    page = PAGE.read_text()
    left: list[str] = []

    def filled(place: re.Match[str]) -> str:
        head, kind, names, end = place.groups()
        files = [asked.runs / name for name in names.split()]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            left.append(f"{kind}: no {', '.join(missing)}")
            return place[0]
        told = [json.loads(file.read_text()) for file in files]
        return f"{head}\n" + "\n".join(TABLES[kind](told)) + f"\n\n{end}"

    written = PLACE.sub(filled, page)
    for line in left:
        print(f"left as it is: {line}", file=sys.stderr)
    if asked.check:
        if written != page:
            raise SystemExit(f"{PAGE}: not what these runs tell: run this without --check")
        return
    PAGE.write_text(written)


def arms(told: list[dict[str, Any]]) -> list[str]:
    (one,) = told
    lines = [f"**{one['answer']}**", "", *parts.grid(*words.arm_cells(one))]
    baseline = one["headline"]["baseline"]
    for pair in one["comparisons"]:
        over = pair["over_seeds"]
        if pair["seed"] is None and pair["baseline"] == baseline and over:
            ends = words.between(over["low"], over["high"])
            lines += [""] * (lines[-1].startswith("|"))
            lines.append(
                f"- {pair['arm']} minus {baseline}, for other training seeds as well: "
                f"{words.points(over['value'])} ({ends}, {words.p_value(over['p'])}, {len(pair['seeds'])} seeds)"
            )
    if seeds := words.by_seed(one):
        lines += [*[""] * lines[-1].startswith("|"), *[f"- {line}" for line in seeds]]
    return [*lines, "", spent(one)]


def spent(one: dict[str, Any]) -> str:
    hours = one["cost"]["total"]["seconds"] / 3600
    time = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return f"{one['problems']:,} held-out problems; its stages took {time} in all."


def headline(told: list[dict[str, Any]]) -> list[str]:
    (one,) = told
    arm = one["headline"]["arm"]
    level = words.level_name(one["level"])
    rows = [
        [
            row["claim"],
            row["arm"],
            f"{words.points(row['pair']['difference'])} "
            f"({words.between(row['pair']['low'], row['pair']['high'])})",
            words.p_value(row["pair"]["p"])[2:].lstrip("= "),
            {"shown": "shown", "opposite": "the opposite is shown"}.get(row["state"], "not shown"),
        ]
        for row in one["claims"]
        if row["pair"]
    ]
    headings = [
        "claim",
        "control",
        f"{arm} minus it, points ({level})",
        "p (controls: adjusted)",
        "",
    ]
    lines = parts.grid(headings, rows, (0, 1, 4))
    controls = {row["arm"] for row in one["claims"]} - {one["headline"]["baseline"], None}
    by_seed = [
        f"- seed {pair['seed']}: {arm} minus {pair['baseline']} {words.points(pair['difference'])} "
        f"({words.between(pair['low'], pair['high'])})"
        for pair in one["comparisons"]
        if pair["arm"] == arm and pair["baseline"] in controls and pair["seed"] is not None
    ]
    return [*lines, *([""] if by_seed else []), *by_seed]


def gaps(told: list[dict[str, Any]]) -> list[str]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        for row in one["diversity"]["arms"]:
            if row.get("gap"):
                found.setdefault(row["arm"], []).append(row)

    def mean(rows: list[dict[str, Any]], key: str, digits: int = 2) -> str:
        known = [row[key] for row in rows if row.get(key) is not None]
        return f"{fmean(known):,.{digits}f}" if known else "–"

    table = [
        [
            arm,
            mean(rows, "answers", 0),
            mean(rows, "ways"),
            words.percent(fmean(row["seen"]["value"] for row in rows)),
            words.points(fmean(row["gap"]["value"] for row in rows)),
            words.between(rows[0]["gap"]["low"], rows[0]["gap"]["high"])
            if len(rows) == 1
            else words.between(*(end(row["gap"]["value"] for row in rows) for end in (min, max))),
        ]
        for arm, rows in found.items()
    ]
    ends = f"range of {len(told)} reports" if len(told) > 1 else words.level_name(told[0]["level"])
    headings = ["arm", "answers", "ways a problem", "solves of what sft learnt from %"]
    return parts.grid([*headings, "minus held-out, points", ends], table)


def curve(told: list[dict[str, Any]]) -> list[str]:
    (one,) = told
    baseline = one["headline"]["baseline"]
    varied = {row["arm"]: row for row in one["diversity"]["arms"]}
    table = []
    for row in words.arm_rows(one):
        got, pair = row["accuracy"], row["pair"]
        ways = varied.get(row["arm"], {}).get("ways")
        table.append(
            [
                row["arm"],
                row["rows"],
                "–" if ways is None else f"{ways:.2f}",
                f"{words.percent(got['value'])} ({words.between(got['low'], got['high'], words.percent)})",
                f"{words.points(pair['difference'])} ({words.between(pair['low'], pair['high'])})"
                if pair
                else "",
            ]
        )
    level = words.level_name(one["level"])
    headings = ["arm", "rows", "ways a problem", f"accuracy % ({level})"]
    grid = parts.grid([*headings, f"points against {baseline} ({level})"], table)
    return [*grid, "", spent(one)]


def paper(told: list[dict[str, Any]]) -> list[str]:
    table = []
    for name, (paths, accuracy) in PAPER.items():
        right = round(accuracy / 100 * PAPER_PROBLEMS)
        got = stats.wilson(right, PAPER_PROBLEMS, 0.95)
        ends = words.between(got.low, got.high, words.percent)
        table.append([name, "–" if paths is None else f"{paths:.2f}", f"{accuracy:.1f} ({ends})"])
    return parts.grid(["", "distinct paths a question", "accuracy % (95%)"], table)


TABLES = {"arms": arms, "headline": headline, "gaps": gaps, "curve": curve, "paper": paper}


if __name__ == "__main__":
    main()
