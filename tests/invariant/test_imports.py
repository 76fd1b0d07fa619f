"""Imports point down, and heavy libraries stay where they belong, as docs and design promise."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rft"

LEVELS = [
    {"cli"},
    {"check", "compare", "export", "runner", "show", "doctor", "reference"},
    {"cards", "forecast", "mend", "merge", "spawn"},
    {"dataset"},
    {"pilots"},
    {"plan"},
    {"harness"},
    {"identity", "nodes"},
    {"stages"},
    {"sampling"},
    {"verdicts"},
    {"scoring", "weights"},
    {"samplers", "allocators", "scorers", "selectors", "training", "report"},
    {"collapse"},
    {
        "process",
        "prompts",
        "workers",
        "chat",
        "rundir",
        "rows",
        "components",
        "precision",
        "stats",
        "paired",
        "power",
        "groups",
        "combine",
        "equations",
        "formats",
        "tallies",
        "loops",
        "server",
        "hub",
        "hosts",
        "cluster",
        "spread",
        "overlap",
        "integrity",
    },
    {"loader"},
    {"config"},
    {"config_decoding"},
    {"config_train", "config_inference", "config_harness", "config_compare"},
    {"section"},
    {"faults", "types"},
]
"""From the top down. A file imports from its own level or a lower one, never from a higher."""

WITHIN = {
    ("rundir", "rows"),
    ("integrity", "rows"),
    ("integrity", "rundir"),
    ("prompts", "components"),
    ("groups", "rows"),
    ("tallies", "equations"),
    ("loops", "stats"),
    ("paired", "stats"),
    ("power", "paired"),
    ("power", "stats"),
    ("workers", "process"),
    ("hosts", "process"),
    ("cluster", "hosts"),
    ("spread", "cluster"),
    ("spread", "hosts"),
    ("spread", "workers"),
}
"""Imports within the level of helpers, so that none of them goes round in a circle."""

LEAVES = ("stages", "samplers", "allocators", "scorers", "selectors")
"""Folders whose files never import one another, but for helpers that begin with `_`."""


def files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def unit(name: str) -> str:
    """`rft.stages.score` -> `stages`; `rft.plan` -> `plan`."""
    return name.split(".")[1] if "." in name else ""


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports when it runs, inside functions as well."""
    known = {module(p) for p in files()} | {module(p.parent) for p in PACKAGE.rglob("*.py")}
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the top, not relative ones"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else str(node.module))
    return found


def own(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "rft"}


def level(name: str) -> int:
    found = [i for i, units in enumerate(LEVELS) if name in units]
    assert len(found) == 1, f"rft/{name} has no level here: give it one"
    return found[0]


def test_reading_of_imports() -> None:
    """The other tests would pass if nothing were found."""
    assert "rft.scoring" in own(PACKAGE / "check.py")
    assert {"rft.rows", "rft.workers", "rft.types"} <= own(PACKAGE / "scoring.py")
    assert "rft.runner" in own(PACKAGE / "cli.py")
    assert len(files()) > 25


@pytest.mark.parametrize("path", files(), ids=module)
def test_imports_point_down(path: Path) -> None:
    here = unit(module(path))
    for name in own(path):
        there = unit(name)
        if there in ("", here):
            continue
        if level(there) == level(here):
            assert (here, there) in WITHIN, f"{module(path)} -> {name}"
        else:
            assert level(there) > level(here), f"{module(path)} -> {name} points up"


def test_helpers_have_no_circle() -> None:
    assert not {(b, a) for a, b in WITHIN} & WITHIN


@pytest.mark.parametrize("folder", LEAVES)
def test_leaves_do_not_import_one_another(folder: str) -> None:
    for path in sorted((PACKAGE / folder).glob("*.py")):
        # A helper belongs to its leaf and may know it.
        others = set() if path.name.startswith("_") else own(path)
        for name in others:
            if unit(name) == folder and name.count(".") == 2:
                assert name.rpartition(".")[2].startswith("_"), f"{module(path)} -> {name}"


def importers(library: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in files()
        if any(name.split(".")[0] == library for name in imports(path))
    }


def test_vllm_is_imported_in_one_file_of_a_kind() -> None:
    # The doctor asks whether it can be imported, in a process of its own.
    assert importers("vllm") - {"doctor.py"} == {
        "samplers/vllm.py",
        "samplers/_vllm_patches.py",
        "scorers/_vllm.py",
    }


MODELS = ("scorers/reward_model.py", "selectors/_embedding.py")
"""Scorers and selectors that run a model."""


def test_torch_stays_with_what_computes() -> None:
    for library in ("torch", "accelerate", "peft", "safetensors"):
        for name in importers(library) - {"doctor.py"}:
            places = (
                "precision.py",
                "merge.py",
                "training/",
                "samplers/",
                "stages/train.py",
                "stages/harness.py",
                *MODELS,
            )
            assert name.startswith(places), f"{name} imports {library}"
    assert importers("torch")


def test_every_file_opens_with_its_reason_and_is_short() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert text.count("\n") <= 500, f"{path} is too long to read"
