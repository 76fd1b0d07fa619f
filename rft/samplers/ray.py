"""vLLM engines in Ray actors: on this machine, or on all nodes of a cluster.

`address: null` starts Ray here by itself. Each actor holds one engine on `engine.tensor_parallel` GPUs
of one node; the number of copies is `engines`, and `engine.data_parallel` stays 1. Requests and
candidates travel in batches (rft/hosts.py), which engine gets which request is decided in
_dispatch.py, and what of Ray is used is said in rft/cluster.py. Ids, seeds and tokens are those of
`use: vllm`.

Tensor parallelism across nodes is refused: vLLM could do it, but every layer would wait for the
network twice. A model that doesn't fit on one node is better served apart (`use: openai`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rft import cluster
from rft.hosts import Pool
from rft.process import say
from rft.samplers import _serve
from rft.samplers._dispatch import Engines
from rft.samplers._serve import Adapter
from rft.types import RftError, Sampler, Setup

ADVICE = (
    "Often it is for want of memory: lower engine.max_num_seqs, engine.kv_cache_gb or "
    "engine.gpu_memory_utilization; Ray's logs on the node (/tmp/ray/session_latest/logs) have more"
)

Count = Annotated[int, Field(gt=0)]


def ray(
    setup: Setup,
    *,
    address: str | None = None,
    engines: Count | None = None,
    cpus: Count | None = None,
) -> Sampler:
    """`use: ray`. Returns when the first engine is ready; the others join as they are.

    address: null starts Ray here; `auto`, `host:6379` or `ray://host:10001` joins a cluster.
    engines: copies of the model; by default as many as the GPUs allow, or without GPUs one a node.
    cpus: cores that each reserves; default 1 beside GPUs, else the node's, shared among its engines.

    Raises RftError if there is no cluster, no room, or the first engine can't start.
    """
    if setup.engine.data_parallel > 1:
        raise RftError(
            "engine.data_parallel: with use: ray the number of copies is args.engines: set that "
            "one, and leave data_parallel out"
        )
    leave = cluster.connect(address)
    try:
        width = setup.engine.tensor_parallel
        count, cores, gpus = shares(cluster.nodes(), width, engines, cpus)
        transport = cluster.Actors(
            _serve.engine_on_a_node,
            # Beside GPUs an engine needs no core for itself.
            (*_arguments(setup, is_local=address is None), 0 if gpus else cores),
            cores,
            gpus,
            "args.cpus" if not gpus else "engine.tensor_parallel",
        )
        say(f"  ray: {count} engines, each with {gpus} GPUs and {cores} CPUs")
        return Engines(Pool(transport, count, "vLLM engine", ADVICE), setup, leave)
    except BaseException:
        leave()
        raise


def shares(
    nodes: Sequence[cluster.Node], width: int, engines: int | None, cpus: int | None
) -> tuple[int, int, int]:
    """Engines, and the CPUs and GPUs of each. width: GPUs of one copy (cores, without GPUs).

    Raises RftError if no node can hold one.
    """
    largest = max((node.gpus for node in nodes), default=0)
    if largest:
        if largest < width:
            raise RftError(
                f"engine.tensor_parallel: {width} GPUs for a copy, and the largest node of the "
                f"cluster has {largest}: lower it. A model that no node can hold is better served "
                "by `vllm serve` with pipeline parallelism, and sampled with use: openai"
            )
        return engines or sum(node.gpus // width for node in nodes), cpus or 1, width
    with_cpus = [node.cpus for node in nodes if node.cpus]
    if not with_cpus:
        raise RftError("args.address: no node of the Ray cluster offers CPUs or GPUs: add nodes")
    on_each = -(-(engines or 1) // len(with_cpus))
    cores = cpus or max(1, min(with_cpus) // on_each)
    fit = sum(has // cores for has in with_cpus) if cpus else len(with_cpus)
    if cores > max(with_cpus):
        raise RftError(
            f"args.cpus: {cores} CPUs for an engine, and the largest node of the cluster has "
            f"{max(with_cpus)}: lower it"
        )
    return engines or fit, cores, 0


def _arguments(setup: Setup, is_local: bool) -> tuple[Any, ...]:
    """Of the service. Adapters go into the object store, but where every node is this machine."""
    model, base = setup.model, Path(setup.model.base)
    prints: dict[str, str] = {}
    if base.is_dir():
        # Actors start in other folders than this process.
        model = model.model_copy(update={"base": str(base.resolve())})
        prints = _serve.model_print(base)
    adapters = []
    for path in setup.adapters:
        files = _serve.adapter_files(Path(path))
        content = None if is_local else cluster.put(files)
        folder, digest = str(Path(path).resolve()), _serve.files_digest(files)
        adapters.append(Adapter(path, folder, digest, content))
    extra = setup.engine.extra
    if setup.engine.tensor_parallel > 1:
        # In a placement group vLLM would start Ray actors of its own for a copy's GPUs, which this
        # actor holds.
        extra = {"distributed_executor_backend": "mp", **extra}
    there = _serve.portable(replace(setup, model=model), extra=extra)
    return there, setup.renderer.chat, prints, tuple(adapters)
