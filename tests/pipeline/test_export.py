"""What `rft export` writes says what the arm says, is read by what it is for, and is whole or absent."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard

from rft import rows
from rft.types import Candidate, TrainRow
from tests.pipeline.conftest import ROOT, command, rft
from tests.unit._hub import hub as stand_in


def exported(finished: Path, to: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return rft(*command("export", finished.parent, "--to", str(to), *words))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_exported_model_answers_as_the_arm_did(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    to = tmp_path / "deep" / "mine"
    done = exported(finished, to, "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(to)
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert model.dtype is torch.float32
    arm = finished / "rft" / "seed0"
    same = 0
    evaluated = list(rows.read((arm / "6_eval_sample").resolve(), Candidate))[:10]
    for one in evaluated:
        asked = torch.tensor([one.prompt_token_ids])
        got = model.generate(asked, max_new_tokens=len(one.token_ids), do_sample=False)
        same += tuple(got[0, asked.shape[1] :].tolist()) == one.token_ids
        assert tokenizer.decode(one.token_ids, skip_special_tokens=True).strip() == one.text.strip()
    # vLLM and transformers add up in another order, which may tip a close choice.
    assert same >= 8
    card = (to / "README.md").read_text()
    base = ROOT / "rft" / "embedded" / "model"
    trained = json.loads((arm / "5_train" / "manifest.json").read_text())
    for word in (
        f"{base}, fine-tuned",
        "license: apache-2.0",
        f"{trained['rows']:,} answers to {trained['prompts']:,} prompts",
        "LoRA of rank 16",
        "master fp32, compute fp32",
        '"difference"',
        "| rft |",
        "sample:",
    ):
        assert word in card, word
    ModelCard(card)
    told = json.loads((to / "export.json").read_text())
    assert told["files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in to.iterdir()
        if path.name != "export.json"
    }
    # Again: the same, so nothing is written; another would be.
    before = {path: path.stat().st_mtime_ns for path in to.iterdir()}
    done = exported(finished, to, "--dtype", "fp32")
    assert done.returncode == 0 and "there already, and the same" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in to.iterdir()}
    for words, why in (
        (["--dtype", "bf16"], 'holds another export (dtype: "fp32" -> "bf16")'),
        (["--as", "trl"], "holds another export (as: "),
        (["--dtype", "fp32", "compare.level=0.9"], "holds another export (configuration: "),
    ):
        done = exported(finished, to, *words)
        assert done.returncode == 2 and f"{to} exists already, and {why}" in done.stderr
    (to / "README.md").write_text("Mine.")
    done = exported(finished, to, "--dtype", "fp32")
    assert done.returncode == 2 and "README.md has changed since it was written" in done.stderr
    assert (to / "README.md").read_text() == "Mine."


def test_an_adapter_is_the_trained_one(finished: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    to = tmp_path / "mine"
    done = exported(finished, to, "--as", "adapter")
    assert done.returncode == 0, done.stderr
    stage = finished / "rft" / "seed0" / "5_train"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (to / name).read_bytes() == (stage / name).read_bytes()
    assert ModelCard.load(to / "README.md").data.to_dict()["library_name"] == "peft"
    base = AutoModelForCausalLM.from_pretrained(ROOT / "rft" / "embedded" / "model")
    PeftModel.from_pretrained(base, to)
    done = exported(finished, tmp_path / "other", "--as", "adapter", "--dtype", "fp16")
    assert (
        done.returncode == 2 and "--dtype: with --as adapter nothing is stored anew" in done.stderr
    )


@pytest.mark.parametrize("form", ["parquet", "trl", "axolotl", "llama-factory", "openai"])
def test_rows(finished: Path, tmp_path: Path, form: str) -> None:
    from datasets import load_dataset

    to = tmp_path / "mine"
    done = exported(finished, to, "--as", form)
    assert done.returncode == 0, done.stderr
    chosen = list(rows.read(finished / "rft" / "seed0" / "4_select" / "train", TrainRow))
    table = pq.read_table(to / "train.parquet").to_pylist()
    assert [(row["id"], tuple(row["token_ids"])) for row in table] == [
        (row.id, row.token_ids) for row in chosen
    ]
    assert {row["verdict"] for row in table} == {"correct"} and all(row["answer"] for row in table)
    assert DatasetCard.load(to / "README.md").data.license == "apache-2.0"
    # The card's `configs` say which files are what.
    cache = str(tmp_path / "cache")
    data = load_dataset(str(to), split="train", cache_dir=cache)
    assert len(data) == len(table)
    if form != "parquet":
        assert set(data.column_names) < {"prompt", "completion", "segments", "messages"}


STAND_IN = """
import json, sys
from pathlib import Path

