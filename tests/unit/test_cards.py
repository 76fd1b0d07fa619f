"""Cards parse as the hub's, link to nothing that the hub has not, and name what they cannot know."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from rft import cards, loader
from rft.cards import Subject
from rft.config_train import Train
from rft.dataset import SHAPES, Facts
from rft.hub import Licence

ROOT = Path(__file__).resolve().parents[2]
MIT = Licence(license="mit", source="the card of Qwen/Qwen2.5-0.5B")
UNKNOWN = Licence(source="the card of openai/gsm8k names none")
TOLD = {
    "prompts": {"held_out": 1319},
    "select": {
        "rows": 3000, "prompts": 900, "funnel": {"in": 9000, "out": 3000, "dropped": {"wrong": 6000}},
    },
    "train": {"steps": 10, "epochs": 3.0, "tokens": 5000, "flops": 1e12, "proofs": {}},
}  # fmt: skip
INTERVAL = {"value": 0.3456, "low": 0.32, "high": 0.37, "method": "bootstrap"}


def stage(kind: str, done: bool = True, **job):
    folder = SimpleNamespace(manifest=lambda: TOLD[kind], path=Path(f"/stages/{kind}-1"))
    return SimpleNamespace(dir=folder, done=done, job=job)


def subject(config: str = "configs/gsm8k.yaml", **changes) -> Subject:
    experiment = loader.load(str(ROOT / config), changes.pop("settings", []))
    drawn = {"use": "vllm", "adapter": None, "decoding": {"temperature": 0.8, "n": 32}}
    links = {
        "1_prompts": stage("prompts"),
        "2_sample": stage("prompts", model={"base": "Qwen/Qwen2.5-0.5B"}, **drawn),
        "4_select": stage("select"),
        "5_train": stage("train", train=Train().model_dump()),
        "6_eval": stage("train", done=changes.pop("evaluated", False)),
    }
    known = {"model_licence": MIT, "data_licence": UNKNOWN, "command": "rft export", **changes}
    return Subject(experiment, "rft", experiment.arm("rft"), 0, links, **known)


@pytest.mark.parametrize("form", ["model", "adapter", "gguf"])
def test_a_model_card(form) -> None:
    text = cards.model_card(subject(), form, "bf16", None)
    front = ModelCard(text).data.to_dict()
    assert front["license"] == "mit" and front["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert front["datasets"] == ["openai/gsm8k"] and front["pipeline_tag"] == "text-generation"
    assert "Problems (openai/gsm8k): unknown (the card of openai/gsm8k names none)" in text
    assert ("Stored in bf16" in text) == (form != "adapter")
    assert "3,000 of 9,000 kept (dropped: 6,000 wrong)" in text
    configuration = yaml.safe_load(text.rpartition("```yaml\n")[2].split("```")[0])
    assert configuration["seeds"] == [0, 1, 2] and "    rft run experiment.yaml\n" in text


def test_results_have_their_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards.words, "results", lambda told: "| arm |")
    of = subject(settings=[f"runs={tmp_path}"], evaluated=True)
    assert "## Results" not in cards.model_card(of, "model", "bf16", None)
    report = of.experiment.folder / "report"
    report.mkdir(parents=True)
    arms = [{"arm": "rft", "seed": seed, "accuracy": INTERVAL} for seed in (1, 0)]
    (report / "comparison.json").write_text(json.dumps({"arms": arms, "level": 0.95}))
    text = cards.model_card(of, "model", "bf16", None)
    (found,) = ModelCard(text).data.eval_results
    assert (found.dataset_type, found.metric_type, found.metric_value) == (
        "openai/gsm8k", "accuracy", 34.56,
    )  # fmt: skip
    assert found.metric_name == "accuracy, % (95% interval 32.0 to 37.0)"
    assert "## Results\n\n| arm |" in text
    # What is there may be of an evaluation before the last change.
    of = subject(settings=[f"runs={tmp_path}"], evaluated=False)
    assert "## Results" not in cards.model_card(of, "model", "bf16", None)


def test_folders_are_not_linked_to() -> None:
    text = cards.model_card(subject("configs/quickstart.yaml"), "model", "fp32", 1e-6)
    front = ModelCard(text).data.to_dict()
    assert not {"base_model", "datasets", "model-index"} & front.keys()
    assert f"{ROOT}/rft/embedded/model, fine-tuned" in text and "changed by 1e-06" in text


@pytest.mark.parametrize("form", ["parquet", *SHAPES])
def test_a_data_card(form) -> None:
    facts = Facts(2900, 100, sampled=2500, prompts=900)
    kinds = ["parquet"] if form == "parquet" else ["jsonl", "parquet"]
    files = [f"{split}.{kind}" for split in ("train", "validation") for kind in kinds]
    text = cards.data_card(subject(), form, facts, files)
    front = DatasetCard(text).data.to_dict()
    assert front["license"] == "unknown" and front["size_categories"] == ["1K<n<10K"]
    assert front["source_datasets"] == ["openai/gsm8k"]
    listed = [file["path"] for one in front["configs"] for file in one["data_files"]]
    assert listed == [f"{split}.{kinds[0]}" for split in ("train", "validation")]
    assert "2,900 rows to train on (`train`), 100 held out for early stopping" in text
    assert "The 1,319 problems of split `test`" in text and "| vllm |" in text
    assert ("makes the trained tokens again" in text) == (form != "parquet")


def test_what_a_shape_lacks_is_named() -> None:
    of = subject(settings=["chat.response_prefix=So"])
    facts = Facts(90, 10, left_out=5, weighted=4, inexact=3, endless=2)
    text = cards.data_card(of, "trl", facts, ["train.jsonl", "train.parquet"])
    for told in (
        "Of 100 rows 3 make other tokens",
        "`chat.response_prefix` ('So') was part of the prompt",
        "2 rows were learnt without an end token",
        "5 rows of weight 0 or less",
        "4 rows weigh other than 1",
    ):
        assert told in text
    assert "response_prefix` (" not in cards.data_card(of, "axolotl", facts, [])


@pytest.mark.parametrize(
    "rows, name", [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"),
                   (10**8, "100M<n<1B"), (10**9, "n>1B")],
)  # fmt: skip
def test_sizes_as_the_hub_names_them(rows, name) -> None:
    assert cards._size(rows) == name
