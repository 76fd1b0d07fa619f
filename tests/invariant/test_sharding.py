"""Two processes (gloo) that share a model: checkpoints and files that no process ever holds whole.

All processes see the same batch, so that the mean of their gradients is each one's, and one process
computes what two do.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from rft.config_train import EarlyStop, Precision, Train
from rft.training import checkpoint, sharding, stream
from rft.training.data import Layout, collate
from rft.training.job import _check_fits, _load, _weights
from rft.training.loop import Best
from rft.training.model import adapt
from rft.training.objective import Fit, Objective
from rft.types import RftError
from tests.unit.test_training_model import llama, some_groups

SAVED, LAST = 3, 6
"""Steps."""


class Trained:
    """A small model of which all weights are trained, sharded where there are two processes."""

    def __init__(self, **changes: Any) -> None:
        # Odd sizes, which two processes can't halve.
        shape = {"vocab_size": 67, "intermediate_size": 33, "tie_word_embeddings": True, **changes}
        self.model = adapt(llama(**shape), Train(lora=None), seed=0)
        self.objective: Any = Objective(self.model, Fit(Layout.ROWS), None)
        if sharding.world() > 1:
            device = torch.device("cpu")
            self.objective = sharding.shard(self.objective, self.model, Precision(), device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.best = Best(EarlyStop())
        self.done = 0

    def go_on(self, to: int, stage: Path | None = None) -> None:
        while self.done < to:
            self.objective(collate(some_groups()[: 1 + self.done % 3], Layout.ROWS)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.done += 1
            if self.done == 2:
                self.best.take(2, {"held_out_loss": 1.0}, _weights(self.model))
            if stage and self.done in (1, SAVED):
                self.save(stage)

    def save(self, stage: Path) -> None:
        state = {
            "weights": _weights(self.model),
            "run": {"optimizer": self.optimizer.state_dict()},
            "best": self.best.state_dict(),
        }
        checkpoint.save(stage, self.done, state)

    def load(self, stage: Path) -> "Trained":
        saved = checkpoint.load(stage)
        assert saved
        own = _weights(self.model)
        _check_fits(saved, own)
        saved = checkpoint.fill(saved, {**own, **dict(enumerate(self.model.parameters()))})
        _load(self.model, saved["weights"])
        sharding.load_optimizer_state(self.optimizer, saved["run"]["optimizer"])
        self.best.load_state_dict(saved["best"])
        self.done = saved["step"]
        return self

    def write(self, file: Path) -> None:
        """The weights now, and the best ones."""
        now, best = (
            {n: sharding.whole(w) for n, w in some.items()}
            for some in (_weights(self.model), self.best.weights)
        )
        if sharding.rank() == 0:
            torch.save({"now": now, "best": best}, file)


def _process(rank: int, work: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    where = f"file://{folder}/store-{work.__name__}"
    torch.distributed.init_process_group("gloo", where, rank=rank, world_size=2)
    work(folder)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def two(work: Any, folder: Path) -> None:
    """Runs work(folder) in two processes that share what they train."""
    torch.multiprocessing.spawn(_process, (work, folder), nprocs=2)


def _two_train(folder: Path) -> None:
    whole = Trained()
    whole.go_on(LAST, folder / "of-two")
    whole.write(folder / "2.pt")
    stream.write(whole.model, folder, limit=20_000)
    for source in ("of-two", "of-one"):
        again = Trained().load(folder / source)
        assert again.done == SAVED
        again.go_on(LAST)
        again.write(folder / f"{source}-2.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one and one of two processes, and the others' runs that go on from their checkpoints."""
    folder = tmp_path_factory.mktemp("shared")
    whole = Trained()
    whole.go_on(LAST, folder / "of-one")
    whole.write(folder / "1.pt")
    two(_two_train, folder)
    for source in ("of-two", "of-one"):
        again = Trained().load(folder / source)
        again.go_on(LAST)
        again.write(folder / f"{source}-1.pt")
    return folder


@pytest.mark.parametrize("kind", ["now", "best"])
def test_a_run_goes_on_with_any_number_of_processes(folder: Path, kind: str):
    expected = torch.load(folder / "1.pt")[kind]
    for name in ("2", "of-two-2", "of-two-1", "of-one-2", "of-one-1"):
        got = torch.load(folder / f"{name}.pt")[kind]
        assert got.keys() == expected.keys()
        for key in got:
            assert torch.allclose(got[key], expected[key], rtol=0, atol=1e-6), (name, key)
    assert any(
        not torch.equal(torch.load(folder / "1.pt")["now"][n], expected[n]) for n in expected
    ) is (kind == "best")