folder, outfile, outtype = Path(sys.argv[1]), Path(sys.argv[3]), sys.argv[5]
assert sys.argv[2::2] == ["--outfile", "--outtype"], sys.argv
assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()
if outtype == "f16":
    print("INFO", file=sys.stderr)
    sys.exit("BPE pre-tokenizer was not recognized")
outfile.write_text(json.dumps([outtype, json.loads((folder / "config.json").read_text())["dtype"]]))
"""


def test_gguf_is_the_converters(finished: Path, tmp_path: Path) -> None:
    """The stand-in tries the command line alone; tests/unit/test_merge.py has the real one (slow)."""
    script, to = tmp_path / "convert_hf_to_gguf.py", tmp_path / "mine"
    done = exported(finished, to, "--as", "gguf")
    assert done.returncode == 2 and "git clone https://github.com/ggml-org/llama.cpp" in done.stderr
    script.write_text(STAND_IN)
    words = ["--as", "gguf", "--converter", str(script)]
    done = exported(finished, to, *words, "--dtype", "fp16")
    assert done.returncode == 2 and "BPE pre-tokenizer was not recognized" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [script.name]
    done = exported(finished, to, *words)
    assert done.returncode == 0, done.stderr
    assert contents(to).keys() == {"README.md", "export.json", "quickstart_rft_seed0-bf16.gguf"}
    assert json.loads((to / "quickstart_rft_seed0-bf16.gguf").read_text()) == ["bf16", "bfloat16"]


def test_a_push_has_every_file(finished: Path, tmp_path: Path) -> None:
    to = tmp_path / "mine"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment.pop("HF_TOKEN", None)
    words = command("export", finished.parent, "--to", str(to), "--as", "openai", "--push", "me/x")

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=ROOT, env=environment | more, text=True, capture_output=True, timeout=300
        )

    done = run()
    # Known before anything is written.
    assert done.returncode == 2 and "no token for the hub" in done.stderr and not to.exists()
    with stand_in() as server:
        done = run(HF_ENDPOINT=server.url, HF_TOKEN="hf_x")
    assert done.returncode == 0, done.stderr
    assert f"pushed: {server.url}/me/x/commit/1" in done.stderr
    assert server.files == contents(to)
    assert server.made["type"] == "dataset"


@pytest.mark.parametrize("form", ["trl", "adapter", "model"])
def test_a_full_disk_leaves_nothing(finished: Path, tmp_path: Path, form: str) -> None:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    place = tmp_path / "disk"
    place.mkdir()
    base = [bwrap, "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    base += ["--size", "8192", "--tmpfs", str(place)]
    words = command("export", finished.parent, "--to", f"{place}/mine", "--as", form)
    listed = ["sh", "-c", '"$@"; code=$?; ls -A "$0"; exit $code', str(place), *words]
    done = rft(*base, *listed)
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words, told",
    [
        (["--arm", "base"], "arms.base trains nothing"),
        (["--arm", "rtf"], "no arm 'rtf' with seed 0 trains something; there are sft"),
        (["--arm", "rft", "--seed", "7"], "with seeds 0"),
    ],
)
def test_arms_that_cannot_be_exported(finished: Path, tmp_path: Path, words, told) -> None:
    done = rft(*command("export", finished.parent, *words, "--to", str(tmp_path / "mine")))
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "mine").exists()


def test_an_arm_that_is_not_trained_and_a_folder_that_is_there(
    finished: Path, tmp_path: Path
) -> None:
    done = rft(*command("export", tmp_path, "--to", str(tmp_path / "mine")))
    assert (
        done.returncode == 2
        and "is not done: run `rft train configs/quickstart.yaml`" in done.stderr
    )
    done = rft(*command("export", tmp_path, "--as", "trl", "--to", str(tmp_path / "mine")))
    assert done.returncode == 2 and "is not done: run `rft select configs" in done.stderr
    done = exported(finished, tmp_path)
    assert done.returncode == 2 and "exists already, and no export is in it" in done.stderr
