"""`rft compare`: the report's comparison, over any runs and over verdicts made elsewhere."""

import shlex
from pathlib import Path
from typing import Any

from rft import integrity
from rft.report import sources
from rft.report.compare import headline_arm
from rft.report.sources import Given, Source
from rft.report.unite import unite
from rft.stages import report
from rft.types import RftError

RESAMPLES = 10_000


def compare(
    given: list[str],
    *,
    baseline: str | None = None,
    arm: str | None = None,
    level: float | None = None,
    margin: float | None = None,
    out: Path | None = None,
    metric: str | None = None,
    intersect: bool = False,
    flagged: bool = False,
) -> None:
    """Compares the arms of what is given, prints the table, and writes the report to `out` if there is one.

    given: paths, each a run folder, samples of lm-evaluation-harness (a file or a folder of them) or a file
    of verdicts, with a label before it if there is one (`label=path`). flagged: go on where a run was
    changed by hand, or arms were judged by different scorers; the report says so at its top.
    Raises RftError.
    """
    asked = {"baseline": baseline, "arm": arm, "level": level, "margin": margin, "metric": metric}
    command = _command(given, {**asked, "out": out, "intersect": intersect, "flagged": flagged})
    found = [sources.read(word, metric) for word in given]
    changed = _faults(found, flagged)
    united = unite([s for one in found for s in one.sources], intersect, flagged)
    configs = [one.config for one in found if one.config]
    settings = (configs[0].get("compare") or {}) if configs else {}
    level = settings.get("level", 0.95) if level is None else level
    if not 0.5 < level < 1:
        raise RftError(f"--level {level}: a level is above 0.5 and below 1, such as 0.95")
    margin = settings.get("margin") if margin is None else margin
    if margin is not None and not 0 < margin < 1:
        raise RftError(f"--margin {margin}: a fraction above 0 and below 1 (0.01 is one point)")
    runs = [source.run for source in united.sources]
    arms = list(dict.fromkeys(run.arm for run in runs))
    chosen = _chosen("--baseline", baseline, arms) or _baseline(configs, arms)
    job = {
        "folder": str(out) if out else None,
        "name": ", ".join(dict.fromkeys(s.label for one in found for s in one.sources)),
        "command": command,
        "config": _config(found),
        "level": level,
        "resamples": settings.get("resamples", RESAMPLES),
        "margin": margin,
        "baseline": chosen,
        "headline": _headline(_chosen("--arm", arm, arms), chosen),
        "k": _ks(configs, united.sources),
        "flags": changed + united.flags,
        "notes": [note for one in found for note in one.notes] + united.notes,
        "arms": [
            {"arm": s.run.arm, "seed": s.run.seed, "settings": s.settings} for s in united.sources
        ],
    }
    job["headline"] = job["headline"] or headline_arm(runs, chosen)
    _refuse_unpaired(united.sources, chosen, job["headline"])
    with integrity.fitting(changed):
        report.write(job, runs)


def _command(given: list[str], options: dict[str, Any]) -> str:
    words = ["rft", "compare", *given]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)


def _faults(found: list[Given], flagged: bool) -> list[str]:
    faults = [fault for one in found for fault in one.faults]
    if not flagged:
        integrity.refuse(faults)
    return [f"this was changed after the run had written it: {fault}." for fault in faults]


def _chosen(option: str, name: str | None, arms: list[str]) -> str | None:
    if name is not None and name not in arms:
        raise RftError(f"{option} {name}: there is no such arm; there are {', '.join(arms)}")
    return name


def _baseline(configs: list[dict[str, Any]], arms: list[str]) -> str:
    """That of the first experiment, of the first run that has it; else the first arm."""
    told = (configs[0].get("compare") or {}).get("baseline", "sft") if configs else None
    return next(
        (arm for arm in arms if told and arm in (told, f"{arm.partition('/')[0]}/{told}")), arms[0]
    )


def _headline(arm: str | None, baseline: str) -> str | None:
    if arm == baseline:
        raise RftError(f"--arm {arm}: it is the baseline: name another with --baseline")
    return arm


def _config(found: list[Given]) -> dict[str, Any]:
    """What the page shows as the experiment: one as it is, several by the label of their run, with the
    settings of the comparison (prices, examples) of the first."""
    told: dict[str, Any] = {}
    for one in found:
        if one.config:
            label, path = one.sources[0].label, one.sources[0].path
            told[label if label not in told else str(path)] = one.config
    if len(told) == len(found) == 1:
        return next(iter(told.values()))
    compared = [one.get("compare") or {} for one in told.values()]
    return {"runs": told, "compare": compared[0] if compared else {}}


def _ks(configs: list[dict[str, Any]], found: list[Source]) -> list[int]:
    """The runs' own, and the powers of two up to the samples that every problem has."""
    own = {k for config in configs for k in (config.get("eval") or {}).get("k", [])}
    least = min(int(source.run.n_P.min()) for source in found)
    return sorted(own | {1 << i for i in range(least.bit_length())})


def _refuse_unpaired(found: list[Source], baseline: str, headline: str | None) -> None:
    """All arms are compared with the baseline, and the headline arm with all."""
    seeds: dict[str, set[int]] = {}
    for source in found:
        seeds.setdefault(source.run.arm, set()).add(source.run.seed)
    for name, option in ((baseline, "--baseline"), (headline, "--arm")):
        if name is None:
            continue
        for arm in seeds:
            if not seeds[arm] & seeds[name]:
                raise RftError(
                    f"arm {arm} has seeds {_listed(seeds[arm])} and {name}, which all are compared with, "
                    f"{_listed(seeds[name])}: none is in both. Run them with the same `seeds`, leave one out, "
                    f"or name another {option}"
                )


def _listed(seeds: set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))
