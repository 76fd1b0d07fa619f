"""docs/configuration.md documents every argument of every built-in component."""

import inspect
import subprocess
import sys

import pytest

from rft import components, reference

BUILT_IN = [
    (kind, name)
    for kind in reference.KINDS
    for name in (["hf", "jsonl"] if kind == "prompts" else components.builtin_names(kind))
]


def part(name: str) -> str:
    """The text under a component's heading."""
    _, found, rest = reference.reference().partition(f"\n### `{name}`\n")
    assert found, name
    return rest.split("\n#", 1)[0]


@pytest.mark.parametrize("kind, name", BUILT_IN)
def test_every_built_in_has_its_docstring_and_arguments(kind: str, name: str) -> None:
    shown = part(name)
    assert len(shown.strip().split("\n")[0]) > 20
    own = components.parameters(kind, name)
    rows = [line.split("`")[1] for line in shown.split("\n") if line.startswith("| `")]
    assert rows == own
    for given in ("setup", "groups", "candidate"):
        assert f"| `{given}` |" not in shown


def test_rows_and_prose_of_a_component() -> None:
    shown = part("answer")
    assert '| `marker` | str | `"####"` | What the answer follows, ' in shown
    assert "| `tolerance` | float | `0.0` | Largest relative difference " in shown
    assert "A percent sign is a unit" in shown
    assert "tolerance: " not in shown
    assert "| `k` | int | `4` | Most sampled candidates " in part("cap")
    assert "| `train` | str | (needed) | Path " in part("jsonl")
    assert "| `revision` | str \\| null | `null` | Hub revision; " in part("hf")
    assert "|" not in part("correct")
    # Of a sampler, what its file opens with, and no more.
    text = inspect.getdoc(sys.modules["rft.samplers.vllm"])
    assert text is not None
    assert part("vllm").strip() == " ".join(text.split("\n\n")[0].split())
    assert part("replay").startswith("\nNot a model: samples that are there already")
    assert '| `repeats` | `drop` \\| `keep` | `"drop"` | `drop` leaves out ' in part("replay")


def test_paths_are_explained() -> None:
    intro = reference.reference().split("## ")[0]
    assert "`~/`" in intro and "command line relative to the\ncurrent folder" in intro


def test_it_needs_no_heavy_library() -> None:
    code = (
        "import sys; from rft import reference; reference.reference(); "
        "print([m for m in ('torch', 'vllm', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
