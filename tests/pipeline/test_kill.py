"""SIGKILL at random moments of every stage, then resume: as if nothing had happened."""

import random
from functools import partial
from pathlib import Path

from rft import rows, rundir
from rft.types import Candidate, ChoiceRow, ProblemRow, ScoreRow
from tests.pipeline.conftest import (
    ALONE,
    SIGINT,
    SIGKILL,
    command,
    copy,
    rft,
    stage_processes,
    stop,
    until,
    written,
)

MOMENTS = {
    "prompts (": 0.3,
    "sample (rft": 11,
    "score (rft": 1.2,
    "select (rft": 3,
    "train (rft": 14,
    "eval sample (rft": 8,
}
"""Line of output at which a stage begins, and how long it lasts here at the most, in seconds."""
ROUNDS = 1
"""How often each of these is killed. A stage that is begun again is killed again."""
MORE = 18
"""Samples of each prompt, of which a finished run has 8: enough to be stopped twice on the way."""


def contents(run: Path) -> dict[str, object]:
    """What a run holds, by stage folder: row ids, verdicts, choices."""
    found: dict[str, object] = {}
    for folder in sorted((run / "stages").iterdir()):
        assert rundir.StageDir(folder).manifest() is not None, folder
        kind = folder.name.split("-")[0]
        if kind == "sample":
            found[folder.name] = sorted(
                (r.id, r.prompt_id, r.index) for r in rows.read(folder, Candidate)
            )
        elif kind == "score":
            found[folder.name] = sorted((r.id, r.verdict) for r in rows.read(folder, ScoreRow))
        elif kind == "select":
            found[folder.name] = sorted(r.id for r in rows.read(folder / "choices", ChoiceRow))
        elif kind == "eval":
            found[folder.name] = sorted(r.prompt_id for r in rows.read(folder, ProblemRow))
        elif kind == "train":
            assert (folder / "adapter_model.safetensors").is_file()
            found[folder.name] = None
    return found


def made_twice(run: Path) -> list[str]:
    """Folders whose parts hold an id more than once: it was made again after it was kept."""
    folders = [f for kind in ("sample", "score") for f in (run / "stages").glob(f"{kind}-*")]
    return [f.name for f in folders if len(written(f)) != len(set(written(f)))]


def begun(lines: list[str], text: str) -> bool:
    """Whether one of the stages has begun: the first may have ended in an earlier round."""
    return any(line in text for line in lines)


def test_killed_at_any_moment_a_run_ends_as_if_undisturbed(tmp_path: Path) -> None:
    settings = [*ALONE, "eval.use=transformers"]
    undisturbed, runs = tmp_path / "undisturbed", tmp_path / "killed"
    done = rft(*command("run", undisturbed, *settings), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    chance = random.Random(0)
    hit: list[tuple[str, float]] = []
    lines = list(MOMENTS)
    for at in sorted([*range(len(lines))] * ROUNDS):
        delay = chance.uniform(0, MOMENTS[lines[at]])
        log = tmp_path / f"{at}-{len(hit)}.log"
        args = command("run", runs, *settings)
        if stop(args, partial(begun, lines[at:]), SIGKILL, log, delay) is not None:
            hit.append((lines[at], round(delay, 1)))
        until(lambda: not stage_processes(runs), 10)
    # A run that ends before its moment is not hit; that must stay the exception.
    assert len(hit) > 0.75 * ROUNDS * len(lines), hit
    done = rft(*command("run", runs, *settings), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(runs / "quickstart") == contents(undisturbed / "quickstart")
    assert not made_twice(runs / "quickstart")


def has_more(link: Path, ids: set[str], _: str = "") -> bool:
    return ids < rows.ids(link.resolve())


def test_what_vllm_has_drawn_is_kept_and_only_the_rest_is_drawn(
    finished: Path, tmp_path: Path
) -> None:
    """Samples are added to a finished run, with a SIGKILL and a Ctrl-C on the way."""
    runs = copy(finished, tmp_path)
    args = command("sample", runs, f"sample.n={MORE}", "--update")
    link = runs / "quickstart/rft/seed0/2_sample"
    kept = rows.ids(link.resolve())
    assert len(kept) == 100 * 8
    for how, expected in ((SIGKILL, -SIGKILL), (SIGINT, 130)):
        code = stop(args, partial(has_more, link, kept), how, tmp_path / "log")
        text = (tmp_path / "log").read_text()
        assert code == expected and "Traceback" not in text, text
        assert how == SIGKILL or "go on from here" in text
        until(lambda: not stage_processes(runs), 10)
        assert has_more(link, kept)
        kept = rows.ids(link.resolve())
    assert len(kept) < 100 * MORE
    done = rft(*args, timeout=600)
    assert done.returncode == 0, done.stderr
    folder = link.resolve()
    manifest = rundir.StageDir(folder).manifest()
    assert manifest is not None and manifest["rows"] == 100 * MORE
    assert manifest["engine"]["requests"] == 100 * MORE - len(kept)
    assert kept < rows.ids(folder) and len(written(folder)) == 100 * MORE
