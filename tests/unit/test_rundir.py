"""Run folders: the lock holds, a manifest is whole or absent, changes have names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rft import rows, rundir
from rft.rundir import StageDir
from rft.types import ChoiceRow, RftError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, pathlib
from rft import rundir
with rundir.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
LEAVES_A_CHILD = """
import subprocess, sys, pathlib
from rft import rundir
with rundir.lock(pathlib.Path(sys.argv[1])) as handle:
    subprocess.Popen(["sleep", "1.5"], pass_fds=(handle,), stdout=subprocess.DEVNULL)
    print("held", flush=True)
    sys.stdin.read()
"""


def started(code: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_lock_of_a_second_process_is_refused_until_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = started(HOLD, folder)
    try:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(RftError, match=f"in use by process {other.pid}") as fault:
            with rundir.lock(folder):
                pass
        assert "name=" in str(fault.value)
    finally:
        other.kill()
        other.communicate()
    with rundir.lock(folder):
        assert (folder / ".lock").read_text() == f"process {os.getpid()}"
    with rundir.lock(folder):
        pass


def test_lock_outlives_its_owner_in_a_child_that_has_the_descriptor(tmp_path: Path) -> None:
    """A stage that still writes keeps the folder, even when its runner is gone."""
    child = None
    try:
        with rundir.lock(tmp_path) as handle:
            child = subprocess.Popen(["sleep", "60"], pass_fds=(handle,))
        with pytest.raises(RftError, match="in use"), rundir.lock(tmp_path):
            pass
    finally:
        assert child is not None
        child.kill()
        child.wait()
    with rundir.lock(tmp_path):
        pass


def test_after_a_kill_its_stage_is_given_a_moment_to_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = started(LEAVES_A_CHILD, tmp_path)
    assert owner.stdout and owner.stdout.readline() == b"held\n"
    owner.kill()
    owner.communicate()
    monkeypatch.setattr(rundir, "LEAVE_S", 0.2)
    with pytest.raises(RftError, match="in use"), rundir.lock(tmp_path):
        pass
    monkeypatch.undo()
    with rundir.lock(tmp_path):
        pass


def finished(folder: Path) -> StageDir:
    stage = StageDir(folder)
    stage.begin("select", {"kind": "select", "k": 4})
    rows.write_part(folder / "choices", [ChoiceRow("c", "p", None)], ChoiceRow)
    stage.commit(2.0, rows=1)
    return stage


def test_stage_is_done_when_its_manifest_is_there(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "s")
    assert stage.inputs() is None and stage.manifest() is None and stage.check() is None
    stage.begin("select", {"k": 4})
    before = (stage.path / "stage.json").stat().st_mtime_ns
    inputs = stage.inputs()
    assert inputs is not None and inputs["inputs"] == {"k": 4} and stage.manifest() is None
    stage.begin("select", {"k": 4})
    assert (stage.path / "stage.json").stat().st_mtime_ns == before
    manifest = finished(tmp_path / "t").manifest()
    assert manifest is not None
    assert manifest["rows"] == 1 and manifest["seconds"] == 2
    assert set(manifest["files"]) == {"stage.json", "choices/part-00000.parquet"}


def test_files_that_are_not_results_are_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in (".part-00000.parquet.tmp", "part-00000.parquet.torn", "manifest.json"):
        (tmp_path / "s" / name).write_text("{")
    stage = finished(tmp_path / "s")
    manifest = stage.manifest()
    assert manifest is not None
    assert set(manifest["files"]) == {"stage.json", "choices/part-00000.parquet"}
    assert stage.check() is None


def test_what_is_wrong_with_a_finished_stage_is_named(tmp_path: Path) -> None:
    stage = finished(tmp_path / "s")
    part = stage.path / "choices" / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-7])
    assert stage.check() == (
        f"choices/part-00000.parquet has {len(whole) - 7} bytes instead of {len(whole)}"
    )
    part.unlink()
    assert stage.check() == "choices/part-00000.parquet is missing"
    stage.reopen()
    assert stage.manifest() is None and stage.inputs() is not None
    stage.reopen()


def test_torn_manifest_means_not_finished(tmp_path: Path) -> None:
    stage = finished(tmp_path / "s")
    path = stage.path / "manifest.json"
    for torn in (path.read_bytes()[:30], b"", b"\x00" * 64, b"\xff\xfe\x00"):
        path.write_bytes(torn)
        assert stage.manifest() is None
        assert stage.check() is None
    finished(tmp_path / "s")
    assert stage.manifest() is not None and stage.check() is None


def test_changes_are_named() -> None:
    old = {"decoding": {"n": 8, "stop": []}, "weights": "abc", "gone": 1, "same": {"a": [1]}}
    new = {"decoding": {"n": 9, "stop": []}, "weights": "abd", "come": {"x": 2}, "same": {"a": [1]}}
    assert rundir.changes(old, new) == [
        "come.x: null -> 2",
        "decoding.n: 8 -> 9",
        "gone: 1 -> null",
        'weights: "abc" -> "abd"',
    ]
    assert rundir.changes(new, new) == []
    (line,) = rundir.changes({"k": "a" * 500}, {"k": "b"})
    assert len(line) < 90 and "..." in line


def test_link_is_relative_and_follows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("one", "two"):
        (run / "stages" / name).mkdir(parents=True)
        (run / "stages" / name / "what").write_text(name)
    place = run / "rft" / "seed0" / "2_sample"
    rundir.link(place, run / "stages" / "one")
    rundir.link(place, run / "stages" / "one")
    assert (place / "what").read_text() == "one"
    rundir.link(place, run / "stages" / "two")
    assert (place / "what").read_text() == "two"
    run.rename(tmp_path / "moved")
    assert (tmp_path / "moved/rft/seed0/2_sample/what").read_text() == "two"


def test_link_to_a_stage_that_is_not_there_yet(tmp_path: Path) -> None:
    rundir.link(tmp_path / "a", tmp_path / "stages" / "later")
    rundir.link(tmp_path / "a", tmp_path / "stages" / "later")
    assert (tmp_path / "a").is_symlink() and not (tmp_path / "a").exists()


def test_model_digest_follows_content(tmp_path: Path) -> None:
    def write(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return rundir.model_digest(str(tmp_path), None)

    big = bytes(10 << 20)
    seen = [
        write("config.json", b"{}"),
        write("model.safetensors", b"weights"),
        write("model.safetensors", b"weightz"),
        write("tokenizer.json", b"{}"),
        write("model.safetensors", big),
        # A tensor in the middle, as of a model that was trained and saved over itself.
        write("model.safetensors", big[: 4 << 20] + b"\1" * (2 << 20) + big[6 << 20 :]),
        write("model.safetensors", big + b"\1"),
    ]
    assert len(set(seen)) == len(seen)
    assert write("README.md", b"words") == seen[-1]
    os.utime(tmp_path / "config.json", (1, 1))
    assert rundir.model_digest(str(tmp_path), None) == seen[-1]


def test_model_digest_of_a_hub_name_holds_its_revision() -> None:
    digests = {
        rundir.model_digest(name, revision) for name in ("a/b", "a/c") for revision in (None, "1")
    }
    assert len(digests) == 4
