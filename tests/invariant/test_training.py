"""What may not change what is learnt: a kill, the number of processes, packing, other jobs.

Every test trains a real (very small, random) Llama through the stage's own command.
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rft import rows
from rft.config import Model
from rft.config_train import Train
from rft.training import checkpoint
from rft.types import TrainRow

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
TRAIN = {
    "epochs": 4,
    "tokens_per_step": 256,
    "tokens_per_batch": 128,
    "lr": 1e-3,
    "checkpoint_every": 3,
    "lora": {"dropout": 0.1},
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in (ROOT / "rft" / "embedded" / "model").glob("token*"):
        shutil.copy(path, folder)
    return folder


def write_rows(folder: Path, prompts: int = 20) -> Path:
    draw = random.Random(0)
    made = []
    for p in range(prompts):
        prompt = tuple(draw.randrange(256) for _ in range(draw.randrange(5, 30)))
        for k in range(draw.randrange(1, 5)):
            ids = tuple(draw.randrange(256) for _ in range(draw.randrange(2, 20)))
            made.append(TrainRow(f"{p}-{k}", f"p{p:03d}", prompt, ids, k == 0))
    rows.write_part(folder, made, TrainRow)
    return folder


def job(folder: Path, base: Path, data: Path, match: Path | None = None, **train: Any) -> dict:
    folder.mkdir(exist_ok=True)
    return {
        "folder": str(folder),
        "label": f"train ({folder.name}, seed 0)",
        "model": Model(base=str(base), max_len=128).model_dump(mode="json"),
        "train": Train(**{**TRAIN, **train}).model_dump(mode="json"),
        "seed": 0,
        "rows": str(data),
        "match": str(match) if match else None,
    }


def start(
    where: Path, jobs: list[dict], launch: list[str] | None = None, **kwargs: Any
) -> subprocess.Popen:
    """Starts the stage: under the launcher with these arguments, or alone for None."""
    file = where / f"jobs-{time.monotonic_ns()}.json"
    file.write_text(json.dumps(jobs))
    stage = ["-m", "rft.stages.train", str(file)]
    if launch is not None:
        stage = ["-m", "rft.training.launch", *launch, *stage]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **kwargs.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, *stage], cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE, **kwargs
    )


def train(where: Path, jobs: list[dict], launch: list[str] | None = None, **kwargs: Any) -> str:
    """Runs the stage to its good end; what it wrote to stderr."""
    child = start(where, jobs, launch, **kwargs)
    told = child.communicate(timeout=240)[1]
    assert child.returncode == 0, told
    return told


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder: Path) -> list[tuple]:
    """All that a metrics line says but its times."""
    timed = {"seconds", "tokens_per_s"}
    return [tuple(v for k, v in line.items() if k not in timed) for line in metrics(folder)]


def manifest(folder: Path) -> dict:
    got: dict = json.loads((folder / "manifest.json").read_text())
    return got


def wait_for_steps(folder: Path, count: int, child: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    path = folder / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.01)


def trainer_of(launcher: subprocess.Popen) -> int:
    pid = launcher.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_signals_kills_and_damage_leave_the_curve_as_it_was(tmp_path: Path, base: Path):
    """One run is stopped, killed, loses its newest checkpoint, and equals one that was not."""
    data = write_rows(tmp_path / "rows", prompts=40)
    settings: dict[str, Any] = {"epochs": 40, "checkpoint_every": 4}
    hurt = job(tmp_path / "hurt", base, data, **settings)
    whole = job(tmp_path / "whole", base, data, **settings)
    folder = tmp_path / "hurt"
    cpu1 = ["--config_file", str(CONFIGS / "cpu1.yaml")]

    # SIGTERM to the launcher: the step is finished, a checkpoint written, and 130 comes through.
    child = start(tmp_path, [hurt], cpu1)
    wait_for_steps(folder, 6, child)
    child.terminate()
    told = child.communicate(timeout=60)[1]
    assert child.returncode == 130, told
    saved = checkpoint.load(folder)
    assert saved is not None
    assert saved["step"] == len(metrics(folder)) < 200
    assert not (folder / "manifest.json").exists()

    # SIGKILL to the launcher: its trainer dies with it. Its words reach the named descriptor.
    stopped = saved["step"]
    screen = tmp_path / "screen"
    with open(screen, "wb") as terminal:
        fd = terminal.fileno()
        child = start(tmp_path, [hurt], cpu1, pass_fds=(fd,), env={"RFT_TERMINAL": str(fd)})
        wait_for_steps(folder, stopped + 10, child)
        trainer = trainer_of(child)
        assert alive(trainer)
        child.kill()
        child.wait()
        end = time.monotonic() + 5
        while alive(trainer) and time.monotonic() < end:
            time.sleep(0.02)
        assert not alive(trainer)
    assert f"train (hurt, seed 0): going on from step {stopped}" in screen.read_text()
    assert child.stderr
    child.stderr.close()

    # The newest checkpoint is torn, and so is the last line of the metrics.
    newest = max((folder / ".checkpoints").glob(".step-*")) / "__0_0.distcp"
    newest.write_bytes(newest.read_bytes()[:-7])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "los')

    told = train(tmp_path, [hurt, whole])
    assert "this checkpoint is damaged" in told
    assert len(curve(folder)) == manifest(folder)["steps"] == manifest(tmp_path / "whole")["steps"]
    assert curve(folder) == curve(tmp_path / "whole")
    one, other = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("hurt", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (folder / ".checkpoints").exists()
    same = {"tokens", "completion_tokens", "rows", "layout", "loss", "precision"}
    assert all(manifest(folder)[k] == manifest(tmp_path / "whole")[k] for k in same)


def test_packing_accumulation_and_other_jobs_change_nothing(tmp_path: Path, base: Path):
    """Without dropout, whose draws follow the layout. One process trains six jobs in turn."""
    data = write_rows(tmp_path / "rows")
    plain: dict[str, Any] = {"lora": {}}
    jobs = [
        job(tmp_path / "one", base, data, **plain),
        job(tmp_path / "again", base, data, **plain),
        job(tmp_path / "small", base, data, **plain, tokens_per_batch=32),
        job(tmp_path / "large", base, data, **plain, tokens_per_batch=4096),
        job(tmp_path / "bf16", base, data, **plain, precision={"compute": "bf16", "base": "bf16"}),
        job(tmp_path / "matched", base, data, match=tmp_path / "one", tokens_per_step=512),
        job(tmp_path / "half", base, data, **plain, epochs=0.5),
    ]
    train(tmp_path, jobs)
    one = metrics(tmp_path / "one")
    assert curve(tmp_path / "again") == curve(tmp_path / "one")
    assert one[-1]["loss"] < one[0]["loss"]
    for name, tolerance in (("small", 1e-5), ("large", 1e-5), ("bf16", 0.02)):
        got = metrics(tmp_path / name)
        assert [m["completion_tokens"] for m in got] == [m["completion_tokens"] for m in one]
        assert [m["loss"] for m in got] == pytest.approx([m["loss"] for m in one], rel=tolerance)
    # Cut rows compute some prompts again, and the manifest does not hide it.
    assert manifest(tmp_path / "small")["tokens"] > manifest(tmp_path / "one")["tokens"]
    assert manifest(tmp_path / "large")["layout"]["sharing_gain"] > 1.3
    # The one that is matched has dropout, and so padded rows, of like length in a batch.
    padded, none = (manifest(tmp_path / n)["layout"]["padding_share"] for n in ("matched", "large"))
    assert none == 0 < padded < 0.3
    assert manifest(tmp_path / "bf16")["precision"] == {
        "master": "float32",
        "compute": "bf16",
        "base": "bf16",
        "reduce": "fp32",
        "trainable_parameters": manifest(tmp_path / "one")["precision"]["trainable_parameters"],
    }
    # match: exactly as many steps, though its own epochs have half as many.
    matched = manifest(tmp_path / "matched")
    assert matched["steps"] == manifest(tmp_path / "one")["steps"] == len(one)
    assert matched["epochs"] > manifest(tmp_path / "one")["epochs"]
    assert manifest(tmp_path / "half")["steps"] == round(0.5 * len(one) / 4)
    # A finished job is not trained again, nor is anything imported for it.
    before = (tmp_path / "one" / "manifest.json").read_bytes()
    train(tmp_path, [jobs[0]])
    assert (tmp_path / "one" / "manifest.json").read_bytes() == before


def test_two_processes_learn_what_one_does(tmp_path: Path, base: Path):
    data = write_rows(tmp_path / "rows")
    plain: dict[str, Any] = {"lora": {}, "epochs": 3}
    train(tmp_path, [job(tmp_path / "one", base, data, **plain)])
    two = job(tmp_path / "two", base, data, **plain)
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    train(tmp_path, [two], ["--config_file", str(CONFIGS / "cpu2.yaml")], env=no_gpu)
    assert manifest(tmp_path / "two")["processes"] == 2
    one, other = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for key in ("loss", "grad_norm"):
        assert [m[key] for m in other] == pytest.approx([m[key] for m in one], rel=1e-5)
    assert [m["tokens"] for m in other] == [m["tokens"] for m in one]
    a, b = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two"))
    # Adam divides by the root of tiny second moments, so single weights may differ a little more.
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)


def test_two_sharded_processes_learn_what_one_does_and_one_goes_on(tmp_path: Path, base: Path):
    """FSDP2; a checkpoint of two processes is taken up by one, and that of one by two."""
    data = write_rows(tmp_path / "rows")
    launch = ["--config_file", str(CONFIGS / "cpu2.yaml")]
    sharded = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_FSDP": "true"}
    for kind in ({"lora": {}}, {"lora": None}):
        plain: dict[str, Any] = {**kind, "epochs": 12, "checkpoint_every": 2}
        name = "full" if kind["lora"] is None else "lora"
        one, two = (job(tmp_path / f"{name}{n}", base, data, **plain) for n in (1, 2))
        early = {"hold_out": 0.2, "every": 4, "patience": 9}
        more = job(tmp_path / f"{name}3", base, data, **{**plain, "epochs": 2}, early_stop=early)
        train(tmp_path, [one])
        # The second job of a launch finds the processes joined already.
        child = start(tmp_path, [more, two], launch, env=dict(sharded))
        wait_for_steps(Path(two["folder"]), 3, child)
        # One is asked to stop, the other killed.
        how = signal.SIGTERM if kind["lora"] is not None else signal.SIGKILL
        child.send_signal(how)
        said = child.communicate(timeout=60)[1]
        assert child.returncode == (130 if how == signal.SIGTERM else -how), said
        assert manifest(tmp_path / f"{name}3")["early_stop"]["loss"] > 0
        # Taken up by one process, and again by two.
        child = start(tmp_path, [two])
        wait_for_steps(Path(two["folder"]), len(metrics(Path(two["folder"]))) + 3, child)
        child.terminate()
        assert child.communicate(timeout=60) and child.returncode == 130
        train(tmp_path, [two], launch, env=dict(sharded))
        for key in ("loss", "grad_norm"):
            told = [[m[key] for m in metrics(tmp_path / f"{name}{n}")] for n in (1, 2)]
            assert told[1] == pytest.approx(told[0], rel=1e-4), (name, key)
        adapter = kind["lora"] is not None
        losses = [loss_of(tmp_path / f"{name}{n}", base, data, adapter) for n in (1, 2)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_accelerates_own_launcher_works_too(tmp_path: Path, base: Path):
    data = write_rows(tmp_path / "rows", prompts=4)
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([job(tmp_path / "one", base, data, epochs=1)]))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(CONFIGS / "cpu1.yaml"), "-m", "rft.stages.train", str(file)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)
    assert manifest(tmp_path / "one")["processes"] == 1


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, base: Path):
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    data, small = write_rows(tmp_path / "rows"), tmp_path / "small"
    one = job(small, base, data, lora={}, epochs=20, checkpoint_every=2)
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([one]))
    look = f"from rft.training import checkpoint as c; print('at', c.load(__import__('pathlib').Path({str(small)!r}))['step'])"
    # Room for two checkpoints and the beginning of a third.
    sandbox = [bwrap, "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    sandbox += ["--size", str(1_000_000), "--tmpfs", str(small)]
    script = (
        f'{sys.executable} -m rft.stages.train {file}; echo code $?; {sys.executable} -c "{look}"'
    )
    done = subprocess.run(
        [*sandbox, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert "code 2" in done.stdout, done.stderr
    assert "the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert int(done.stdout.split("at ")[1]) >= 2


def test_a_disk_that_is_full_at_the_end_is_one_message_too(tmp_path: Path, base: Path):
    """safetensors' error is none of Python's."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    data, small = write_rows(tmp_path / "rows", prompts=4), tmp_path / "small"
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([job(small, base, data, lora=None, epochs=1)]))
    sandbox = [bwrap, "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    sandbox += ["--size", str(200_000), "--tmpfs", str(small)]
    stage = [sys.executable, "-m", "rft.stages.train", str(file)]
    done = subprocess.run([*sandbox, *stage], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert f"error: {small}: the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "launch, settings, told",
    [
        (None, {"lr": 1e30, "max_grad_norm": 1e30}, "Lower train.lr"),
        (["--mixed_precision", "bf16"], {}, "train.launch: this launch config has mixed_precision"),
        (
            None,
            {"precision": {"compute": "tf32"}},
            "train.precision.compute: tf32: there is none on",
        ),
        (
            None,
            {"lora": {"targets": ["q"]}},
            "train.lora.targets: no module of this model is called q;",
        ),
    ],
)
def test_faults_stop_with_their_fix(tmp_path: Path, base: Path, launch, settings, told):
    data = write_rows(tmp_path / "rows", prompts=6)
    one = ["--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no", "--cpu"]
    child = start(
        tmp_path,
        [job(tmp_path / "bad", base, data, **settings)],
        None if launch is None else [*one, *launch],
    )
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 2, said
    assert f"error: {told}" in said or ("error: step" in said and told in said)
    assert "Traceback" not in said
    assert not (tmp_path / "bad" / "manifest.json").exists()
    if "lr" in settings:
        assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path / "bad"))


