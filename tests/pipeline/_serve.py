"""`vllm serve` on this machine, as a user would start it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

LORA = ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "2"]
CORES = sorted(os.sched_getaffinity(0))
"""A server takes the first and an engine beside it the last, since their threads wait for one another."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def start(
    model: Path,
    name: str,
    max_len: int,
    log: Path,
    port: int,
    *more: str,
    cores: Iterable[int] = (),
) -> subprocess.Popen[bytes]:
    """A server with the settings that suit a CPU.

    more: further arguments of vLLM's. cores: which to use, by default all.
    """
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores or sorted(os.sched_getaffinity(0)))),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "HF_HUB_OFFLINE": "1",
    }
    args = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    args += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    args += ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "64"]
    # Seeded requests whose prompt is prefilled in several steps end the engine on a CPU.
    args += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(2048, max_len))]
    args += ["--max-model-len", str(max_len), *more]
    with open(log, "ab") as out:
        return subprocess.Popen(
            args, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 500
    while True:
        assert server.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)


def stop(server: subprocess.Popen[bytes], *signals: int) -> None:
    for number in signals or (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


@contextmanager
def served(
    model: Path,
    max_len: int,
    log: Path,
    *more: str,
    name: str = "tiny",
    cores: Iterable[int] = (),
) -> Iterator[str]:
    """A server that is stopped at the end; gives the base_url."""
    port = free_port()
    server = start(model, name, max_len, log, port, *more, cores=cores)
    try:
        wait_for(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        stop(server)
