"""A select stage on disk, small enough to know every row of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import rft
from rft import rows
from rft.chat import Renderer
from rft.config import Chat, Model
from rft.nodes import Node
from rft.types import Candidate, Finish, Prompt, ScoreRow, TrainRow, Verdict, digest

BASE = Path(rft.__file__).parent / "embedded" / "model"
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""Writes a line's end after the end token, as ChatML does."""
RAW = Chat(template="none", prompt="Question: {question}\nAnswer:")
SHOWN = [{"question": "What is 1 + 1?", "solution": "1 + 1 = 2."}]
SPOKEN = Chat(system="Count.", prompt="{question} Show it.", shots=1, examples=SHOWN)
QUESTIONS = [f"Ann has {n} nuts and finds {n + 1}. How many?" for n in range(2, 7)]


def model(folder: Path, template: str | None = None) -> Model:
    """The embedded model's tokenizer, with a chat template or without."""
    shutil.copytree(BASE, folder / "base", dirs_exist_ok=True)
    if template:
        (folder / "base" / "chat_template.jinja").write_text(template)
    return Model(base=str(folder / "base"))


def node(folder: Path, kind: str, inputs: dict[str, Any], *needs: Node, **job: Any) -> Node:
    return Node(kind, kind, inputs, needs, job, folder / "stages")


def selected(
    folder: Path, chat: Chat, used: Model, weights: dict[int, float] | None = None
) -> tuple[Node, Renderer]:
    """Of each question a worked solution and a sample; the sample of question i has weight weights[i]."""
    renderer = Renderer(used, chat)
    prompts = [Prompt(digest(q), q, str(n)) for n, q in enumerate(QUESTIONS)]
    said = {"model": used.model_dump(), "chat": chat.model_dump(mode="json")}
    drawn = {"pool": "abc", "engine": {}, "decoding": {"n": 2, "temperature": 1.0}, **said}
    data = node(folder, "prompts", {"a": 1})
    reference = node(folder, "sample", {"a": 2}, use="reference", adapter=None, **drawn)
    sampled = node(folder, "sample", {"a": 3}, use="vllm", adapter="/runs/train-1f", **drawn)
    pools = [(one, node(folder, "score", {"a": one.key})) for one in (reference, sampled)]
    train = []
    rows.write_part(data.dir.path / "train", prompts, Prompt)
    for number, (one, score) in enumerate(pools):
        made, scores = [], []
        for i, prompt in enumerate(prompts):
            finish = Finish.STOP if number else Finish.REFERENCE
            text = f" {i} nuts, {'sampled' if number else 'given'}: é.\nIt is {i}."
            asked, ids = renderer.prompt_ids(prompt.question), renderer.completion_ids(text)
            id = digest(number, prompt.id)
            made.append(Candidate(id, prompt.id, 0, text, asked, ids, finish, -1.5))
            each = json.dumps([{"use": "answer", "verdict": "correct"}])
            scores.append(ScoreRow(id, prompt.id, Verdict.CORRECT, None, str(i), 0.5, each))
            weight = (weights or {}).get(i, 1.0) if number else 1.0
            train.append(TrainRow(id, prompt.id, asked, ids, not number, "", weight))
        rows.write_part(one.dir.path, made, Candidate)
        rows.write_part(score.dir.path, scores, ScoreRow)
    places = [{"sample": str(a.dir.path), "score": str(b.dir.path)} for a, b in pools]
    needs = [data, *(one for pair in pools for one in pair)]
    job = {"prompts": str(data.dir.path / "train"), "pools": places, **said}
    select = node(folder, "select", {"a": 4}, *needs, **job)
    rows.write_part(select.dir.path / "train", train, TrainRow)
    return select, renderer


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]