def loss_of(folder: Path, base: Path, data: Path, adapter: bool) -> float:
    """Of a completion token over all rows, by transformers and PEFT alone."""
    from peft import PeftModel

    model: Any = LlamaForCausalLM.from_pretrained(base if adapter else folder)
    if adapter:
        model = PeftModel.from_pretrained(model, folder)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows.read(data, TrainRow):
            ids = torch.tensor([[*row.prompt_token_ids, *row.token_ids]])
            logits = model.eval()(input_ids=ids).logits[0, len(row.prompt_token_ids) - 1 : -1]
            labels = torch.tensor(row.token_ids)
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += len(labels)
    return total / count


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {}},
    "rslora": {"lora": {"rslora": True}, "trackers": ["tensorboard"]},
    "dora": {"lora": {"dora": True}},
    "pissa": {"lora": {"init": "pissa"}},
    "pissa_rs": {"lora": {"init": "pissa", "rslora": True}},
    "full": {"lora": None},
    "fp16": {"lora": {}, "precision": {"compute": "fp16", "base": "fp16"}},
    "full_bf16": {"lora": None, "precision": {"compute": "bf16"}},
}


def test_every_method_trains_fp32_masters_and_saves_what_can_be_served(tmp_path: Path, base: Path):
    data = write_rows(tmp_path / "rows")
    jobs = {
        name: job(tmp_path / name, base, data, **settings, epochs=6, tokens_per_batch=4096)
        for name, settings in METHODS.items()
    }
    train(tmp_path, list(jobs.values()))
    start = loss_of(base, base, data, adapter=False)
    for name in METHODS:
        folder, told = tmp_path / name, manifest(tmp_path / name)
        assert told["precision"]["master"] == "float32"
        adapter = (folder / "adapter_config.json").exists()
        assert adapter is not (folder / "config.json").exists(), name
        assert adapter is (name not in ("dora", "full", "full_bf16")), name
        # Trained on these rows, and loaded on the base as it was.
        loss = loss_of(folder, base, data, adapter)
        assert loss < 0.97 * start, name
        # What the last step saw was a step before the end.
        assert loss == pytest.approx(metrics(folder)[-1]["loss"], rel=0.15), name
    assert list((tmp_path / "rslora" / "trackers").rglob("events.out.tfevents.*"))
    assert metrics(tmp_path / "fp16")[-1]["loss_scale"] >= 65536
    assert manifest(tmp_path / "fp16")["proofs"]["formats"]["gradient_cosine"] > 0.99
    lora = manifest(tmp_path / "lora")
    assert lora["layout"]["fused_layers"] == 14 + 5 + 2 and lora["flops"] > 0
    # Of weights that are trained, a third more; and no adapter beside them.
    trained = 6 * lora["precision"]["trainable_parameters"] * lora["tokens"]
    full = manifest(tmp_path / "full")["flops"]
    assert 1.4 * (lora["flops"] - trained) < full < 1.6 * (lora["flops"] - trained)