def test_each_process_writes_its_part(folder: Path):
    sizes = [
        (folder / "of-two" / ".checkpoints" / f".step-{SAVED:09d}-000" / f"__{rank}_0.distcp")
        .stat()
        .st_size
        for rank in (0, 1)
    ]
    whole = folder / "of-one" / ".checkpoints" / f".step-{SAVED:09d}-000" / "__0_0.distcp"
    assert max(sizes) < 0.7 * whole.stat().st_size


def test_files_of_bounded_size_are_a_model_as_transformers_reads_it(folder: Path):
    Trained().model.config.save_pretrained(folder)
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    told = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert told == {name: path.name for path in files for name in load_file(path)}
    read = LlamaForCausalLM.from_pretrained(folder).state_dict()
    expected = torch.load(folder / "2.pt")["now"]
    assert expected.keys() == read.keys() - {"lm_head.weight"}
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def _one_disk_is_full(folder: Path) -> None:
    trained = Trained()
    trained.go_on(1)
    trained.save(folder)
    trained.go_on(2)
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    # While DCP writes, and between its steps.
    for place, name in ((checkpoint._Files, "create_stream"), (checkpoint, "_digests")):
        other = full if sharding.rank() == 1 else getattr(place, name)
        with patch.object(place, name, other), pytest.raises(RftError, match="the disk is full"):
            trained.save(folder)
        saved = checkpoint.load(folder)
        assert saved and saved["step"] == 1
        torch.distributed.barrier()
        assert not (folder / ".checkpoints" / ".tmp").exists()
        torch.distributed.barrier()  # or the other has begun to write the next
    trained.save(folder)
    saved = checkpoint.load(folder)
    assert saved and saved["step"] == 2


def _one_file_is_damaged(folder: Path) -> None:
    trained = Trained()
    trained.go_on(LAST, folder / "damaged")
    newest = folder / "damaged" / ".checkpoints" / f".step-{SAVED:09d}-000"
    if sharding.rank() == 0:
        path = newest / "__1_0.distcp"
        path.write_bytes(path.read_bytes()[:-7])
    torch.distributed.barrier()
    saved = checkpoint.load(folder / "damaged")
    assert saved and saved["step"] == 1


def _one_is_killed(folder: Path) -> None:
    trained = Trained()
    trained.go_on(1, folder / "killed")
    if sharding.rank() == 1:
        checkpoint._Files.create_stream = lambda *_: os._exit(9)
    trained.go_on(SAVED, folder / "killed")


def _each_has_all(folder: Path) -> None:
    """As DDP has it: the processes divide the writing, and each reads all."""
    weights = {f"w{i}": torch.arange(5.0) + i for i in range(4)}
    checkpoint.save(folder, 1, {"weights": weights})
    saved = checkpoint.load(folder)
    assert saved
    got = checkpoint.fill(saved, {})["weights"]
    assert all(torch.equal(got[name], weights[name]) for name in weights)
    sizes = [path.stat().st_size for path in saved["folder"].glob("*.distcp")]
    assert len(sizes) == 2 and max(sizes) < 1.5 * min(sizes)


def _faults(folder: Path) -> None:
    _each_has_all(folder / "plain")
    _one_file_is_damaged(folder)
    _one_disk_is_full(folder / "full")


def test_what_befalls_one_process_both_hear_of(tmp_path: Path):
    two(_faults, tmp_path)


def test_a_kill_while_two_write_leaves_the_checkpoint_before(tmp_path: Path):
    with pytest.raises(torch.multiprocessing.ProcessExitedException):
        two(_one_is_killed, tmp_path)
    assert (tmp_path / "killed" / ".checkpoints" / ".tmp").is_dir()
    trained = Trained().load(tmp_path / "killed")
    assert trained.done == 1
    trained.save(tmp_path / "killed")
    assert not (tmp_path / "killed" / ".checkpoints" / ".tmp").exists()


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path):
    trained = Trained()
    trained.save(tmp_path)
    with pytest.raises(
        RftError,
        match=r"another model or adapter: its .* is \(67, 32\), and this run's \(67, 16\). Remove .*\.checkpoints to train anew",
    ):
        Trained(hidden_size=16).load(tmp_path)
    with pytest.raises(RftError, match="is none, and this run's"):
        Trained(num_hidden_layers=3).load(tmp_path)
