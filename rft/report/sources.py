"""What `rft compare` is given: run folders, lm-evaluation-harness's samples, verdicts made elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rft import integrity
from rft.config import Arm, merge
from rft.config_compare import Compare
from rft.integrity import Fault
from rft.report import load, verdicts
from rft.report.load import ArmRun
from rft.rundir import StageDir
from rft.types import RftError

EVALUATION = ("6_eval_sample", "6_eval_score", "6_eval")
"""Links of an arm's evaluation; of that on training problems with `_seen` behind."""


@dataclass(frozen=True)
class Source:
    """One arm and seed of what was given."""

    run: ArmRun
    label: str
    """As it was given with the path, else the name of the file or folder."""
    path: Path
    scorer: Any = None
    """What judged it, as plain data; None where nobody tells."""
    settings: dict[str, Any] | None = None
    """All settings of the arm, where the run has them."""


@dataclass(frozen=True)
class Given:
    """One path and what it holds."""

    sources: list[Source]
    config: dict[str, Any] | None = None
    """The experiment of a run folder."""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(word: str, metric: str | None) -> Given:
    """What a word of the command line names: PATH, or LABEL=PATH. Raises RftError."""
    path, label = Path(word), ""
    if not path.exists() and "=" in word:
        label, _, rest = word.partition("=")
        path = Path(rest)
    if not path.exists():
        raise RftError(f"{path}: no such file or folder")
    whole = path.resolve()
    # A folder's name may hold a point that begins no suffix: Qwen2.5-0.5B.
    label = label or (whole.stem if path.is_file() else whole.name)
    if path.is_file():
        if not path.stat().st_size:
            raise RftError(f"{path}: the file is empty")
        if verdicts.is_logged(path):
            return _logged({label: [path]}, path, metric)
        return Given([Source(run, label, path) for run in verdicts.read(path, label)])
    if (path / "stages").is_dir():
        return _run(path, label)
    here = sorted(path.glob("samples_*.jsonl"))
    # The harness makes a folder for each model.
    inner = {p.name: sorted(p.glob("samples_*.jsonl")) for p in sorted(path.iterdir()) if p.is_dir()}  # fmt: skip
    found = {label: here} if here else {name: files for name, files in inner.items() if files}
    if not found:
        raise RftError(
            f"{path}: neither a run folder (it has no stages/), nor one with samples_*.jsonl of "
            "lm-evaluation-harness (--log_samples)"
        )
    if len(found) == 1:
        found = {label: next(iter(found.values()))}
    return _logged(found, path, metric)


def _logged(files: dict[str, list[Path]], path: Path, metric: str | None) -> Given:
    sources, told = [], []
    for name, paths in files.items():
        run, judged = verdicts.logged(paths, name, metric)
        sources.append(Source(run, name, path, {"lm-eval": judged}))
        told.append(f"{name}: lm-evaluation-harness's {', '.join(judged)}.")
    return Given(sources, notes=told)


def _run(path: Path, label: str) -> Given:
    config = _config(path)
    job = {"arms": entries(path)}
    faults = [*integrity.run_faults(path), *load.faults(job)]
    sources, absent = [], set()
    for entry in job["arms"]:
        absent |= set(entry.pop("absent"))
        with integrity.fitting(faults):
            run = load.arm_run(entry)
        scorer = StageDir(run.folders["eval_score"]).inputs() or {}
        judged = {k: scorer.get("inputs", {}).get(k) for k in ("score", "combine")}
        sources.append(Source(run, label, path, judged, _settings(config, run.arm)))
    notes = []
    if absent:
        told = ", ".join(sorted(absent))
        notes.append(f"{path}: not here, so parts of the report are left out: {told}.")
    if any(_is_beyond(name.rpartition("/")[2]) for name in integrity.links(path)):
        notes.append(
            f"{path}: its number formats and tasks of lm-evaluation-harness are in its own report "
            "(`rft report`) alone."
        )
    return Given(sources, config, faults, notes)


def _is_beyond(link: str) -> bool:
    """Whether a link leads to an evaluation that is in the run's own report alone."""
    return link.startswith(("6_eval_", "7_")) and link.removesuffix("_seen") not in EVALUATION


def _config(path: Path) -> dict[str, Any]:
    file = path / "experiment.yaml"
    try:
        told = yaml.safe_load(file.read_text())
        if not isinstance(told, dict) or not isinstance(told.get("arms") or {}, dict):
            raise RftError(f"{file}: is no experiment")
        Compare.model_validate(told.get("compare") or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise RftError(f"{file}: cannot be read: {fault}") from None
    except ValidationError as fault:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors())
        raise RftError(
            f"{file}: compare: {said}: put back the file that `rft run` wrote, or give `rft run` again"
        ) from None
    return dict(told)


def _settings(config: dict[str, Any], arm: str) -> dict[str, Any] | None:
    own = (config.get("arms") or {}).get(arm.partition("@")[0])
    body = {key: config[key] for key in Arm.model_fields if key in config}
    return None if own is None else merge(body, own)


def entries(run: Path) -> list[dict[str, Any]]:
    """The report's job (rft/runner.py) for each arm and seed, by the run's links alone: the config's
    data and models need not be here. `absent`: kinds of stages that a copy lacks. Raises RftError for an
    arm that is not evaluated."""
    homes: dict[str, dict[str, str]] = {}
    for name, stage in integrity.links(run).items():
        home, _, link = name.rpartition("/")
        homes.setdefault(home, {})[link] = str(_place(run, name, stage))
    return [_entry(run, home, link) for home, link in homes.items()]


def _place(run: Path, link: str, stage: str) -> Path:
    # The link, so that one which was changed by hand is followed and told of; a copy may have none.
    return (run / link).resolve() if (run / link).exists() else run / "stages" / stage


def _entry(run: Path, home: str, link: dict[str, str]) -> dict[str, Any]:
    arm, _, seed = home.rpartition("/seed")
    for name in EVALUATION:
        if name not in link or StageDir(Path(link[name])).manifest() is None:
            raise RftError(
                f"{run}: arm {arm}, seed {seed} is not evaluated yet ({name} is missing or not "
                "finished): `rft run` goes on with it"
            )
    here = {n: place for n, place in link.items() if StageDir(Path(place)).manifest() is not None}
    pools = [
        {"name": n.removeprefix("2_sample").removeprefix("_"), "sample": here[n], "score": here[s]}
        for n in here
        if n.startswith("2_sample") and n != "2_sample_reference"
        if (s := n.replace("2_sample", "3_score")) in here
    ]
    scorer = StageDir(Path(link["6_eval_score"])).inputs() or {}
    entry = {
        "arm": arm,
        "seed": int(seed),
        "pools": pools,
        "scorers": [s.get("use", "") for s in scorer.get("inputs", {}).get("score", [])],
        "absent": sorted(n for n in link.keys() - here.keys()),
    }
    for stage, name in (
        ("prompts", "1_prompts"),
        ("select", "4_select"),
        ("train", "5_train"),
        ("eval_sample", "6_eval_sample"),
        ("eval_score", "6_eval_score"),
        ("eval", "6_eval"),
    ):
        entry[stage] = here.get(name)
    seen = {name.removeprefix("6_"): here.get(f"{name}_seen") for name in EVALUATION}
    entry["seen"] = seen if all(seen.values()) else None
    return entry
