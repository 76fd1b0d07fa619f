"""Ray: joining a cluster or starting one here, and workers in its actors.

What of Ray is used, and why. *Actors*, because an engine takes a minute to start and must keep what
it has loaded. A *placement group* of one bundle for each actor (STRICT_PACK: all its GPUs on one
node): it holds their place when an actor dies, so that a fresh one isn't kept out by others, and tells an
autoscaler at once what is wanted. The *object store*, for what is large and goes to many: adapters.
Calls of an actor's methods carry the rest: requests out, candidates back. Ray's own restarts and
retries are off: which requests a dead actor owed is known here, and only here is it known which of
them have been answered. Ray Data isn't used: it maps a data set that is there before, while
requests here depend on verdicts; its blocks are counted in rows and not in what an engine has room
for; and rows go to disk as they come, by id, so there is no shuffle, join or sink left for it.
"""

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft.hosts import ROOM_S, Host, Lost
from rft.types import RftError

OBJECT_STORE_BYTES = 256 << 20
"""Of a Ray that is started here. Messages are small, and adapters needn't travel."""

MANY, LOOKS_PER_S = 64, 50
"""Looking through a thousand calls for answered ones takes 2 ms, so with many it is done less often."""

LONGEST_SOCKET = 107
"""Bytes that Linux allows in the path of a Unix socket."""


@dataclass(frozen=True)
class Node:
    name: str
    cpus: int
    gpus: int


def connect(address: str | None) -> Callable[[], None]:
    """Joins the cluster at `address`, or starts Ray here if it is None; returns what undoes it.

    A process has one cluster: who comes second shares it, and who leaves last ends it.

    address: `auto` (the cluster that this machine is a node of), `host:6379` (the same, by name), or
    `ray://host:10001` (Ray Client, from anywhere). Raises RftError if that cannot be.
    """
    with _CONNECTING:
        if _joined:
            if address != _joined[0].address:
                raise RftError(
                    f"ray: {address or 'a Ray of its own'} is asked for, and this process is in "
                    f"{_joined[0].address or 'a Ray of its own'} already: give samplers (args.address) "
                    "and scorers (ray.address) the same"
                )
        else:
            _joined.append(_Joined(address, _join(address)))
        _joined[0].users += 1
    left = False

    def leave() -> None:
        nonlocal left
        with _CONNECTING:
            if left:
                return
            left = True
            _joined[0].users -= 1
            if not _joined[0].users:
                _joined.pop().end()

    return leave


@dataclass
class _Joined:
    """The cluster that this process is in."""

    address: str | None
    end: Callable[[], None]
    users: int = 0


_joined: list[_Joined] = []
_CONNECTING = threading.Lock()


def _join(address: str | None) -> Callable[[], None]:
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    _set_environment(address)
    try:
        import ray
    except ImportError as fault:
        raise RftError(
            f"ray: it cannot be imported ({fault}): install rft with its extra: `pip install "
            "'.[ray]'` in the checkout"
        ) from fault
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": len(os.sched_getaffinity(0)),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": _folder(),
        }
    else:
        options["address"] = address
    with _own_signals():
        try:
            context = ray.init(**options)
        except Exception as fault:
            raise RftError(_no_cluster(address, fault)) from fault
    session = None if address else context.address_info["session_dir"]

    def leave() -> None:
        ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if session:
            shutil.rmtree(session, ignore_errors=True)

    return leave


def _set_environment(address: str | None) -> None:
    """What Ray reads before it is imported."""
    # Ray tells its makers what it is used for, and asks on a terminal whether it may.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" in os.environ:
        return
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if address is None and not named:
        # Its processes must know one another. Without this, the token would be left in ~/.ray.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif address and address.startswith("ray://"):
        # Ray Client, unlike the rest of Ray, doesn't look for a token by itself.
        if named or (Path.home() / ".ray" / "auth_token").is_file():
            os.environ["RAY_AUTH_MODE"] = "token"