def test_early_stopping_keeps_the_best_weights(tmp_path: Path, base: Path):
    data = write_rows(tmp_path / "rows", prompts=40)
    # Random completions can be learnt by heart only: the held-out loss soon rises.
    early: dict[str, Any] = {"hold_out": 0.3, "every": 2, "patience": 2}
    common: dict[str, Any] = {"lora": {}, "epochs": 30, "lr": 1e-2}
    jobs = [
        job(tmp_path / "early", base, data, **common, early_stop=early),
        job(tmp_path / "by_accuracy", base, data, **common, early_stop={**early, "by": "accuracy"}),
    ]
    train(tmp_path, jobs)
    told, lines = manifest(tmp_path / "early"), metrics(tmp_path / "early")
    seen = {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}
    assert told["early_stop"]["stopped"] and told["steps"] == len(lines) == max(seen)
    best = min(seen, key=lambda step: seen[step])
    assert told["early_stop"]["best_step"] == best <= told["steps"] - 4
    assert told["early_stop"]["loss"] == seen[best]
    assert "accuracy" in manifest(tmp_path / "by_accuracy")["early_stop"]
    # The saved weights are the best ones', not the last ones'.
    from rft.training.data import read_groups
    from rft.training.job import _divided

    settings = Train(**{**TRAIN, **common, "early_stop": early})
    out = {g.prompt_id for g in _divided(read_groups(rows.read(data, TrainRow)), settings, "")[1]}
    held = tmp_path / "held"
    some = [row for row in rows.read(data, TrainRow) if row.prompt_id in out]
    rows.write_part(held, some, TrainRow)
    assert len(out) == told["early_stop"]["held_out_prompts"]
    assert loss_of(tmp_path / "early", base, held, adapter=True) == pytest.approx(
        seen[best], rel=1e-4
    )


