"""`rft show`: a run at a glance, and any row of it in full, for people to read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rft import rows, rundir
from rft.types import (
    Candidate,
    ChoiceRow,
    ProblemRow,
    Prompt,
    RftError,
    ScoreRow,
    TrainRow,
)

_ROWS: dict[str, dict[str, type]] = {
    "prompts": {"train": Prompt, "eval": Prompt},
    "sample": {".": Candidate},
    "score": {".": ScoreRow},
    "select": {"train": TrainRow, "choices": ChoiceRow},
    "evaluate": {".": ProblemRow},
    "train": {},
}
"""Stage kind -> folder within it -> type of its rows."""


def show(run: Path, stage: str | None, row_id: str | None, count: int) -> None:
    """Prints a run, a stage's first rows, or the rows whose id or prompt id begins with row_id."""
    console = Console(highlight=False)
    if not (run / "stages").is_dir():
        raise RftError(f"{run}: not a run folder (it has no stages/): try runs/NAME")
    if stage is None:
        _run(console, run)
        return
    shown = sum(_stage(console, folder, row_id, count) for folder in _find(run, stage))
    if row_id is not None and not shown:
        raise RftError(f"{run / stage}: no row whose id begins with {row_id!r}")


def _find(run: Path, stage: str) -> list[Path]:
    direct = run / stage
    if (direct / "stage.json").is_file():
        return [direct.resolve()]
    if direct.is_dir() and direct != run:
        raise RftError(
            f"{direct}: name one stage: {', '.join(sorted(p.name for p in direct.iterdir()))}"
        )
    found = [p for p in sorted((run / "stages").glob(f"{stage}-*")) if (p / "stage.json").is_file()]
    if not found:
        links = sorted({p.name for p in run.glob("*/seed*/*") if p.is_symlink()})
        raise RftError(
            f"{run}: there is no stage {stage!r}: name a kind ({', '.join(_ROWS)}) or a link such "
            f"as ARM/seed0/{links[0] if links else '2_sample'}"
        )
    return found


def _run(console: Console, run: Path) -> None:
    users: dict[str, list[str]] = {}
    for place in sorted(run.glob("*/seed*/*")):
        if place.is_symlink():
            users.setdefault(place.resolve().name, []).append(
                f"{place.parent.parent.name}/{place.parent.name[4:]}"
            )
    table = Table(title=str(run), title_justify="left")
    for heading in ("stage", "arm/seed", "rows", "seconds", "state"):
        table.add_column(heading, justify="right" if heading in ("rows", "seconds") else "left")
    order = list(_ROWS)
    folders = [p for p in (run / "stages").iterdir() if (p / "stage.json").is_file()]
    folders.sort(key=lambda p: (order.index(p.name.split("-")[0]), users.get(p.name, ["~"])))
    for folder in folders:
        stage = rundir.StageDir(folder)
        manifest = stage.manifest()
        who = list(dict.fromkeys(users.get(folder.name, [])))
        if not who:
            state = "stale: no arm uses it now"
        elif manifest is None:
            state = "begun"
        else:
            fault = stage.check()
            state = f"torn: {fault}" if fault else "done"
        table.add_row(
            folder.name,
            ", ".join(who[:4]) + (f" +{len(who) - 4}" if len(who) > 4 else ""),
            f"{manifest['rows']:,}" if manifest and "rows" in manifest else "",
            f"{manifest['seconds']:,.1f}" if manifest else "",
            state,
        )
    console.print(table)
    page = run / "report" / "report.html"
    if page.is_file():
        console.print(f"report: {page}")


def _stage(console: Console, folder: Path, row_id: str | None, count: int) -> int:
    kind = folder.name.split("-")[0]
    stage = rundir.StageDir(folder)
    if row_id is None:
        manifest = stage.manifest()
        console.rule(str(folder), align="left")
        console.print_json(json.dumps(manifest or stage.inputs()))
    shown = 0
    for inner, row_type in _ROWS[kind].items():
        place = folder if inner == "." else folder / inner
        row: Any
        for row in rows.read(place, row_type):
            matches = row_id is None or any(
                str(getattr(row, name, "")).startswith(row_id) for name in ("id", "prompt_id")
            )
            if matches and (row_id is not None or shown < count):
                _row(console, inner, row)
                shown += 1
    return shown


def _row(console: Console, inner: str, row: Any) -> None:
    heading = type(row).__name__ + ("" if inner == "." else f" ({inner})")
    console.rule(heading, align="left", style="dim")
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if value is None or value == ():
            continue
        if isinstance(value, tuple) and len(value) > 24:
            text = f"{' '.join(map(str, value[:24]))} ... ({len(value)})"
        elif isinstance(value, tuple):
            text = " ".join(map(str, value))
        else:
            text = str(value)
        # Model text is shown as it is, without console markup or control characters.
        clean = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
        lines = clean.split("\n")
        console.print(f"{field.name:>18}: {lines[0]}", markup=False)
        for line in lines[1:]:
            console.print(f"{'':>18}  {line}", markup=False)
