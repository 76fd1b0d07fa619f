"""The far end of `engine.data_parallel` and of `use: ray`: a vLLM engine that takes its requests from
a Host and gives it candidates.

The engine never hears an end. Where there is nothing to take it goes on with what is under way, and
waits once that is finished; so several runs can follow one another, and nothing has to be agreed
on between the ends.
"""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, cast

from rft.chat import Renderer
from rft.config import Chat
from rft.hosts import Cut, Host
from rft.samplers._dispatch import pack
from rft.samplers.vllm import VllmSampler
from rft.types import Candidate, Request, RftError, Setup

MORE = 1.5
"""Requests to hold, as a multiple of what the engine pulls: what waits beside it lasts between two
messages."""


def portable(setup: Setup, **engine: Any) -> Setup:
    """The set-up without what another process makes for itself, and with other engine settings."""
    changed = setup.engine.model_copy(update=engine)
    return replace(setup, prompts={}, renderer=cast(Any, None), engine=changed)


def engine(host: Host, setup: Setup, chat: Chat, folders: Mapping[str, str] | None = None) -> None:
    """The service. setup: as `portable` gives it; folders: where this machine has the adapters that
    the caller names. Ready with {room, stats}; gives packed candidates; each report is the engine's
    stats."""
    folders = folders or {path: path for path in setup.adapters}
    here = tuple(folders[path] for path in setup.adapters)
    sampler = VllmSampler(replace(setup, renderer=Renderer(setup.model, chat), adapters=here))
    host.ready({"room": int(MORE * sampler.room), "stats": sampler.stats()})
    under_way = 0

    def requests() -> Iterator[Request | None]:
        nonlocal under_way
        while True:
            request = host.take(block=not under_way)
            if request is not None:
                under_way += 1
                if request.adapter:
                    request = replace(request, adapter=folders[request.adapter])
            yield request

    while True:
        under_way = 0
        stream = cast(Generator[Candidate], sampler.sample(requests()))
        with contextlib.closing(stream):
            try:
                for candidate in stream:
                    under_way -= 1
                    host.give(pack(candidate), sampler.stats())
            except Cut:
                host.clear()
            except RftError as fault:  # of a request; the engine is well
                host.fail(fault)


# On another machine ------------------------------------------------------------------------------

READ_WHOLE = 64 << 20
"""Bytes; of larger files in a model's folder, names and sizes are compared, and not contents."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder on the caller's machine, and what is in it."""

    name: str
    """As requests name it."""
    folder: str
    """Its absolute path."""
    digest: str
    content: Any = None
    """Reference to {file name: bytes} in Ray's object store, in a list so that it is fetched only
    where it is needed; None where every node is this machine."""


def adapter_files(folder: Path) -> dict[str, bytes]:
    """What serving an adapter takes: its configuration and weights, without checkpoints and logs."""
    paths = sorted(folder.glob("adapter_*"))
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def files_digest(files: Mapping[str, bytes]) -> str:
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(f"{name} {len(files[name])}\n".encode())
        found.update(files[name])
    return found.hexdigest()


def adapter_here(adapter: Adapter, root: Path) -> str:
    """A folder on this machine with the adapter's files: the same path if it holds them (a shared
    file system), else one below `root`, filled from the object store if it isn't yet."""
    own = root / adapter.digest
    for folder in (Path(adapter.folder), own):
        if folder.is_dir() and files_digest(adapter_files(folder)) == adapter.digest:
            return str(folder)
    if adapter.content is None or own.exists():
        wrong = own if own.exists() else adapter.folder
        raise RftError(f"{wrong}: this adapter's files have changed: remove the folder")
    import ray

    files = ray.get(adapter.content[0])
    root.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as made:
        for name, data in files.items():
            (Path(made) / name).write_bytes(data)
        # Several engines of a node may do this at once: the first one's stays.
        with contextlib.suppress(OSError):
            os.rename(made, own)
            os.mkdir(made)
    return str(own)


def model_print(folder: Path) -> dict[str, str]:
    """What tells two copies of a model's folder apart, by file name: size, and content if small."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            size = path.stat().st_size
            content = path.read_bytes() if size <= READ_WHOLE else b""
            found[path.name] = f"{size} {hashlib.sha256(content).hexdigest()}"
    return found


def check_model(base: str, wanted: Mapping[str, str]) -> None:
    """Raises RftError if this machine lacks the model's folder, or has another model there."""
    folder = Path(base)
    if not folder.is_dir():
        raise RftError(
            f"model.base: {base} is not on this node: put it on a file system that all nodes "
            "share, copy it to the same path on each, or name a model of the Hugging Face hub"
        )
    here = model_print(folder)
    for name in wanted:
        if here.get(name) != wanted[name]:
            what = "differs from" if name in here else "is missing, unlike"
            raise RftError(
                f"model.base: {base}/{name} on this node {what} the one where the run was started: "
                "copy the folder again"
            )


def keep_to_cores(count: int) -> None:
    """Keeps this thread, and what it starts, on so many cores that no other engine of this machine keeps
    to; where there are not as many, on all. An engine's threads wait for one another, so copies should
    not share cores, and neither Ray nor multiprocessing gives out any in particular."""
    folder = Path(tempfile.gettempdir()) / f"rft-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found: dict[int, TextIO] = {}
    for core in sorted(os.sched_getaffinity(0)):
        lock = open(folder / str(core), "w")  # noqa: SIM115 (the kernel closes it with the process)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        found[core] = lock
        if len(found) == count:
            os.sched_setaffinity(0, found)
            _cores.update(found)
            return
    for unused in found.values():
        unused.close()


_cores: dict[int, TextIO] = {}
"""Locks of the cores that this process keeps to."""


def engine_on_a_node(
    host: Host,
    setup: Setup,
    chat: Chat,
    model: Mapping[str, str],
    adapters: tuple[Adapter, ...],
    cores: int,
) -> None:
    """The service `engine` where files of the caller's may be missing. model: its folder's print,
    empty where it comes from the hub; cores: to keep to, 0 for all."""
    if cores:
        keep_to_cores(cores)
    if model:
        check_model(setup.model.base, model)
    root = Path(tempfile.gettempdir()) / f"rft-adapters-{os.getuid()}"
    folders = {adapter.name: adapter_here(adapter, root) for adapter in adapters}
    engine(host, setup, chat, folders)
