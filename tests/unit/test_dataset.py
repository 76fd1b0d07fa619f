"""An arm's rows in other tools' shapes say what was learnt, and what they cannot say is counted."""

from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest

from rft import dataset, rows
from rft.config import Chat
from rft.config_train import EarlyStop
from rft.types import TrainRow, digest, seed_of
from tests.unit._selected import QUESTIONS, RAW, SPOKEN, TEMPLATE, lines, model, selected

OPENAI = {
    "type": "object",
    "additionalProperties": False,
    "required": ["messages"],
    "properties": {
        "messages": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": ["system", "user", "assistant"]},
                    "content": {"type": "string", "minLength": 1},
                    "weight": {"enum": [0, 1]},
                },
                "if": {"properties": {"role": {"const": "assistant"}}},
                "else": {"properties": {"weight": False}},
            },
        }
    },
}
"""FineTuneChatRequestInput of OpenAI's published specification, without tools. The service alone has a
loader."""


def write(folder: Path, form: str, chat: Chat = RAW, **more):
    """The facts and the folder of what is written, and the renderer."""
    template = None if chat.template == "none" else TEMPLATE
    select, renderer = selected(folder, chat, model(folder, template), more.pop("weights", None))
    (folder / "out").mkdir()
    facts = dataset.write(select, more.get("early"), folder / "out", form, "mine")
    return facts, folder / "out", renderer


def test_the_parquet_has_all_that_is_known(tmp_path: Path) -> None:
    facts, out, _ = write(tmp_path, "parquet")
    table = pq.read_table(out / "train.parquet")
    assert table.schema.names == list(dataset.COLUMNS)
    assert [path.name for path in out.iterdir()] == ["train.parquet"]
    assert (facts.train, facts.sampled, facts.prompts, facts.inexact) == (10, 5, 5, 0)
    reference, sampled = table.to_pylist()[0], table.to_pylist()[5]
    assert {k: v for k, v in sampled.items() if "token" not in k and v is not None} == {
        "id": digest(1, digest(QUESTIONS[0])),
        "prompt_id": digest(QUESTIONS[0]),
        "question": QUESTIONS[0],
        "answer": "0",
        "prompt": f"Question: {QUESTIONS[0]}\nAnswer:",
        "completion": " 0 nuts, sampled: é.\nIt is 0.",
        "verdict": "correct",
        "extracted": "0",
        "value": 0.5,
        "scores": '[{"use": "answer", "verdict": "correct"}]',
        "weight": 1.0,
        "is_reference": False,
        "sampler": "vllm",
        "model": str(tmp_path / "base"),
        "policy": "train-1f",
        "index": 0,
        "seed": seed_of(digest("abc", digest(QUESTIONS[0]), 0), "seed"),
        "finish": "stop",
        "logprob": -1.5,
        "exact": True,
    }
    assert reference["is_reference"] and reference["policy"] is None and reference["seed"] is None


@pytest.mark.parametrize(
    "form, line",
    [
        ("trl", {"prompt": "Question: Q\nAnswer:", "completion": "A"}),
        (
            "axolotl",
            {
                "segments": [
                    {"label": False, "text": "Question: Q\nAnswer:"},
                    {"label": True, "text": "AEND"},
                ]
            },
        ),
        (
            "openai",
            {
                "messages": [
                    {"role": "user", "content": "Question: Q\nAnswer:"},
                    {"role": "assistant", "content": "A"},
                ]
            },
        ),
    ],
)
def test_raw_prompts(tmp_path: Path, form, line) -> None:
    _, out, renderer = write(tmp_path, form)
    end, text = renderer.tokenizer.eos_token, " 0 nuts, given: é.\nIt is 0."

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        if not isinstance(value, str) or value in ("user", "assistant"):
            return value
        return {"A": text, "AEND": text + end}.get(value, value.replace("Q\n", f"{QUESTIONS[0]}\n"))

    assert lines(out / "train.jsonl")[0] == filled(line)


