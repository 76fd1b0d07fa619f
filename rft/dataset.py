"""What an arm has trained on, for people and for other trainers.

The columns of `COLUMNS` hold all that is known of a row and go into Parquet whatever is asked for. A shape
beside them holds what one tool reads, a line a row, in the same order and without the rows that no tool
could learn as they were learnt here: those of weight 0 or less.

A tool makes tokens of text again, and these may be others than the trained ones. Whether they are is
tried for each row (`exact`) and counted for the card; the trained ones are in the Parquet.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rft import rows
from rft.chat import Renderer
from rft.config import Chat, Model
from rft.config_train import EarlyStop
from rft.nodes import Node
from rft.sampling import seed_for
from rft.types import Candidate, Finish, Prompt, ScoreRow, TrainRow

TEXT, IDS = pa.string(), pa.list_(pa.int32())
MESSAGES = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "id": (TEXT, "hash of what made the answer"),
    "prompt_id": (TEXT, "hash of the question"),
    "question": (TEXT, "the problem as the data set gives it"),
    "answer": (TEXT, "its gold answer"),
    "kind": (TEXT, "its label, for instance a topic"),
    "messages": (MESSAGES, "the prompt as a chat; null where the model has no chat template"),
    "prompt": (TEXT, "the prompt as the model saw it: template, examples and beginning included"),
    "completion": (TEXT, "the answer that was learnt, without its end token"),
    "verdict": (TEXT, "correct, wrong or unknown, as all scorers together say"),
    "reason": (TEXT, "why it is not correct"),
    "extracted": (TEXT, "the final answer as it was read"),
    "value": (pa.float64(), "a number that a scorer gave, for instance a reward"),
    "scores": (TEXT, "what every scorer said (JSON)"),
    "weight": (pa.float64(), "of its loss; below 0 it was made less likely"),
    "is_reference": (pa.bool_(), "a worked solution of the data set, and no sample"),
    "pool": (TEXT, "name of its source, where there were several"),
    "sampler": (TEXT, "what drew it"),
    "model": (TEXT, "the model that it was drawn from"),
    "policy": (TEXT, "the adapter on that model, by its training's folder; null is none"),
    "index": (pa.int64(), "which of its prompt's samples it is"),
    "seed": (pa.int64(), "that the sampler was given for it"),
    "finish": (TEXT, "why it ends: stop, length, loop or reference"),
    "logprob": (pa.float64(), "sum of its tokens' log-probabilities when it was sampled (nats)"),
    "exact": (pa.bool_(), "whether prompt and completion make the trained tokens again"),
    "prompt_token_ids": (IDS, "the tokens of the prompt"),
    "token_ids": (IDS, "the tokens that were learnt, with the end token"),
}
"""The Parquet's columns: type and meaning."""
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])

Row = dict[str, Any]
"""By the names of `COLUMNS`."""
BATCH = 2048
"""Rows that are written together."""


@dataclass(frozen=True)
class Shape:
    """The lines that a tool reads."""

    line: Callable[[Row, Renderer], Row]
    use: str
    """How its files are used, for the card; {name} is the data set's name in LLaMA-Factory."""
    lacks: str
    """How what it trains on may differ."""


def _answer(row: Row, renderer: Renderer) -> dict[str, Any]:
    # A beginning that is part of the prompt has no place in a chat but the answer.
    began = renderer.chat.response_prefix if row["messages"] else ""
    return {"role": "assistant", "content": began + row["completion"]}


def _chat(row: Row) -> list[dict[str, Any]]:
    return row["messages"] or [{"role": "user", "content": row["prompt"]}]


def _trl(row: Row, renderer: Renderer) -> Row:
    if not row["messages"]:
        return {"prompt": row["prompt"], "completion": row["completion"]}
    return {"prompt": row["messages"], "completion": [_answer(row, renderer)]}


def _axolotl(row: Row, renderer: Renderer) -> Row:
    lead = "" if renderer.uses_template else renderer.lead
    end = renderer.tokenizer.decode(list(renderer.end(row["token_ids"])))
    return {
        "segments": [
            {"label": False, "text": lead + row["prompt"]},
            {"label": True, "text": row["completion"] + end},
        ]
    }


