"""`rft show`: a run at a glance, and any row of it in full, for people to read.

Rows on disk hold ids and verdicts only, so the question and the text of a row are fetched by id
from the stages beside it: those that the same arm and seed links to.
"""

import dataclasses
import functools
import json
import operator
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
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
    "eval": {".": ProblemRow},
    "train": {},
}
"""Stage kind -> folder within it -> type of its rows."""

_TOKENS = ("prompt_token_ids", "token_ids", "token_logprobs", "logprobs")

Facts = dict[str, Any]
"""What is known of a row, by name, in the order to print it in."""


def show(
    run: Path, stage: str | None, row_id: str | None, count: int, tokens: bool = False
) -> None:
    """Prints a run, a stage's first rows, or the rows whose id or prompt id begins with row_id.

    count: rows to print of each table (select has two), and samples to print of an eval row.
    tokens: print token ids and their log-probabilities too.
    """
    # Without emoji=False, rich would turn a ":x:" in model text into a picture.
    console = Console(highlight=False, emoji=False)
    if not (run / "stages").is_dir():
        raise RftError(f"{run}: not a run folder (it has no stages/): try runs/NAME")
    links = _links(run)
    if stage is None:
        _run(console, run, links)
        return
    shown = 0
    for place in _find(run, stage, links):
        folder = place.resolve()
        # Where the user named a link, its arm is meant, and otherwise the first that has one.
        link = place if place.is_symlink() else next(iter(links.get(folder.name, [])), None)
        shown += _stage(console, folder, link, row_id, count, tokens)
    if row_id is not None and not shown:
        raise RftError(f"{run / stage}: no row whose id begins with {row_id!r}")


def _links(run: Path) -> dict[str, list[Path]]:
    """The links of arms and seeds to each stage, by the name of its folder."""
    found: dict[str, list[Path]] = {}
    for place in sorted(run.glob("*/seed*/*")):
        if place.is_symlink():
            found.setdefault(place.resolve().name, []).append(place)
    return found


def _find(run: Path, stage: str, links: dict[str, list[Path]]) -> list[Path]:
    direct = run / stage
    # `rft show RUN` prints the names of the folders in stages/.
    for place in (direct, run / "stages" / stage):
        if (place / "stage.json").is_file():
            return [place]
    if direct.is_dir():
        inner = sorted(p.name for p in direct.iterdir() if p.is_symlink())
        if inner:
            raise RftError(f"{direct}: name one stage: {', '.join(inner)}")
    begun = sorted(p.parent for p in (run / "stages").glob("*/stage.json"))
    found = [p for p in begun if p.name.split("-")[0] == stage]
    if not found and (stage in _ROWS or direct.is_symlink()):
        raise RftError(f"{direct}: no such stage has begun yet")
    if not found:
        places = sorted(str(p.relative_to(run)) for group in links.values() for p in group)
        raise RftError(
            f"{direct}: this is no stage: name a kind ({', '.join(_ROWS)}) or a link such as "
            f"{places[0] if places else 'ARM/seed0/2_sample'}"
        )
    return found


def _run(console: Console, run: Path, links: dict[str, list[Path]]) -> None:
    users = {
        name: [f"{p.parent.parent.name}/{p.parent.name[4:]}" for p in places]
        for name, places in links.items()
    }
    table = Table(title=str(run), title_justify="left")
    for heading in ("stage", "arm/seed", "rows", "seconds", "state"):
        table.add_column(heading, justify="right" if heading in ("rows", "seconds") else "left")
    order = {kind: i for i, kind in enumerate(_ROWS)}
    folders = [p for p in (run / "stages").iterdir() if (p / "stage.json").is_file()]
    # A kind of another version of rft comes last.
    folders.sort(
        key=lambda p: (order.get(p.name.split("-")[0], len(order)), users.get(p.name, ["~"]))
    )
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
        told = rundir.read_json(page.with_name("comparison.json")) or {}
        stale = any(
            (rundir.StageDir(run / "stages" / name).manifest() or {}).get("digest") != digest
            for name, digest in told.get("made_of", {}).items()
        )
        note = " (made before its stages changed: `rft run` or `rft report` makes it anew)"
        console.print(f"report: {page}{note if stale else ''}")


def _stage(
    console: Console, folder: Path, link: Path | None, row_id: str | None, count: int, tokens: bool
) -> int:
    kind = folder.name.split("-")[0]
    if row_id is None:
        stage = rundir.StageDir(folder)
        console.rule(str(folder), align="left")
        console.print_json(json.dumps(_told(stage)))
    shown = 0
    for inner, row_type in _ROWS.get(kind, {}).items():
        columns = _columns(row_type, tokens)
        match = None
        if row_id is not None:
            ids = [name for name in ("id", "prompt_id") if name in columns]
            begins = (pc.starts_with(pc.field(name), row_id) for name in ids)
            match = functools.reduce(operator.or_, begins)
        found = _scan(folder / inner, columns, match, count + 1)
        heading = row_type.__name__ + ("" if inner == "." else f" ({inner})")
        for facts, samples in _join(link, row_type, found[:count], tokens):
            console.rule(heading, align="left", style="dim")
            _print(console, facts)
            for sample in samples[:count]:
                console.rule(f"sample {sample['index']}", align="left", style="dim")
                _print(console, sample)
            if len(samples) > count:
                console.print(f"{count} of {len(samples)} samples: raise -n", style="dim")
        shown += len(found[:count])
        if row_id is not None and len(found) > count:
            console.print(f"more rows begin with {row_id}: raise -n", style="dim", markup=False)
    if shown and link is None and kind != "prompts":
        console.print("No arm uses this stage now, so texts cannot be found.", style="dim")
    return shown


