"""From a figure to its rows: the commands that show them, and those that make a run again."""

import os
import platform
import shlex
from pathlib import Path
from typing import Any

from rft.report.load import STAGES, ArmRun, pieces
from rft.report.parts import Part, Table

LINKS = {
    "prompts": "1_prompts",
    "sample": "2_sample",
    "score": "3_score",
    "select": "4_select",
    "train": "5_train",
    "eval_sample": "6_eval_sample",
    "eval_score": "6_eval_score",
    "eval": "6_eval",
}
"""Stage -> what a run folder calls its link."""


def place(run: ArmRun, stage: str) -> list[str]:
    """The words after `rft show` that show a stage of an arm: by the arm's link where there is one, else by
    the stage's own folder."""
    folder = run.folders[stage]
    root = folder.parent.parent
    link = Path(run.arm, f"seed{run.seed}", LINKS[stage])
    if (root / link).is_symlink():
        return [str(root), str(link)]
    return [str(root), folder.name]


def command(run: ArmRun, stage: str, id: str = "") -> str:
    """`rft show RUN STAGE ID`, as it is typed where the run's command was."""
    return shlex.join(["rft", "show", *place(run, stage), *([id] if id else [])])


def again(job: dict[str, Any]) -> list[tuple[str, str]]:
    """(what it does, command): of the run that this report is of, or of the comparison."""
    if "command" in job:
        return [("This comparison", job["command"])]
    root = Path(job["folder"]).parent
    if not (root / "experiment.yaml").is_file():
        return []
    file = shlex.quote(str(root / "experiment.yaml"))
    name = shlex.quote(f"{job['name']}_again")
    return [
        ("Everything again, in a new run folder", f"rft run {file} name={name}"),
        ("What is missing or was changed, in this one", f"rft run {file}"),
        ("This report alone", f"rft report {file}"),
        ("The figures as files, for a paper", f"rft report {file} --figures"),
        ("Stages, rows and times", f"rft show {shlex.quote(str(root))}"),
    ]


def part(job: dict[str, Any], comparison: dict[str, Any]) -> Part:
    """Run details for report.md: the settings in which arms differ, and the commands. The page folds them."""
    told = comparison["settings"]
    arms = list(told[0]["values"]) if told else []
    body = [
        [
            f"`{one['path']}`",
            *("–" if one["values"][arm] is None else str(one["values"][arm])[:60] for arm in arms),
        ]
        for one in told
    ]
    tables = [Table(["setting", *arms], body, "Settings by arm", tuple(range(len(arms) + 1)))]
    commands = "\n".join(f"{line}  # {about}" for about, line in again(job))
    return Part(
        "details",
        "Run details",
        "" if told else "No setting differs between arms, or none is known.",
        tables=tables if told else (),
        codes=[("To make this again:", commands)] if commands else (),
    )


def stages(runs: list[ArmRun]) -> list[dict[str, Any]]:
    """Of each arm and seed the folders that its figures were computed from."""
    out = []
    for run in pieces(runs):
        if "eval" not in run.folders:
            continue
        folders = [run.folders[stage].name for stage in STAGES if stage in run.folders]
        pools = [name for pool in run.pools for name in (pool.sample.name, pool.score.name)]
        out.append(
            {
                "arm": run.arm,
                "seed": run.seed,
                "folders": [*folders[:1], *pools, *folders[1:]],
                "command": command(run, "eval"),
            }
        )
    return out


def machine(runs: list[ArmRun]) -> dict[str, str]:
    """The machine that this report was written on, and what the arms were trained on."""
    found = {"system": platform.platform(), "processor": _processor()}
    found["cores"] = str(os.cpu_count())
    pages, size = (os.sysconf(f"SC_{name}") for name in ("PHYS_PAGES", "PAGE_SIZE"))
    found["memory"] = f"{pages * size / 2**30:.1f} GiB"
    devices = {str(run.manifests.get("train", {}).get("device")) for run in pieces(runs)} - {"None"}
    if devices:
        found["trained on"] = ", ".join(sorted(devices))
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
