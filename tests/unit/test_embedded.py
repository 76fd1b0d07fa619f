"""The embedded example: its data must be right and held out, and its model small and loadable."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "rft" / "embedded"
EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EMBEDDED / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return read("train.jsonl")


@pytest.fixture(scope="module")
def held_out() -> list[dict[str, Any]]:
    return read("eval.jsonl")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(EMBEDDED / "model")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "scripts" / "make_tiny.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_solution(row: dict[str, Any], solution: str) -> None:
    *steps, last = solution.split("\n")
    assert 2 <= len(steps) <= 3
    for step in steps:
        match = EQUATION.fullmatch(step)
        assert match, step
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        assert {"+": left + right, "-": left - right, "*": left * right}[match[2]] == result
    assert last == f"#### {row['answer']}"
    assert steps[-1].endswith(f"= {row['answer']}")


def test_sizes(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    solved = sum(row["solution"] is not None for row in train)
    assert 150 <= solved <= 400
    assert len(train) - solved >= 300
    assert len(held_out) >= 1000
    assert all(set(r) == {"question", "answer", "solution", "kind"} for r in train + held_out)
    data = sum((EMBEDDED / f).stat().st_size for f in ("train.jsonl", "eval.jsonl"))
    assert data <= 1_000_000
    assert (EMBEDDED / "model" / "model.safetensors").stat().st_size <= 5_000_000


def test_every_solution_is_right(
    train: list[dict[str, Any]], held_out: list[dict[str, Any]]
) -> None:
    for row in train + held_out:
        if row["solution"] is not None:
            check_solution(row, row["solution"])


def test_train_and_eval_share_no_question(
    train: list[dict[str, Any]], held_out: list[dict[str, Any]], script: ModuleType
) -> None:
    seen = {script.normalise(row["question"]) for row in train}
    held = {script.normalise(row["question"]) for row in held_out}
    assert len(seen) == len(train)
    assert len(held) == len(held_out)
    assert not seen & held


def test_masking_sees_through_names_and_things(script: ModuleType) -> None:
    first = "Ana has 3 apples. Ben has 4 more apples than Ana."
    second = "leo has 3 keys; Kim has 4 more keys than Leo"
    assert script.normalise(first) == script.normalise(second)
    assert script.normalise(first) != script.normalise(first.replace("4", "5"))


def test_the_kinds_are_about_equally_frequent(
    train: list[dict[str, Any]], held_out: list[dict[str, Any]], script: ModuleType
) -> None:
    for rows in (train, held_out):
        counts = Counter(row["kind"] for row in rows)
        assert set(counts) == set(script.KINDS)
        assert max(counts.values()) < 2 * min(counts.values())


def test_every_problem_has_several_paths_to_one_answer(script: ModuleType) -> None:
    rng = random.Random(7)
    for kind, (ranges, _, _) in script.KINDS.items():
        most = 0
        for _ in range(200):
            numbers = {v: rng.randint(*ranges[v]) for v in ranges}
            texts = script.solutions(kind, numbers)
            most = max(most, len(texts))
            answers = {text.rsplit(" ", 1)[1] for text in texts}
            assert len(answers) <= 1
            for text in texts:
                check_solution({"answer": min(answers)}, text)
        assert most >= 2, kind


def test_references_use_different_paths(train: list[dict[str, Any]], script: ModuleType) -> None:
    """The first step's operands show that no single path is always the reference."""
    for kind in script.KINDS:
        shapes = set()
        for row in train:
            if row["solution"] is None or row["kind"] != kind:
                continue
            given = re.findall(r"\d+", row["question"])
            left, op, right, _ = EQUATION.findall(row["solution"])[0]
            if len(set(given)) == len(given):
                where = [given.index(n) if n in given else -1 for n in (left, right)]
                shapes.add((op, *where))
        assert len(shapes) >= 2, kind


def test_the_generator_repeats(script: ModuleType) -> None:
    first, second = (script.make_problems(random.Random(3), 50, set()) for _ in range(2))
    assert first == second
    documents = [[script.make_document(r) for _ in range(50)] for r in map(random.Random, (5, 5))]
    assert documents[0] == documents[1]


def test_no_held_out_question_in_pretraining_text(
    held_out: list[dict[str, Any]], script: ModuleType
) -> None:
    """A sample only; the script asserts it over all of the text it trains on."""
    rng = random.Random("0 pre-training")
    text = " | ".join(script.normalise(script.make_document(rng)) for _ in range(5000))
    assert not any(script.normalise(row["question"]) in text for row in held_out)


def test_tokenizer_round_trip(tokenizer: Any, held_out: list[dict[str, Any]]) -> None:
    odd = [
        "",
        " ",
        "\n\n",
        "  two  spaces ",
        "Zürich – 漢字 🙂",
        "a\tb\r\n",
        "12+7=19",
        "don't . , ?",
    ]
    texts = [f"Question: {r['question']}\nAnswer:\n{r['solution']}" for r in held_out[:200]]
    for text in odd + texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_tokenizer_pieces(tokenizer: Any) -> None:
    for number in ("7", "42", "2025"):
        assert len(tokenizer(number)["input_ids"]) == len(number)
    assert len(tokenizer("12 + 7 = 19")["input_ids"]) == 7
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in tokenizer("1")["input_ids"]
    assert tokenizer.chat_template is None


def test_prompt_and_completion_are_short_and_join(
    tokenizer: Any, train: list[dict[str, Any]], held_out: list[dict[str, Any]]
) -> None:
    for row in train + held_out:
        prompt = f"Question: {row['question']}\nAnswer:"
        ids = tokenizer(prompt)["input_ids"]
        assert len(ids) <= 60
        if row["solution"] is not None:
            completion = f"\n{row['solution']}"
            tail = tokenizer(completion)["input_ids"]
            assert len(tail) + 1 <= 40
            assert tokenizer(prompt + completion)["input_ids"] == ids + tail


def test_model_loads(tokenizer: Any) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED / "model")
    assert 700_000 <= sum(p.numel() for p in model.parameters()) <= 1_500_000
    assert model.config.head_dim == 64
    assert model.config.max_position_embeddings == 256
    assert model.config.vocab_size >= len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert next(model.parameters()).dtype == torch.float32
    ids = tokenizer("12 + 7 =", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(ids).logits).all()
