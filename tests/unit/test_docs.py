"""What the pages show works: the site builds without a warning, commands have the options that pages give
them, settings exist, and the recipes of docs/scoring.md pass `rft check` on data of the form that they
name."""

import argparse
import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from transformers import AutoTokenizer, LlamaConfig

import rft
from rft import cli, components, loader
from rft.config import Component, Experiment
from rft.faults import model_in
from rft.scorers import _sandbox
from tests.unit._pages import MINE, PAGES, ROOT, blocks, commands, mentions, titled

BASE = Path(rft.__file__).parent / "embedded" / "model"
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
SITE = pytest.mark.skipif(
    not importlib.util.find_spec("material"), reason="mkdocs-material is not installed: make setup"
)
VERBS = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)).choices

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


def built(config: Path, to: Path) -> subprocess.CompletedProcess[str]:
    words = ["build", "--strict", "--config-file", str(config), "--site-dir", str(to)]
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


@SITE
def test_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    done = built(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} < {p.name for p in pages}
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            loads = "canonical" not in tag and re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)
            assert not loads, f"{page.name}: {tag}"


@SITE
@pytest.mark.parametrize(
    "text, told",
    [
        ("[there](nowhere.md)", "nowhere.md"),
        ("[there](page.md#no-such-heading)", "no-such-heading"),
        ("[there](../configs/nowhere.yaml)", "nowhere.yaml"),
    ],
)
def test_site_refuses_dead_links_and_pages_out_of_its_nav(
    text: str, told: str, tmp_path: Path
) -> None:
    config = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[0]
    config = config.replace("scripts/site_hooks.py", str(ROOT / "scripts/site_hooks.py"))
    (tmp_path / "mkdocs.yml").write_text(config + "\nnav: [index.md, repo/CONTRIBUTING.md]\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Index\n\n{text}\n")
    (tmp_path / "docs" / "page.md").write_text("# Page\n\n## A heading\n")
    done = built(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert any("WARNING" in line and told in line for line in said), done.stderr
    assert any("page.md" in line for line in said), done.stderr


def test_every_page_is_in_the_nav() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = re.findall(r"[\w/]+\.md", nav)
    assert sorted(set(named)) == sorted(named)
    assert {p.name for p in (ROOT / "docs").glob("*.md")} == {n for n in named if "/" not in n}


def test_links_of_the_notebook_lead_to_pages() -> None:
    cells = json.loads((ROOT / "docs/first_run.ipynb").read_text())["cells"]
    text = "".join("".join(one["source"]) for one in cells if one["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", text)
    assert len(links) > 3
    for name, anchor in links:
        headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / name).read_text(), re.M)
        slugs = [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, anchor


def test_commands_are_found() -> None:
    """So that the tests below see what they are for."""
    assert len([words for page in PAGES for words in commands(page)]) > 40


@EACH
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for program, *words in commands(page):
        if program == "make":
            wrong = {w for w in words if "=" not in w} - targets
            assert not wrong, f"make {' '.join(words)}"
        elif program == "python" and words[0].startswith("scripts/"):
            text = (ROOT / words[0]).read_text()
            for option in (w for w in words if w.startswith("--")):
                assert f'"{option}"' in text, f"{words[0]} has no {option}"
        elif program == "rft":
            settings_are_read(words, {MINE, *titled(page)})


def settings_are_read(words: list[str], theirs: set[str]) -> None:
    """Whether the command line takes these words, and the experiment the settings among them."""
    options, rest = cli.parser().parse_known_args(
        ["formats", "--", *words[1:]] if words[0] == "formats" else words
    )
    assert all("=" in word and not word.startswith("-") for word in rest), words
    config = getattr(options, "config", None)
    if config is None or Path(config).name in theirs:
        return
    loader.load(ROOT / config, [*options.settings, *rest])


@EACH
def test_commands_in_sentences_exist(page: Path) -> None:
    for program, verb, *words in mentions(page):
        if program == "make":
            assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.M), verb
        elif verb not in ("VERB", "--help", "--version"):
            known = VERBS[verb]._option_string_actions
            assert not [w for w in words if w.startswith("--") and w not in known], words


def written() -> str:
    """All text in the package's code, with … for what is put in, as pages show messages."""
    said = []
    for path in sorted((ROOT / "rft").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "…") for part in node.values]
                said.append("".join(p if isinstance(p, str) else "…" for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    return "\n".join(" ".join(text.split()) for text in said)


def test_messages_on_the_pages_are_the_program_s() -> None:
    faq = [line for text in blocks(ROOT / "docs/faq.md", "text") for line in text.splitlines()]
    refused = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/own_data.md").read_text(), re.M)
    assert len(faq) > 10 and len(refused) > 5
    known = written()
    for message in [*faq, *(one for one in refused if " " in one)]:
        for piece in message.split("…"):
            assert piece.strip(" .") in known, message


@EACH
def test_experiments_on_the_pages_load(page: Path, tmp_path: Path) -> None:
    """A whole experiment as it is; a part of one as what replaces that part of the quickstart."""
    for name, text in titled(page).items():
        (tmp_path / name).write_text(text)
    for block in blocks(page, "yaml"):
        for document in yaml.safe_load_all(block):
            assert isinstance(document, dict)
            if not document.keys() & Experiment.model_fields.keys() - {"name"}:
                continue  # not an experiment's, such as a Kubernetes manifest
            whole = "extends" in document or {"name", "model", "prompts"} <= document.keys()
            extends = "" if whole else f"extends: {ROOT}/configs/quickstart.yaml\n"
            (tmp_path / "block.yaml").write_text(extends + block)
            loader.load(tmp_path / "block.yaml")


@EACH
def test_settings_named_on_the_pages_exist(page: Path) -> None:
    sections = "|".join(k for k, f in Experiment.model_fields.items() if model_in(f.annotation))
    text = page.read_text()
    for dotted in re.findall(rf"`((?:{sections})(?:\.\w+)+)(?=[`=: ])", text):
        if dotted == "ray.wait" or dotted.rpartition(".")[2] in ("parquet", "jsonl", "yaml"):
            continue  # Ray's function; a file's name
        section: type[BaseModel] | None = Experiment
        for key in dotted.split("."):
            if section is None:
                break  # within a component's arguments, a pool, an arm
            assert key in section.model_fields, f"{page.name}: {dotted}"
            section = model_in(section.model_fields[key].annotation)


def test_selectors_of_the_table_take_their_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test.jsonl").write_text('{"question": "What is 3 + 4?"}\n')
    page = (ROOT / "docs/selectors.md").read_text()
    named = [yaml.safe_load(text) for text in re.findall(r"`(\{use: [^`]+\})`", page)]
    assert {one["use"] for one in named} == set(components.builtin_names("selectors"))
    for one in named:
        given = {k: 1 if v == "arm:rft" else v for k, v in one.get("args", {}).items()}
        components.make("selectors", Component(use=one["use"], args=given))


@EACH
def test_python_on_the_pages_compiles(page: Path) -> None:
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name}, block {number}", "exec")


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
