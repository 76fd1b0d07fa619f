"""What `rft export` writes says what the arm says, and is a model that anything loads."""

import json
from pathlib import Path

import pytest
import torch

from rft import rows
from rft.types import Candidate
from tests.pipeline.conftest import ROOT, command, rft


def test_the_exported_model_answers_as_the_arm_did(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    to = tmp_path / "deep" / "mine"
    words = ["--arm", "rft", "--to", str(to), "--dtype", "fp32"]
    done = rft(*command("export", finished.parent, *words))
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
        f"base_model: {base}",
        f"{trained['rows']:,} answers to {trained['prompts']:,} prompts",
        "LoRA of rank 16",
        "master fp32, compute fp32",
        '"difference"',
        "| rft |",
        "sample:",
    ):
        assert word in card, word


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
    done = rft(*command("export", finished.parent, "--to", str(tmp_path)))
    assert done.returncode == 2 and "exists already" in done.stderr
