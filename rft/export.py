"""`rft export`: what an arm has learnt, or learnt from, as a folder of its own with a card that says how.

A folder is written beside its place and renamed, so it is there whole or not at all. `export.json` in it
names what it was made of and the SHA-256 of every file: the same command again finds it and writes
nothing, and whatever else is there is never written over.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rft
from rft import cards, dataset, hub, process, rows, rundir
from rft.config import Experiment
from rft.loader import dump
from rft.nodes import ArmPlan, Node
from rft.plan import Plan
from rft.types import RftError, digest

MODELS = ("model", "adapter", "gguf")
"""What is made of a trained arm; everything else is made of its rows."""
CONVERTER = "convert_hf_to_gguf.py"
OUTTYPE = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Number formats as llama.cpp's converter names them."""


def export(
    experiment: Experiment,
    to: Path,
    arm: str = "rft",
    seed: int | None = None,
    form: str = "model",
    dtype: str | None = None,
    converter: str | None = None,
    repo: str | None = None,
) -> None:
    """Writes an arm's weights or rows, and a card, to the folder `to`; then pushes it to `repo` on the hub.

    form: of `MODELS`, `parquet`, or of `dataset.SHAPES`. dtype: of a model's weights, by default bf16.
    converter: path of llama.cpp's, by default the one on the PATH.

    Raises RftError for an arm that trains nothing or is not that far, for a folder that is there and holds
    something else, and where a merged model does not say what its adapter says.
    """
    plan = Plan(experiment)
    seed = experiment.seeds[0] if seed is None else seed
    row = _row(plan, arm, seed)
    _ready(plan, row, form)
    if dtype and form not in ("model", "gguf"):
        raise RftError(f"--dtype: with --as {form} nothing is stored anew: leave it out")
    dtype = (dtype or "bf16") if form in ("model", "gguf") else None
    if converter and form != "gguf":
        raise RftError("--converter is for --as gguf")
    script = _converter(converter) if form == "gguf" else None
    if repo:
        hub.check(repo)
    of = _subject(plan, row, form, dtype)
    made_of = _made_of(of, form, dtype, script)
    if to.exists():
        if fault := _differs(to, made_of):
            raise RftError(
                f"{to} exists already, and {fault}: name a folder that does not, or take that one away"
            )
        process.say(f"{to}: there already, and the same")
    else:
        with _whole(to) as folder:
            if form in MODELS:
                card = _model(of, form, dtype, folder, script)
            else:
                early = of.own.train.early_stop if of.own.train else None
                facts = dataset.write(
                    row.links["4_select"], early, folder, form, cards.data_name(of)
                )
                card = cards.data_card(of, form, facts, sorted(p.name for p in folder.iterdir()))
            (folder / "README.md").write_text(card)
            files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
            record = {"made_of": made_of, "files": files}
            (folder / "export.json").write_bytes(rundir.to_json(record))
        process.say(f"{to}: {arm}, seed {seed}, as {form}" + (f" in {dtype}" if dtype else ""))
        for what, licence in (("base model", of.model_licence), ("problems", of.data_licence)):
            if licence.license is None:
                process.say(f"  licence of the {what}: {licence}")
    if repo:
        process.say(f"pushed: {hub.push(to, repo, 'model' if form in MODELS else 'dataset')}")


def _row(plan: Plan, arm: str, seed: int) -> ArmPlan:
    for row in plan.rows:
        if (row.arm, row.seed) == (arm, seed):
            return row
    known = ", ".join(dict.fromkeys(row.arm for row in plan.rows if "5_train" in row.links))
    raise RftError(
        f"{plan.experiment.path}: no arm {arm!r} with seed {seed} trains something; there are {known}, "
        f"with seeds {', '.join(map(str, plan.experiment.seeds))}"
    )


def _ready(plan: Plan, row: ArmPlan, form: str) -> None:
    """Raises RftError unless the arm has come far enough, and what it has made is whole."""
    link, verb = ("5_train", "train") if form in MODELS else ("4_select", "select")
    node = row.links.get(link)
    if node is None:
        raise RftError(
            f"arms.{row.arm} trains nothing: it has neither weights nor rows of its own to export"
        )
    if not node.done:
        raise RftError(f"{node.label} is not done: run `rft {verb} {plan.experiment.path}` first")
    for one in [node, *node.needs] if verb == "select" else [node]:
        if fault := one.dir.check():
            raise RftError(
                f"{one.dir.path}: {fault}: run `rft {verb} {plan.experiment.path}`, which makes it again"
            )
    if form == "adapter" and not (node.dir.path / "adapter_config.json").is_file():
        raise RftError(
            f"arms.{row.arm} has no adapter: its training is saved as a whole model. Use --as model"
        )


