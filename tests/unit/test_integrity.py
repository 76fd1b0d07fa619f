"""One thing changed by hand in a finished run: the report refuses, and names the file."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rft import integrity, rows
from rft.report import load
from rft.rundir import StageDir, read_json, to_json
from rft.stages import report
from rft.types import ProblemRow, RftError, ScoreRow, TrainRow, Verdict, digest
from tests.synthetic import build


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return build(tmp_path, ("sft", "rft"), problems=20, eval_n=2, resamples=50)


def replaced(folder: Path, row_type: type, change: Callable[[Any], Any]) -> Path:
    """The first row of a folder changed, the other rows as they were."""
    (part,) = rows.parts(folder)
    first, *rest = rows.read(folder, row_type)
    part.unlink()
    assert rows.write_part(folder, [change(first), *rest], row_type) == part
    return part


def entry(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in job["arms"] if one["arm"] == "rft")
    return found


def a_verdict(job: dict[str, Any]) -> Path:
    turned = {Verdict.CORRECT: Verdict.WRONG}
    return replaced(
        Path(entry(job)["eval_score"]),
        ScoreRow,
        lambda r: dataclasses.replace(r, verdict=turned.get(r.verdict, Verdict.CORRECT)),
    )


def an_evaluated_row(job: dict[str, Any]) -> Path:
    return replaced(
        Path(entry(job)["eval"]),
        ProblemRow,
        lambda r: dataclasses.replace(r, correct=2 - r.correct, hits=tuple(not h for h in r.hits)),
    )


def a_training_row(job: dict[str, Any]) -> Path:
    return replaced(
        Path(entry(job)["select"]) / "train",
        TrainRow,
        lambda r: dataclasses.replace(r, weight=2.0),
    )


def one_row_more(job: dict[str, Any]) -> Path:
    folder = Path(entry(job)["eval"])
    one = next(iter(rows.read(folder, ProblemRow)))
    made = rows.write_part(folder, [dataclasses.replace(one, prompt_id="new")], ProblemRow)
    assert made
    return made


def a_row_taken_away(job: dict[str, Any]) -> Path:
    folder = Path(entry(job)["eval"])
    (part,) = rows.parts(folder)
    rest = list(rows.read(folder, ProblemRow))[1:]
    part.unlink()
    rows.write_part(folder, rest, ProblemRow)
    return part


def a_setting(job: dict[str, Any]) -> Path:
    path = Path(entry(job)["train"]) / "stage.json"
    path.write_text(path.read_text().replace("rft-0", "sft-0"))
    return path


def a_loss(job: dict[str, Any]) -> Path:
    path = Path(entry(job)["train"]) / "metrics.jsonl"
    path.write_text(path.read_text().replace("1", "2", 1))
    return path


def a_manifest(job: dict[str, Any]) -> Path:
    path = Path(entry(job)["select"]) / "manifest.json"
    path.write_text(path.read_text().replace('"rows": ', '"rows": 9'))
    return path


CHANGES = [
    a_verdict,
    an_evaluated_row,
    a_training_row,
    one_row_more,
    a_row_taken_away,
    a_setting,
    a_loss,
    a_manifest,
]


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_refused_and_its_file_named(
    job: dict[str, Any], change: Callable[[dict[str, Any]], Path]
) -> None:
    report.run([job])
    before = (Path(job["folder"]) / "comparison.json").read_bytes()
    file = change(job)
    with pytest.raises(RftError, match="not as it was written") as fault:
        report.run([job])
    assert f"{file}: " in str(fault.value)
    assert (Path(job["folder"]) / "comparison.json").read_bytes() == before


def test_verdicts_made_anew_do_not_fit_the_old_count(job: dict[str, Any]) -> None:
    """Each stage is whole, and yet they do not belong together."""
    a_verdict(job)
    stage = StageDir(Path(entry(job)["eval_score"]))
    (stage.path / "manifest.json").unlink()
    stage.commit(0.0)
    (found,) = load.faults(job)
    assert "1 problems are not what the verdicts" in str(found)
    assert found.file == Path(entry(job)["eval"])


def test_a_manifest_that_tells_no_digests_is_a_fault(job: dict[str, Any]) -> None:
    stage = StageDir(Path(entry(job)["eval"]))
    manifest = stage.manifest() or {}
    for wrong in ({**manifest, "files": {"part-00000.parquet": 7}}, {"rows": 1}, []):
        (stage.path / "manifest.json").write_bytes(to_json(wrong))
        (found,) = integrity.stage_faults(stage)
        assert found.file == stage.path / "manifest.json"


def test_what_a_killed_stage_left_is_no_row(job: dict[str, Any]) -> None:
    stage = StageDir(Path(entry(job)["eval"]))
    (part,) = rows.parts(stage.path)
    (stage.path / ".scratch").mkdir()
    shutil.copy(part, stage.path / ".scratch" / part.name)
    assert not list(integrity.stage_faults(stage))


def test_a_folder_of_another_key_is_found(job: dict[str, Any]) -> None:
    place = Path(entry(job)["eval"])
    other = place.with_name("eval-0123456789ab")
    place.rename(other)
    (found,) = integrity.stage_faults(StageDir(other))
    assert str(found) == f"{other}/stage.json: belongs to a folder called {place.name}"


def test_weights_may_be_left_behind(job: dict[str, Any]) -> None:
    stage = StageDir(Path(entry(job)["train"]))
    (stage.path / "adapter_model.safetensors").write_bytes(b"weights")
    (stage.path / "manifest.json").unlink()
    stage.commit(0.0)
    assert not list(integrity.stage_faults(stage))
    (stage.path / "adapter_model.safetensors").unlink()
    assert not list(integrity.stage_faults(stage))
    (stage.path / "metrics.jsonl").unlink()
    assert [f.why for f in integrity.stage_faults(stage)] == ["is missing"]


@pytest.fixture
def sealed(job: dict[str, Any], tmp_path: Path) -> Path:
    """The run with its settings and links, as `rft run` lays it out."""
    (tmp_path / "experiment.yaml").write_text("train: {lr: 0.001}\n")
    links = {}
    for one in job["arms"]:
        home = tmp_path / one["arm"] / f"seed{one['seed']}"
        home.mkdir(parents=True)
        (home / "6_eval").symlink_to(f"../../stages/{Path(one['eval']).name}")
        links[f"{one['arm']}/seed{one['seed']}/6_eval"] = Path(one["eval"]).name
    integrity.seal(tmp_path, links)
    assert not list(integrity.run_faults(tmp_path))
    return tmp_path


def test_settings_and_links_are_held(sealed: Path) -> None:
    config = sealed / "experiment.yaml"
    config.write_text("train: {lr: 0.002}\n")
    assert [f.file for f in integrity.run_faults(sealed)] == [config]
    config.write_text("train: {lr: 0.001}\n")
    link = sealed / "rft" / "seed0" / "6_eval"
    other = sealed / "sft" / "seed0" / "6_eval"
    link.unlink()
    link.symlink_to(other.readlink())
    (found,) = integrity.run_faults(sealed)
    assert found.file == link
    assert "and was one to eval-" in found.why
    link.unlink()
    (found,) = integrity.run_faults(sealed)
    assert "is missing" in found.why


def test_a_copy_that_followed_the_links_is_whole(sealed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sealed, copy, ignore=shutil.ignore_patterns("copy"))
    assert not (copy / "rft" / "seed0" / "6_eval").is_symlink()
    assert not list(integrity.run_faults(copy))
    assert not list(integrity.stage_faults(StageDir(copy / "rft" / "seed0" / "6_eval")))


def test_what_holds_the_settings_is_held_too(sealed: Path) -> None:
    path = sealed / "run.json"
    told = read_json(path)
    path.write_bytes(to_json({**told, "experiment": digest("other")}))
    assert path in [f.file for f in integrity.run_faults(sealed)]
    path.unlink()
    with pytest.raises(RftError, match=r"run\.json: is missing.*rft run"):
        list(integrity.run_faults(sealed))


def test_a_comparison_tells_what_it_was_made_of(job: dict[str, Any]) -> None:
    report.run([job])
    told = json.loads((Path(job["folder"]) / "comparison.json").read_text())["made_of"]
    used = {Path(one[k]).name for one in job["arms"] for k in load.STAGES if one.get(k)}
    used |= {Path(p[k]).name for one in job["arms"] for p in one["pools"] for k in ("sample", "score")}  # fmt: skip
    assert set(told) == used
    for name, value in told.items():
        manifest = StageDir(Path(entry(job)["eval"]).parent / name).manifest()
        assert manifest and manifest["digest"] == value
