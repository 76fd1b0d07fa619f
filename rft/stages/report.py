"""Last stage: compares the arms and writes what people read.

    report/comparison.json   every number, with how it was made
    report/report.html       the page (rft/report/page.html)
    report/report.md         the same answer as plain text
    report/figures/          where they are asked for, the figures as SVG and PDF

Unlike the other stages it has no key: it takes seconds, and is written anew each time.
"""

from pathlib import Path
from typing import Any

from rft import integrity, process, rows
from rft.report import evidence, harness, load, page, paper, trace, words
from rft.report.compare import compare
from rft.report.load import ArmRun
from rft.rundir import to_json


def run(jobs: list[dict[str, Any]]) -> None:
    """jobs: see `rft.runner`. Raises RftError where arms cannot be compared, or something was changed
    since the stages wrote it."""
    for job in jobs:
        integrity.refuse(load.faults(job))
        write(job, load.load(job))


def write(job: dict[str, Any], runs: list[ArmRun]) -> None:
    """Compares the arms, writes the report's files if the job names a folder, and prints the table and
    the answer."""
    comparison = compare(job, runs, harness.load(job.get("harness", [])))
    comparison["made_of"] = load.digests(runs)
    comparison["answer"] = words.answer(comparison)
    evidence.gather(job, runs, comparison)
    parts = evidence.parts(comparison)
    if job["folder"]:
        folder = Path(job["folder"])
        text = words.markdown(comparison, [*parts, trace.part(job, comparison)])
        html = page.render(job, runs, comparison, parts)
        rows.write_bytes(folder / "comparison.json", to_json(comparison))
        rows.write_bytes(folder / "report.md", text.encode())
        # A lone surrogate in model text cannot be UTF-8.
        rows.write_bytes(folder / "report.html", html.encode(errors="replace"))
        if job.get("figures"):
            names = paper.draw(folder / "figures", runs, comparison)
            process.say(f"figures: {', '.join(names)}, each as SVG and PDF in {folder / 'figures'}")
    process.say(words.terminal(comparison, evidence.brief(comparison)))
    if job["folder"]:
        process.say(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    process.stage_main(run)