def _told(stage: rundir.StageDir) -> Any:
    """The manifest without its list of files, which can have hundreds; of an unfinished stage its inputs."""
    manifest = stage.manifest()
    if manifest is None:
        return stage.inputs()
    files = manifest["files"].values()
    return {**manifest, "files": f"{len(files):,} of {sum(one['bytes'] for one in files):,} bytes"}


def _columns(row_type: type, tokens: bool) -> list[str]:
    return [f.name for f in dataclasses.fields(row_type) if tokens or f.name not in _TOKENS]


def _scan(folder: Path, columns: list[str], match: Any, limit: int) -> list[Facts]:
    """The folder's first `limit` rows that match (None: all do), each id once.

    Unlike `rows.read` it lets Arrow do the matching, in small batches, and makes Python objects
    of what matches only: that is quick on millions of rows.
    """
    found: dict[str, Facts] = {}
    for path in rows.parts(folder) if limit > 0 else ():
        with rows.whole(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                got = batch if match is None else batch.filter(match)
                for row in got.to_pylist():
                    found.setdefault(row[columns[0]], row)
                if len(found) >= limit:
                    return list(found.values())[:limit]
    return list(found.values())


def _fetch(
    folders: Iterable[Path], columns: list[str], wanted: list[str], by: str = "id"
) -> dict[str, Facts]:
    """The folders' rows whose `by` is wanted, by id. The first column is the id."""
    match = pc.field(by).isin(sorted(set(wanted)))
    found: dict[str, Facts] = {}
    for folder in folders:
        left = len(set(wanted)) - len(found) if by == "id" else sys.maxsize
        found.update((row["id"], row) for row in _scan(folder, columns, match, left))
    return found


def _join(
    link: Path | None, row_type: type, found: list[Facts], tokens: bool
) -> list[tuple[Facts, list[Facts]]]:
    """Each row with what the stages beside its link tell of it, and the samples of an eval row."""
    if link is None or row_type is Prompt or not found:
        return [(row, []) for row in found]
    home = link.parent
    if link.name.startswith("6_"):
        # In other number formats an arm is evaluated beside: 6_eval_fp16.
        own = re.sub(r"^6_eval(_sample|_score)?", "", link.name)
        samples, scores, chosen = (
            [home / f"6_eval_sample{own}"],
            [home / f"6_eval_score{own}"],
            [],
        )
    else:
        # A score stage reads one pool of candidates, a select stage all pools of its arm.
        pool = link.name.removeprefix("2_sample").removeprefix("3_score")
        pool = "*" if row_type in (TrainRow, ChoiceRow) else pool
        samples, scores = sorted(home.glob(f"2_sample{pool}")), sorted(home.glob(f"3_score{pool}"))
        chosen = [home / "4_select" / "choices"]
    by = "prompt_id" if row_type is ProblemRow else "id"
    wanted = [row[by] for row in found]
    splits = [home / "1_prompts" / split for split in ("train", "eval")]
    prompts = _fetch(splits, ["id", "question", "answer"], [row["prompt_id"] for row in found])
    candidates = _fetch(samples, _columns(Candidate, tokens), wanted, by)
    verdict = ["id", "prompt_id", "verdict", "reason", "extracted", "value"]
    verdicts = _fetch(scores, verdict, wanted, by)
    choices = _fetch(chosen, ["id", "reason"], wanted)
    arm = f"{home.parent.name}/{home.name}"

    def facts(row: Facts) -> Facts:
        prompt, row_id = prompts.get(row["prompt_id"], {}), row.get("id", "")
        known = {
            "id": None,
            "prompt_id": None,
            "question": prompt.get("question"),
            "gold": prompt.get("answer"),
            **candidates.get(row_id, {}),
            **verdicts.get(row_id, {}),
        }
        if row_id in choices:
            reason = choices[row_id]["reason"]
            told = f"kept by {arm}" if reason is None else f"dropped by {arm}: {reason}"
            known["selection"] = told
        # A choice's own reason has just been told; under that name stands the verdict's.
        return known | {k: v for k, v in row.items() if row_type is not ChoiceRow or k != "reason"}

    def drawn(problem: Facts) -> list[Facts]:
        of = [c for c in candidates.values() if c["prompt_id"] == problem["prompt_id"]]
        both = [c | verdicts.get(c["id"], {}) for c in sorted(of, key=lambda c: int(c["index"]))]
        return [{k: v for k, v in c.items() if k != "prompt_id"} for c in both]

    return [(facts(row), drawn(row) if row_type is ProblemRow else []) for row in found]


def _print(console: Console, facts: Facts) -> None:
    # Token ids are long: they come last.
    for name, value in sorted(facts.items(), key=lambda fact: fact[0] in _TOKENS):
        if value is None or value == []:
            continue
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        # Model text is shown as it is, without console markup or control characters.
        clean = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
        lines = clean.split("\n")
        console.print(f"{name:>18}: {lines[0]}", markup=False)
        for line in lines[1:]:
            console.print(f"{'':>18}  {line}", markup=False)