def _llama_factory(row: Row, renderer: Renderer) -> Row:
    return {"messages": [*_chat(row), _answer(row, renderer)]}


def _openai(row: Row, renderer: Renderer) -> Row:
    shown = [
        {**one, "weight": 0} if one["role"] == "assistant" else one for one in _chat(row)
    ]  # examples in the prompt are not learnt
    return {"messages": [*shown, _answer(row, renderer)]}


SHAPES = {
    "trl": Shape(
        _trl,
        "`SFTTrainer(train_dataset=load_dataset('json', data_files='train.jsonl', split='train'))` "
        "learns the completion alone.",
        "TRL makes tokens of prompt and completion together. With a chat template it also learns what that "
        "writes after the end token.",
    ),
    "axolotl": Shape(
        _axolotl,
        "`datasets: [{path: train.jsonl, ds_type: json, type: input_output}]` and "
        "`train_on_inputs: false`: the template is applied already, for this model alone.",
        "axolotl makes tokens of the two segments apart, as was done here.",
    ),
    "llama-factory": Shape(
        _llama_factory,
        "`dataset_dir` is this folder and `dataset: {name}` (dataset_info.json). `mask_history: true` "
        "where the prompts hold worked examples, or these are learnt too.",
        "LLaMA-Factory applies its own `template`, not the model's: choose the one of the model's family. "
        "For prompts without a chat template its `empty` comes nearest, and it learns no end token.",
    ),
    "openai": Shape(
        _openai,
        "Upload the files with `purpose=fine-tune`; the worked examples in a prompt have weight 0.",
        "The model that is trained there has its own template and tokens.",
    ),
}


@dataclass
class Facts:
    """What the card says of the rows, counted while they are written."""

    train: int = 0
    validation: int = 0
    """Held out from training for early stopping."""
    left_out: int = 0
    """In the Parquet alone: of weight 0 or less."""
    weighted: int = 0
    """Of another weight than 1, which no shape holds."""
    inexact: int = 0
    endless: int = 0
    """Without an end token."""
    sampled: int = 0
    prompts: int = 0


def write(select: Node, early: EarlyStop | None, folder: Path, form: str, name: str) -> Facts:
    """Writes a select stage's rows as Parquet, and in a shape of `SHAPES` where `form` names one.

    early: which prompts training looks at and does not learn. name: for dataset_info.json.
    """
    renderer = Renderer(Model(**select.job["model"]), Chat(**select.job["chat"]))
    facts, prompts, shape = Facts(), set(), SHAPES.get(form)
    found = read(select, renderer)
    with ExitStack() as stack:

        @functools.cache
        def opened(split: str) -> tuple[pq.ParquetWriter, IO[str] | None]:
            path = folder / f"{split}.parquet"
            table = stack.enter_context(pq.ParquetWriter(path, SCHEMA, compression="zstd"))
            if shape is None:
                return table, None
            return table, stack.enter_context(
                open(path.with_suffix(".jsonl"), "w", encoding="utf-8")
            )

        for batch in iter(lambda: list(itertools.islice(found, BATCH)), []):
            for split, some in _divided(batch, early).items():
                table, lines = opened(split)
                table.write_table(pa.Table.from_pylist(some, SCHEMA))
                for row in some:
                    _count(row, split, facts, renderer)
                    prompts.add(row["prompt_id"])
                    if shape and lines and row["weight"] > 0:
                        told = json.dumps(shape.line(row, renderer), ensure_ascii=False)
                        lines.write(told + "\n")
    facts.prompts = len(prompts)
    if form == "llama-factory":
        splits = sorted(path.stem for path in folder.glob("*.jsonl"))
        info = {name if one == "train" else f"{name}_{one}": _described(one) for one in splits}
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    return facts


def _described(split: str) -> dict[str, Any]:
    """The entry of dataset_info.json (LLaMA-Factory's data/README.md, sharegpt format)."""
    tags = {"role_tag": "role", "content_tag": "content", "system_tag": "system"}
    return {
        "file_name": f"{split}.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {**tags, "user_tag": "user", "assistant_tag": "assistant"},
    }