def test_a_leap_is_rolled_back_and_its_steps_left_out(tmp_path: Path, base: Path):
    """One prompt's answer is noise among answers that are all alike, and soon known by heart."""
    draw = random.Random(0)

    def row(p: int, ids: tuple[int, ...]) -> TrainRow:
        return TrainRow(
            f"{p}", f"p{p:03d}", tuple(draw.randrange(256) for _ in range(9)), ids, False
        )

    made = [row(p, (7,) * 8) for p in range(60)]
    made.append(row(60, tuple(draw.randrange(256) for _ in range(40))))
    rows.write_part(tmp_path / "rows", made, TrainRow)
    settings: dict[str, Any] = {
        "lora": {},
        "epochs": 4,
        "checkpoint_every": 2,
        "lr": 1e-2,
        "tokens_per_step": 128,
        "spikes": {"action": "rollback", "nats": 1.0},
    }
    jobs = [
        job(tmp_path / "back", base, tmp_path / "rows", **settings),
        job(tmp_path / "on", base, tmp_path / "rows", **{**settings, "spikes": {}}),
    ]
    said = train(tmp_path, jobs)
    told, lines = manifest(tmp_path / "back"), metrics(tmp_path / "back")
    assert "leaving out the" in said
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    planned = manifest(tmp_path / "on")["steps"]
    missing = set(range(1, planned + 1)) - set(steps)
    assert told["left_out_steps"] == len(missing) == planned - told["steps"] > 0
    # Nothing leaps in what is left.
    late = [line["loss"] for line in lines if line["step"] > planned // 2]
    assert max(late) < 1.0 < max(m["loss"] for m in metrics(tmp_path / "on")[planned // 2 :])
    stop = {**settings, "spikes": {"action": "stop"}}
    child = start(tmp_path, [job(tmp_path / "stop", base, tmp_path / "rows", **stop)])
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 2
    assert "train.spikes.action to rollback" in said


@pytest.mark.parametrize("by", ["tokens", "flops"])
def test_match_by_tokens_and_flops(tmp_path: Path, base: Path, by: str):
    data, few = write_rows(tmp_path / "rows", prompts=30), write_rows(tmp_path / "few", prompts=8)
    plain: dict[str, Any] = {"lora": {}, "tokens_per_step": 128}
    train(
        tmp_path,
        [
            job(tmp_path / "one", base, data, **plain),
            job(tmp_path / "two", base, few, match=tmp_path / "one", match_by=by, **plain),
        ],
    )
    one, two = manifest(tmp_path / "one"), manifest(tmp_path / "two")
    spent = [
        m["flops"] if by == "flops" else m["layout"]["separate_rows_tokens"] for m in (one, two)
    ]
    assert spent[1] == pytest.approx(spent[0], rel=0.1)