def _subject(plan: Plan, row: ArmPlan, form: str, dtype: str | None) -> cards.Subject:
    own = plan.arms[row.arm.partition("@")[0]]
    command = [
        "rft",
        "export",
        "experiment.yaml",
        "--arm",
        row.arm,
        "--seed",
        str(row.seed),
        "--as",
        form,
    ]
    command += ["--dtype", dtype] if dtype else []
    return cards.Subject(
        experiment=plan.experiment,
        arm=row.arm,
        own=own,
        seed=row.seed,
        links=row.links,
        model_licence=hub.licence(own.model.base, own.model.revision),
        data_licence=hub.licence(
            cards.data_place(own), own.prompts.args.get("revision"), "dataset"
        ),
        command=f"{shlex.join(command)} --to FOLDER",
    )


def _made_of(
    of: cards.Subject, form: str, dtype: str | None, script: Path | None
) -> dict[str, Any]:
    """What an export depends on, each under a name."""
    last = "5" if form in MODELS else "4"
    return {
        "as": form,
        "dtype": dtype,
        "converter": rundir.file_digest(script) if script else None,
        "arm": of.arm,
        "seed": of.seed,
        "stages": {link: node.key for link, node in of.links.items() if link[0] <= last},
        "configuration": digest(dump(of.experiment)),
        "results": digest(of.comparison()),
        "licences": [str(of.model_licence), str(of.data_licence)],
        "rft": rft.__version__,
    }


def _differs(to: Path, made_of: dict[str, Any]) -> str | None:
    """Why a folder is not what an export would write; None if it is."""
    told = rundir.read_json(to / "export.json")
    if not isinstance(told, dict) or told.keys() != {"made_of", "files"}:
        return "no export is in it"
    if changed := rundir.changes(told["made_of"], made_of):
        return f"holds another export ({changed[0]})"
    here = {path.name for path in to.iterdir()} - {"export.json"}
    for name in sorted(here ^ told["files"].keys()):
        return f"{name} has {'come' if name in here else 'gone'} since it was written"
    for name, known in told["files"].items():
        if _sha256(to / name) != known:
            return f"{name} has changed since it was written"
    return None


def _sha256(path: Path) -> str:
    """As `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """A folder to write in, which takes its place when all is on disk, and goes if anything fails."""
    folder = to.with_name(f".{to.name}.tmp")
    with rows.disk_errors(to):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            yield folder
            for path in folder.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(folder, to)
            rows.sync_folder(to.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _model(
    of: cards.Subject, form: str, dtype: str | None, folder: Path, script: Path | None
) -> str:
    """Writes weights, and the licence files that came with the base; returns the card."""
    node, agreed = of.links["5_train"], None
    if form == "adapter":
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(node.dir.path / name, folder / name)
    else:
        assert dtype is not None
        agreed = weights(node, dtype, folder, script, cards.data_name(of))
    base = Path(of.base)
    for path in sorted(base.iterdir()) if base.is_dir() else []:
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
            shutil.copyfile(path, folder / path.name)
    return cards.model_card(of, form, dtype, agreed)


def weights(node: Node, dtype: str, folder: Path, script: Path | None, name: str) -> float | None:
    """Writes a merged model; with a converter's `script` instead of it the GGUF `name`. Returns how far merging
    has moved its logits."""
    from rft import merge  # torch: seconds that data sets need not wait for

    if script is None:
        return merge.write(node, folder, dtype)
    whole, gguf = folder / "whole", folder / f"{name}-{dtype}.gguf"
    agreed = merge.write(node, whole, dtype)
    # The Python that has torch and transformers, which the script wants too.
    command: list[str | Path] = [
        sys.executable,
        script,
        whole,
        "--outfile",
        gguf,
        "--outtype",
        OUTTYPE[dtype],
    ]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode or not gguf.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise RftError(f"{script}: exit code {done.returncode}, and no GGUF: {last}")
    shutil.rmtree(whole)
    return agreed


def _converter(given: str | None) -> Path:
    """llama.cpp's converter. Raises RftError with where to get it."""
    found = given or shutil.which(CONVERTER)
    if found is None or not Path(found).is_file():
        what = (
            f"--converter: {given}: no such file"
            if given
            else f"--as gguf: no {CONVERTER} on the PATH"
        )
        raise RftError(
            f"{what}. It comes with llama.cpp: git clone https://github.com/ggml-org/llama.cpp, "
            f"then --converter llama.cpp/{CONVERTER}"
        )
    return Path(found).resolve()
