"""The weighted losses on the embedded model, through the training stage's own command."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rft import rows
from rft.types import TrainRow
from tests.invariant.test_training import CONFIGS, ROOT, job, loss_of, manifest, metrics, train

EMBEDDED = ROOT / "rft" / "embedded" / "model"
LOSS: dict[str, Any] = {"weigh": "completions", "clip": 0.2, "negatives": {}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the model itself has sampled, 4 answers to each of 12 prompts: two right, two wrong."""
    folder = tmp_path_factory.mktemp("sampled")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    model: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED).eval()
    torch.manual_seed(0)
    made = []
    for p in range(12):
        prompt = tokenizer(f"Question: Tom has {p} apples and buys {p + 2}.\nAnswer:").input_ids
        start = torch.tensor([prompt] * 12)
        with torch.no_grad():
            drawn = model.generate(
                start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.5, top_k=0,
                max_new_tokens=12, min_new_tokens=12, pad_token_id=0,
            )  # fmt: skip
            told = model(drawn).logits.log_softmax(-1)
        # Different ones, so that right and wrong don't cancel; by their middle, so that they differ.
        some = {tuple(ids[len(prompt) :].tolist()): logp for ids, logp in zip(drawn, told)}
        for k, ids in enumerate(sorted(some, key=lambda ids: ids[6:])[:4]):
            own = some[ids][len(prompt) - 1 : -1]
            logp = own.gather(1, torch.tensor(ids)[:, None])[:, 0]
            weight = 1.0 if k < 2 else -1.0
            made.append(
                TrainRow(
                    f"{p}.{k}", f"p{p:02d}", tuple(prompt), ids, False, "", weight,
                    tuple(logp.tolist()),
                )
            )  # fmt: skip
    rows.write_part(folder / "all", made, TrainRow)
    rows.write_part(folder / "right", [r for r in made if r.weight > 0], TrainRow)
    rows.write_part(folder / "wrong", [r for r in made if r.weight < 0], TrainRow)
    return folder


def a_job(folder: Path, data: Path, loss: dict[str, Any], **more: Any) -> dict:
    plain: dict[str, Any] = {"lora": {}, "epochs": 6, "lr": 1e-3, "warmup_ratio": 0.0}
    return job(folder, EMBEDDED, data, **{**plain, "loss": loss, **more})


def test_wrong_answers_become_less_likely_and_within_bounds(tmp_path: Path, data: Path):
    losses: dict[str, dict[str, Any]] = {
        "plain": {},
        "completions": {"weigh": "completions"},
        "prompts": {"weigh": "prompts"},
        "raft": {"weigh": "completions", "clip": 0.2},
        "rej": LOSS,
    }
    jobs = [
        a_job(tmp_path / name, data / ("all" if name == "rej" else "right"), loss)
        for name, loss in losses.items()
    ]
    early = {"hold_out": 0.3, "every": 2, "patience": 9}
    jobs.append(a_job(tmp_path / "early", data / "all", LOSS, early_stop=early))
    train(tmp_path, jobs)
    # What is looked at is the cross-entropy of the right ones alone.
    seen = [m["held_out_loss"] for m in metrics(tmp_path / "early") if "held_out_loss" in m]
    assert seen and all(0 < loss < 5 for loss in seen)
    before = {kind: loss_of(EMBEDDED, EMBEDDED, data / kind, False) for kind in ("right", "wrong")}
    after = {
        name: {
            kind: loss_of(tmp_path / name, EMBEDDED, data / kind, adapter=True)
            for kind in ("right", "wrong")
        }
        for name in losses
    }
    for name in losses:
        lines = metrics(tmp_path / name)
        assert all(math.isfinite(line["loss"]) for line in lines)
        assert lines[-1]["loss"] < lines[0]["loss"], name
        if name != "rej":
            assert after[name]["right"] < before["right"], name
    # At the first step every ratio is 1: -1 where all are right, 0 where as many are wrong.
    assert metrics(tmp_path / "raft")[0]["loss"] == pytest.approx(-1, abs=1e-4)
    assert abs(metrics(tmp_path / "rej")[0]["loss"]) < 0.5
    assert after["rej"]["wrong"] > before["wrong"] > after["plain"]["wrong"]
    # Past 1 + 0.2 nothing pulls, and Adam's momentum carries it but a little further.
    assert before["right"] - after["raft"]["right"] < before["right"] - after["plain"]["right"]
    assert after["rej"]["wrong"] - before["wrong"] < 1.0
    # Right and wrong are drawn in the same way here, so both move; the wrong ones further.
    assert after["rej"]["wrong"] - before["wrong"] > after["rej"]["right"] - before["right"]


def test_layouts_cuts_and_processes_change_nothing(tmp_path: Path, data: Path):
    cuts: dict[str, dict[str, Any]] = {
        "one": {},
        "rows": {"layout": "rows"},
        "small": {"tokens_per_batch": 40},
    }
    both = {"rej": LOSS, "prompts": {"weigh": "prompts"}}
    jobs = [
        a_job(
            tmp_path / f"{kind}-{name}", data / ("all" if kind == "rej" else "right"), loss, **cut
        )
        for kind, loss in both.items()
        for name, cut in cuts.items()
    ]
    train(tmp_path, jobs)
    two = [
        a_job(tmp_path / f"{kind}-two", data / ("all" if kind == "rej" else "right"), loss)
        for kind, loss in both.items()
    ]
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    train(tmp_path, two, ["--config_file", str(CONFIGS / "cpu2.yaml")], env=no_gpu)
    for kind in both:
        one = [m["loss"] for m in metrics(tmp_path / f"{kind}-one")]
        assert manifest(tmp_path / f"{kind}-one")["layout"]["kind"] == "tree"
        assert manifest(tmp_path / f"{kind}-two")["processes"] == 2
        for name in ("rows", "small", "two"):
            got = [m["loss"] for m in metrics(tmp_path / f"{kind}-{name}")]
            assert got == pytest.approx(one, rel=1e-4, abs=1e-4), f"{kind}-{name}"