def _folder() -> str:
    """Where a Ray that is started here keeps sockets and logs: ours alone, and not too deep."""
    name, deepest = f"rft-ray-{os.getuid()}", 64
    parent = tempfile.gettempdir()
    if len(parent) + len(name) + deepest > LONGEST_SOCKET:
        parent = "/tmp"
    folder = Path(parent) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RftError(f"{folder}: belongs to someone else: set TMPDIR to a folder of your own")
    for session in folder.glob("session_*_*"):
        # Their names end in the process that started them. A killed one left its folder behind.
        if not Path("/proc", session.name.rpartition("_")[2]).exists():
            shutil.rmtree(session, ignore_errors=True)
    return str(folder)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps the handlers of a stage, which writes what is finished before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _no_cluster(address: str | None, fault: Exception) -> str:
    text = " ".join(str(fault).split()) or type(fault).__name__
    if "ersion mismatch" in text:
        fix = "install the same versions of Ray and Python here and on the cluster"
    elif "timed out during startup" in text:
        fix = "Ray gives its processes 30 s to start, and this machine was too busy: try again"
    elif address is None:
        fix = "Ray could not be started here; TMPDIR must be writable and have some 100 MB free"
    elif address.startswith("ray://"):
        fix = "check that the head node runs, and that its port (10001) can be reached from here"
    elif address == "auto":
        fix = "start one (`ray start --head`), name its head (ray://host:10001), or leave it out"
    else:
        fix = "check that it runs; from a machine that isn't one of its nodes, use ray://host:10001"
    return f"address: {address or 'null'}: no Ray cluster: {text[:300]}. Fix: {fix}"


def nodes() -> list[Node]:
    """The cluster's living nodes, with all that each has."""
    import ray

    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            found.append(Node(name, int(has.get("CPU", 0)), int(has.get("GPU", 0))))
    return found


def put(value: Any) -> list[Any]:
    """Stores a value for all nodes. In a list the reference travels as it is, and is fetched (`ray.get`)
    only by those who need it."""
    import ray

    return [ray.put(value)]


class RftWorker(Host):
    """A Host in a Ray actor, where the service has a thread beside the one that answers calls."""

    def __init__(self, given: tuple[Callable[..., None], tuple[Any, ...]]):
        super().__init__(*given)

    def where(self) -> str:
        import ray

        node_id = ray.get_runtime_context().get_node_id()
        return f"node {ray.util.get_node_ip_address()} ({node_id[:8]})"

    def start(self) -> Any:
        threading.Thread(target=self.run, daemon=True).start()
        return super().start()


class Actors:
    """Transport to Ray actors. service, args: as a Host takes them; cpus, gpus: of each actor; needs:
    the setting that they follow from, for a message."""

    def __init__(
        self,
        service: Callable[..., None],
        args: tuple[Any, ...],
        cpus: float,
        gpus: int,
        needs: str,
    ):
        import ray

        self._ray, self._needs = ray, needs
        self._bundle = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        # The same for all, so it travels once.
        self._args = ray.put((service, args))
        self._class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(
            RftWorker
        )
        self._groups: dict[int, Any] = {}

    def start(self, slot: int) -> Any:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if slot not in self._groups:
            self._groups[slot] = placement_group([self._bundle], strategy="STRICT_PACK")
        place = PlacementGroupSchedulingStrategy(self._groups[slot], 0)
        return self._class.options(scheduling_strategy=place).remote(self._args)

    def call(self, handle: Any, method: str, *args: Any) -> Any:
        return getattr(handle, method).remote(*args)

    def wait(self, tokens: Collection[Any], timeout_s: float) -> Sequence[Any]:
        refs = list(tokens)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready:
            if len(refs) > MANY:
                time.sleep(1 / LOOKS_PER_S)
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return ready

    def result(self, token: Any) -> Any:
        import ray.exceptions as known

        try:
            return self._ray.get(token)
        except known.RayTaskError:
            raise
        except known.RayError as fault:
            text = str(fault)
            if "No module named" in text:
                missing = text.split("No module named", 1)[1].split("\n", 1)[0].strip()
                raise RftError(
                    f"ray: a node of the cluster has no Python module {missing}: install rft with "
                    "the same packages on each (docs/cluster.md)"
                ) from fault
            raise Lost(" ".join(text.split())[:600]) from fault

    def stop(self, handle: Any) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(handle)

    def no_room(self) -> str:
        has = {k: v for k, v in self._ray.cluster_resources().items() if k in ("CPU", "GPU")}
        free = {k: v for k, v in self._ray.available_resources().items() if k in ("CPU", "GPU")}
        return (
            f"ray: no node had room in {ROOM_S:.0f} s: an actor needs {_shown(self._bundle)} on one "
            f"node, the cluster has {_shown(has)} in all, of which {_shown(free)} free. Stop what "
            f"holds the rest, add nodes, or lower {self._needs}"
        )

    def close(self) -> None:
        from ray.util.placement_group import remove_placement_group

        for group in self._groups.values():
            with contextlib.suppress(Exception):
                remove_placement_group(group)


def _shown(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{n:g} {name}" for name, n in resources.items()) or "none"
