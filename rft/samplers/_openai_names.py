"""What a server calls the model and its LoRA adapters."""

import os
from dataclasses import dataclass
from pathlib import Path

from rft.config import Model
from rft.rundir import file_digest
from rft.samplers._openai import Answer
from rft.server import Body, Server
from rft.types import RftError, digest


@dataclass(frozen=True)
class Given:
    """The names that the experiment gives."""

    model: str | None
    adapters: dict[str, str]
    """Real path of a folder -> name."""


def base_name(
    server: Server[Answer], given: Given, model: Model, served: list[Body], at: str
) -> str:
    """The name that model.base is served under.

    at: what stands before an argument's name in messages. Raises RftError if no served model is it, or
    the server takes fewer tokens than model.max_len.
    """
    for card in served:
        if card["id"] == given.model if given.model else _is_from(card, model.base):
            longest = card.get("max_model_len")
            if isinstance(longest, int) and longest < model.max_len:
                raise RftError(
                    f"model.max_len: {model.max_len} tokens are more than the {longest} that "
                    f"{server.base_url} takes: lower it, or start the server with --max-model-len "
                    f"{model.max_len}"
                )
            return str(card["id"])
    if given.model:
        return given.model  # not every server lists all that it serves
    names = ", ".join(str(card["id"]) for card in served[:20]) or "no list of its models"
    raise RftError(
        f"{at}model: {server.base_url} serves {names}, and nothing there says that it is model.base "
        f"({model.base}): name the model to sample from"
    )


async def adapter_name(
    server: Server[Answer], given: Given, folder: str, served: list[Body], at: str
) -> str:
    """The name that an adapter is served under. The server is asked to load it if it isn't.

    Raises RftError if it is neither served nor loaded.
    """
    path = os.path.realpath(folder)
    if path in given.adapters:
        return given.adapters[path]
    parts = [part for part in sorted(Path(path).glob("adapter_*")) if part.is_file()]
    if not parts:
        raise RftError(
            f"{folder}: not a LoRA adapter (it has no adapter_config.json). Give a folder that PEFT "
            "saved, or run the arm's training again"
        )
    # By content: a server may hold what an older training had left in this folder.
    name = f"rft-{digest([file_digest(part) for part in parts])[:12]}"
    for card in served:
        by_user = card.get("parent") and not str(card["id"]).startswith("rft-")
        if card["id"] == name or (by_user and _is_from(card, path)):
            return str(card["id"])
    status, text = await server.post("/load_lora_adapter", {"lora_name": name, "lora_path": path})
    if status == 200 or "already been loaded" in text:
        return name
    raise RftError(
        f"{at}adapters: {server.base_url} does not serve the LoRA adapter {folder}, and does not load "
        f"it (HTTP {status}: {text[:300].strip()}). Start it with --enable-lora, a high enough "
        "--max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or with --lora-modules "
        f"NAME={folder}; where it sees the folder under another path, set {at}adapters: "
        f"{{{folder}: NAME}}"
    )


def _is_from(card: Body, source: str) -> bool:
    """Whether a served model says that it is from this folder, or from this hub name."""
    root = str(card.get("root") or "")
    if source in (card["id"], root):
        return True
    return os.path.isdir(source) and os.path.isdir(root) and os.path.samefile(source, root)
