"""A sharded model as the files that transformers reads, of which no process ever holds all.

transformers' `save_pretrained` gathers the whole model first. Here tensors are gathered one at a time, and
the first process keeps a file's worth of them.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rft.rows import disk_errors
from rft.training import sharding

BYTES = 5 << 30
"""Of a file, about: what transformers has to convert together stays together."""


def write(model: Any, folder: Path, limit: int = BYTES) -> None:
    """Writes the weights of transformers' model into `folder`. Every process calls it.

    Raises RftError for a full disk, in all processes.
    """
    files = list(_files(model, limit))
    index: dict[str, str] = {}
    for number, held in enumerate(files, 1):
        only = len(files) == 1
        name = "model" + ("" if only else f"-{number:05d}-of-{len(files):05d}") + ".safetensors"
        made = {}
        for key, tensor in held.items():
            gathered = sharding.whole(tensor)
            if sharding.rank() == 0:
                made[key] = gathered
        index |= dict.fromkeys(
            sharding.together(partial(_write, model, made, folder / name))[0], name
        )
    if len(files) > 1 and sharding.rank() == 0:
        size = sum(t.numel() * t.element_size() for held in files for t in held.values())
        told = {"metadata": {"total_size": size}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(told, indent=2))


def _files(model: Any, limit: int) -> Iterator[dict[str, torch.Tensor]]:
    """What each file will hold: whole layers, until it has `limit` bytes. Of tied weights, the first."""
    kept = model.state_dict().keys() - set(model._keys_to_ignore_on_save or ())
    held: dict[str, torch.Tensor] = {}
    size, layer = 0, ""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name not in kept:
            continue
        found = re.match(r".*?\.\d+\.", name)
        before, layer = layer, found[0] if found else name
        if size >= limit and layer != before:
            yield held
            held, size = {}, 0
        held[name] = tensor
        size += tensor.numel() * tensor.element_size()
    yield held


def _write(model: Any, made: dict[str, torch.Tensor], path: Path) -> list[str]:
    """Writes a file as from_pretrained wants it, where there is something to write; the tensors' names."""
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    if made:
        made = revert_weight_conversion(model, made)
        with disk_errors(path):
            save_file({n: t.contiguous() for n, t in made.items()}, path, metadata={"format": "pt"})
    return list(made)
