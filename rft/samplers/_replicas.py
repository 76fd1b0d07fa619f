"""`engine.data_parallel`: several vLLM engines in processes of this machine, fed from one iterator.

`vllm.LLM` refuses data parallelism within one process, and its servers bring a load balancer along.
Copies of a model share nothing, so this starts plain samplers, each with its share of GPUs and
cores. Seeds mean the same as with one engine.
"""

import functools
import os

from rft.hosts import Pool, Processes
from rft.samplers import _serve
from rft.samplers._dispatch import Engines
from rft.types import RftError, Setup

ADVICE = (
    "Exit code -9 is often for want of memory: lower engine.data_parallel, engine.max_num_seqs, "
    "engine.kv_cache_gb or engine.gpu_memory_utilization"
)


def replicas(setup: Setup) -> Engines:
    n, width = setup.engine.data_parallel, setup.engine.tensor_parallel
    transport = Processes(
        _serve.engine,
        (_serve.portable(setup, data_parallel=1), setup.renderer.chat),
        prepare=functools.partial(_share, _devices(n, width)),
        # Daemons may have no children, which tensor parallelism needs.
        daemon=width == 1,
    )
    return Engines(Pool(transport, n, "vLLM engine", ADVICE), setup)


def _devices(n: int, width: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES for each of n copies of `width` GPUs; empty where there are none.

    Raises RftError if there are GPUs, and too few.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    there = named.split(",") if named else [str(d) for d in range(count)]
    if count and count < n * width:
        raise RftError(
            f"engine: data_parallel {n} x tensor_parallel {width} needs {n * width} GPUs, and "
            f"{count} can be used: lower one of the two"
        )
    return [",".join(there[i * width : (i + 1) * width]) if count else "" for i in range(n)]


def _share(devices: list[str], i: int) -> None:
    """Gives this process the i-th copy's GPUs, and its share of the cores."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[i]
    _serve.keep_to_cores(max(1, len(os.sched_getaffinity(0)) // len(devices)))