def test_a_chat_has_system_examples_and_beginning(tmp_path: Path) -> None:
    chat = SPOKEN.model_copy(update={"response_prefix": "So"})
    _, out, _ = write(tmp_path, "openai", chat)
    asked = [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": "What is 1 + 1? Show it."},
        {"role": "assistant", "content": "So1 + 1 = 2.", "weight": 0},
        {"role": "user", "content": f"{QUESTIONS[0]} Show it."},
    ]
    answer = {"role": "assistant", "content": "So 0 nuts, given: é.\nIt is 0."}
    assert lines(out / "train.jsonl")[0] == {"messages": [*asked, answer]}
    row = pq.read_table(out / "train.parquet").to_pylist()[0]
    assert row["prompt"].endswith("[assistant] So") and row["exact"]
    asked[2].pop("weight")
    assert row["messages"] == asked


@pytest.mark.parametrize("chat", [RAW, SPOKEN])
def test_openai_lines_keep_to_its_schema(tmp_path: Path, chat) -> None:
    _, out, _ = write(tmp_path, "openai", chat)
    found = lines(out / "train.jsonl")
    assert len(found) == 10
    for line in found:
        jsonschema.validate(line, OPENAI)
        assert line["messages"][-1]["role"] == "assistant"


def test_what_no_tool_can_learn_is_left_out(tmp_path: Path) -> None:
    facts, out, _ = write(tmp_path, "trl", weights={0: -0.5, 1: 0.0, 2: 0.25})
    assert (facts.train, facts.left_out, facts.weighted, facts.sampled) == (8, 2, 1, 3)
    assert len(lines(out / "train.jsonl")) == 8
    kept = [row for row in pq.read_table(out / "train.parquet").to_pylist() if row["weight"] > 0]
    assert [row["completion"] for row in kept] == [
        line["completion"] for line in lines(out / "train.jsonl")
    ]


def test_early_stopping_keeps_its_prompts(tmp_path: Path) -> None:
    early = EarlyStop(hold_out=0.4)
    facts, out, _ = write(tmp_path, "llama-factory", early=early)
    both = {
        split: pq.read_table(out / f"{split}.parquet").to_pylist()
        for split in ("train", "validation")
    }
    assert facts.train == len(both["train"]) and facts.validation == len(both["validation"]) > 0
    assert {early.keeps(row["prompt_id"]) for row in both["validation"]} == {True}
    assert {early.keeps(row["prompt_id"]) for row in both["train"]} == {False}
    assert (out / "dataset_info.json").read_text().count('"file_name"') == 2


def test_tokens_that_text_does_not_make_again_are_counted(tmp_path: Path) -> None:
    used = model(tmp_path)
    select, renderer = selected(tmp_path, RAW, used)
    first = next(iter(rows.read(select.dir.path / "train", TrainRow)))
    # The same text letter by letter, as a model may sample it; no end; and another prompt.
    letters = tuple(i for c in " 0 nuts" for i in renderer.completion_ids(c)[:-1])
    changed = [
        (first.prompt_token_ids, (*letters, renderer.eos_id)),
        (first.prompt_token_ids, letters),
        (first.prompt_token_ids[1:], first.token_ids),
    ]
    rows.clear(select.dir.path / "train")
    made = [TrainRow(first.id, first.prompt_id, *both, False) for both in changed]
    for one in made:
        rows.write_part(select.dir.path / "train", [one], TrainRow)
        (tmp_path / "out").mkdir(exist_ok=True)
        facts = dataset.write(select, None, tmp_path / "out", "axolotl", "mine")
        assert facts.inexact == 1, one
        assert facts.endless == (one is made[1])
        (row,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
        assert tuple(row["token_ids"]) == one.token_ids
        end = renderer.tokenizer.eos_token
        told = lines(tmp_path / "out" / "train.jsonl")[0]["segments"][1]["text"]
        assert told.endswith(end) == (one is not made[1])
        rows.clear(select.dir.path / "train")
