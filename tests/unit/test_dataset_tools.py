"""Other trainers' own loaders read what was exported for them, and make the trained tokens of it.

They are no part of the locks, since their own pins do not go with these: CONTRIBUTING.md says how to have
them. Without one its tests are skipped.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from rft import dataset
from tests.unit._selected import RAW, SPOKEN, TEMPLATE, model, selected

CHATS = [pytest.param(RAW, id="raw"), pytest.param(SPOKEN, id="chat")]


def written(folder: Path, form: str, chat):
    """The folder, what was learnt as (prompt, completion) ids, and the renderer."""
    select, renderer = selected(folder, chat, model(folder, None if chat is RAW else TEMPLATE))
    out = folder / "out"
    out.mkdir()
    facts = dataset.write(select, None, out, form, "mine")
    assert not facts.inexact
    rows = pq.read_table(out / "train.parquet").to_pylist()
    return out, [(row["prompt_token_ids"], row["token_ids"]) for row in rows], renderer


@pytest.mark.parametrize("chat", CHATS)
def test_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat) -> None:
    trl = pytest.importorskip("trl")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out, learnt, renderer = written(tmp_path, "trl", chat)
    data = load_dataset("json", data_files=str(out / "train.jsonl"), split="train")
    args = trl.SFTConfig(
        output_dir=str(tmp_path / "sft"), report_to=[], use_cpu=True, bf16=False, max_length=None
    )
    trainer = trl.SFTTrainer(
        str(tmp_path / "base"), args=args, train_dataset=data, processing_class=renderer.tokenizer
    )
    # What the template writes after the end token, here the end of a line.
    after = [] if chat is RAW else list(renderer.completion_ids("\n")[:-1])
    assert len(trainer.train_dataset) == len(learnt)
    for got, (prompt, completion) in zip(trainer.train_dataset, learnt):
        assert got["input_ids"] == [*prompt, *completion, *after]
        assert got["labels"] == [-100] * len(prompt) + [*completion, *after]


@pytest.mark.parametrize("chat", CHATS)
def test_axolotl(tmp_path: Path, chat) -> None:
    strategies = pytest.importorskip("axolotl.prompt_strategies")
    from axolotl.datasets import TokenizedPromptDataset

    out, learnt, renderer = written(tmp_path, "axolotl", chat)
    data = load_dataset(
        "json", data_files=str(out / "train.jsonl"), split="train", cache_dir=tmp_path / "cache"
    )
    cfg = SimpleNamespace(train_on_inputs=False, sequence_len=512)
    strategy = strategies.load("input_output", renderer.tokenizer, cfg, {"type": "input_output"})
    found = TokenizedPromptDataset(strategy, data)
    assert len(found) == len(learnt)
    for got, (prompt, completion) in zip(found, learnt):
        assert got["input_ids"] == [*prompt, *completion]
        assert got["labels"] == [-100] * len(prompt) + completion


@pytest.mark.parametrize("chat", CHATS)
def test_llama_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat) -> None:
    if "torchaudio" not in sys.modules:  # it imports it, for sounds
        audio = types.ModuleType("torchaudio")
        audio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        monkeypatch.setitem(sys.modules, "torchaudio", audio)
    pytest.importorskip("llamafactory.data.loader")
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.data.processor import SupervisedDatasetProcessor
    from llamafactory.data.template import TEMPLATES

    out, learnt, renderer = written(tmp_path, "llama-factory", chat)
    (described,) = get_dataset_list(["mine"], str(out))
    asked = SimpleNamespace(
        dataset_dir=str(out), media_dir=str(out), streaming=False, max_samples=None, cutoff_len=512,
        preprocessing_num_workers=None, overwrite_cache=True, mask_history=True, train_on_prompt=False,
    )  # fmt: skip
    hub = SimpleNamespace(cache_dir=str(tmp_path / "cache"), hf_hub_token=None)
    alone = SimpleNamespace(local_process_index=0, dataloader_num_workers=0)
    data = _load_single_dataset(described, hub, asked, alone)
    assert len(data) == len(learnt)
    rows = pq.read_table(out / "train.parquet").to_pylist()
    for got, row in zip(data, rows):
        told = row["messages"] or [{"role": "user", "content": row["prompt"]}]
        system = [{"role": "system", "content": got["_system"]}] if got["_system"] else []
        assert system + got["_prompt"] == told
        assert got["_response"] == [{"role": "assistant", "content": row["completion"]}]
    if chat is RAW:
        template = TEMPLATES["empty"]
        processor = SupervisedDatasetProcessor(template, renderer.tokenizer, None, asked)
        made = processor.preprocess_dataset(data[:])
        for ids, labels, (prompt, completion) in zip(made["input_ids"], made["labels"], learnt):
            # This template writes no end token.
            assert ids == [*prompt, *completion[:-1]]
            assert labels == [-100] * len(prompt) + completion[:-1]
    info = json.loads((out / "dataset_info.json").read_text())
    assert list(info) == ["mine"]


@pytest.mark.parametrize("chat", CHATS)
def test_datasets_reads_the_parquet(tmp_path: Path, chat) -> None:
    out, learnt, _ = written(tmp_path, "parquet", chat)
    data = load_dataset(
        "parquet", data_files=str(out / "train.parquet"), split="train", cache_dir=tmp_path / "c"
    )
    assert [(row["prompt_token_ids"], row["token_ids"]) for row in data] == learnt