def _divided(batch: list[Row], early: EarlyStop | None) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    for row in batch:
        split = "validation" if early and early.keeps(row["prompt_id"]) else "train"
        out.setdefault(split, []).append(row)
    return out


def _count(row: Row, split: str, facts: Facts, renderer: Renderer) -> None:
    if row["weight"] <= 0:
        facts.left_out += 1
        return
    setattr(facts, split, getattr(facts, split) + 1)
    facts.weighted += row["weight"] != 1
    facts.inexact += not row["exact"]
    facts.endless += not renderer.end(row["token_ids"])
    facts.sampled += not row["is_reference"]


def read(select: Node, renderer: Renderer) -> Iterator[Row]:
    """A select stage's rows with all that is known of each, in the order in which they are stored."""
    chosen = list(rows.read(select.dir.path / "train", TrainRow))
    prompts = {p.id: p for p in rows.read(Path(select.job["prompts"]), Prompt)}
    samples = {str(node.dir.path): node.job for node in select.needs if node.kind == "sample"}
    ids = pa.array([row.id for row in chosen], pa.string())
    drawn: dict[str, tuple[Candidate, dict[str, Any]]] = {}
    scores: dict[str, ScoreRow] = {}
    for pool in select.job["pools"]:
        # The first of the pools that have a sample in common counts as its own, as in selecting.
        for one in _picked(pool["sample"], Candidate, ids, leave=("text", "token_logprobs")):
            drawn.setdefault(one.id, (one, samples[pool["sample"]]))
        for score in _picked(pool["score"], ScoreRow, ids):
            scores.setdefault(score.id, score)

    @functools.lru_cache(maxsize=1024)
    def asked(prompt_id: str) -> tuple[Prompt, Row, tuple[int, ...]]:
        prompt = prompts[prompt_id]
        question = prompt.question
        told = {
            "messages": renderer.messages(question) if renderer.uses_template else None,
            "prompt": renderer.prompt_text(question),
        }
        return prompt, told, renderer.prompt_ids(question)

    for row in chosen:
        prompt, told, ids_again = asked(row.prompt_id)
        yield _joined(row, prompt, told, ids_again, *drawn[row.id], scores[row.id], renderer)


def _picked(folder: str, kind: type, ids: pa.Array, leave: tuple[str, ...] = ()) -> Iterator[Any]:
    columns = [f.name for f in fields(kind) if f.name not in leave]
    for batch in rows.batches(Path(folder), columns):
        yield from rows.objects(batch.filter(pc.is_in(batch.column("id"), value_set=ids)), kind)


def _joined(
    row: TrainRow,
    prompt: Prompt,
    asked: Row,
    prompt_again: tuple[int, ...],
    drawn: Candidate,
    job: dict[str, Any],
    score: ScoreRow,
    renderer: Renderer,
) -> Row:
    text = renderer.learnt(row.token_ids)
    again = (*renderer.completion_ids(text)[:-1], *renderer.end(row.token_ids))
    return {
        "id": row.id,
        "prompt_id": row.prompt_id,
        "question": prompt.question,
        "answer": prompt.answer,
        "kind": prompt.kind,
        **asked,
        "completion": text,
        "verdict": str(score.verdict),
        "reason": score.reason,
        "extracted": score.extracted,
        "value": score.value,
        "scores": score.each,
        "weight": row.weight,
        "is_reference": row.is_reference,
        "pool": row.pool or None,
        "sampler": job["use"],
        "model": job["model"]["base"],
        "policy": Path(job["adapter"]).name if job["adapter"] else None,
        "index": drawn.index,
        "seed": None
        if drawn.finish is Finish.REFERENCE
        else seed_for(job, row.prompt_id, drawn.index),
        "finish": str(drawn.finish),
        "logprob": drawn.logprob,
        "exact": again == row.token_ids and prompt_again == row.prompt_token_ids,
        "prompt_token_ids": row.prompt_token_ids,
        "token_ids": row.token_ids,
    }
