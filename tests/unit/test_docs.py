"""What the pages show works: the recipes of docs/scoring.md pass `rft check` on data of the form that
they name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, LlamaConfig

import rft
from rft.scorers import _sandbox

ROOT = Path(__file__).resolve().parents[2]
BASE = Path(rft.__file__).parent / "embedded" / "model"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

MATH = [
    {"problem": "What is $2^3$?", "solution": "It is $\\boxed{8}$.", "type": "Algebra"},
    {
        "problem": "Halve $\\pi$.",
        "solution": "It is $\\boxed{\\frac{\\pi}{2}}$.",
        "type": "Geometry",
    },
]
CODE = [
    {
        "prompt": f'def add_{n}(a):\n    """Adds {n}."""\n',
        "canonical_solution": f"    return a + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        "entry_point": f"add_{n}",
    }
    for n in (2, 3)
]
DATA = {
    "math_train.jsonl": MATH[:1],
    "math_test.jsonl": MATH[1:],
    "code.jsonl": CODE[:1],
    "humaneval.jsonl": CODE[1:],
    "questions.jsonl": [{"question": "What is 3 + 4?"}],
    "held_out.jsonl": [{"question": "What is 5 + 5?", "answer": "10"}],
}
TRIED = {
    "MATH": "math: 2 of 2 gold solutions are correct",
    "Code with tests": "code: 2 of 2 gold solutions are correct",
    "A judge for what `math` can't decide": "math: 2 of 2 gold solutions are correct",
    "A reward model and best of n": "math: 1 of 1 gold solutions are correct (eval)",
    "No gold answers": "1 training problems (0 with an answer, 0 with a solution), 1 held out",
}
"""Title of each recipe, and what `rft check` says of it."""


def recipes() -> dict[str, str]:
    _, found, rest = (ROOT / "docs" / "scoring.md").read_text().partition("\n## Recipes\n")
    assert found
    parts = rest.split("\n## ")[0].split("\n**")[1:]
    return {
        part.split("**")[0].rstrip("."): part.split("```yaml\n")[1].split("```")[0]
        for part in parts
    }


def test_every_recipe_is_tried() -> None:
    assert list(recipes()) == list(TRIED)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_on_the_pages_can_be_read(page: Path) -> None:
    for block in page.read_text().split("```yaml\n")[1:]:
        for document in yaml.safe_load_all(block.split("```")[0]):
            assert isinstance(document, dict)


@pytest.mark.parametrize("title", TRIED)
def test_recipe_passes_check(title: str, tmp_path: Path) -> None:
    if title == "Code with tests" and (fault := _sandbox.fault()) is not None:
        pytest.skip(str(fault))
    for name, lines in DATA.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "reward_model")
    config = LlamaConfig(architectures=["LlamaForSequenceClassification"], num_labels=1)
    config.save_pretrained(tmp_path / "reward_model")

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: recipe\nmodel: {{base: {json.dumps(str(BASE))}}}\n{recipes()[title]}")
    done = subprocess.run(
        [sys.executable, "-m", "rft.cli", "check", str(recipe)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert TRIED[title] in done.stdout
