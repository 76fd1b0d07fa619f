"""`engine.data_parallel`: several vLLM engines in processes of their own, fed from one iterator.

`vllm.LLM` refuses data parallelism within one process, and its servers bring a load balancer along.
Copies of a model share nothing, so this starts plain samplers, each with its share of GPUs and
cores, and hands every request to the least busy one. A prompt's samples stay together, so that the
prefix cache serves them. Seeds mean the same as with one engine.
"""

import multiprocessing
import os
import queue
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rft.config import Chat
from rft.process import die_with_parent
from rft.samplers._common import budget, check_adapter
from rft.types import Candidate, Request, RftError, Setup


class Replicas:
    def __init__(self, setup: Setup):
        self._setup, self._n = setup, setup.engine.data_parallel
        devices = _devices(self._n, setup.engine.tensor_parallel)
        # An engine holds twice its sequences; the rest waits beside it, so it never runs dry.
        self._room = 3 * (setup.engine.max_num_seqs or 256)
        spawn = multiprocessing.get_context("spawn")
        self._out: Any = spawn.Queue()
        self._in: list[Any] = [spawn.Queue() for _ in range(self._n)]
        one = replace(
            setup,
            prompts={},
            renderer=None,  # type: ignore[arg-type]
        )
        self._processes = [
            spawn.Process(
                target=_serve,
                args=(i, devices[i], one, setup.renderer.chat, self._in[i], self._out),
                # Daemons may have no children, which tensor parallelism needs.
                daemon=setup.engine.tensor_parallel == 1,
            )
            for i in range(self._n)
        ]
        for process in self._processes:
            process.start()
        self._stats: list[dict[str, float]] = [{}] * self._n
        try:
            for _ in range(self._n):
                self._next()
        except BaseException:
            self.close()
            raise

    def sample(self, requests: Iterator[Request]) -> Iterator[Candidate]:
        """As `VllmSampler.sample`; up to three times max_num_seqs requests a copy are pulled."""
        busy = [0] * self._n
        last, prompt = 0, None
        room = self._room
        try:
            while True:
                while min(busy) < room and (request := next(requests, None)) is not None:
                    if request.decoding.beam_width:
                        # A copy counts a prompt's beams once, however many requests they answer.
                        room = self._room * request.decoding.n
                    budget(request, self._setup.model.max_len)
                    check_adapter(request.adapter, self._setup)
                    if request.prompt_id != prompt or busy[last] >= room:
                        last, prompt = busy.index(min(busy)), request.prompt_id
                    busy[last] += 1
                    self._in[last].put(request)
                if min(busy) < room:
                    # Nothing came: tell them, or they wait for more before they go on.
                    break
                i, candidate = self._next()
                busy[i] -= 1
                yield candidate
        finally:
            for inbox in self._in:
                inbox.put(None)
        running = self._n
        while running:
            i, got = self._next()
            if isinstance(got, Candidate):
                yield got
            else:
                running -= 1

    def _next(self) -> tuple[int, Any]:
        while True:
            try:
                i, got = self._out.get(timeout=1)
            except queue.Empty:
                dead = [p for p in self._processes if not p.is_alive()]
                if dead:
                    raise RftError(
                        f"vLLM: an engine process ended with code {dead[0].exitcode} (-9: killed, "
                        "often for want of memory); the log has its last words. Lower "
                        "engine.data_parallel or engine.max_num_seqs"
                    ) from None
                continue
            if isinstance(got, dict):
                self._stats[i] = got
            if isinstance(got, Exception):
                raise got
            return i, got

    def stats(self) -> dict[str, float]:
        """Sums over the engines; seconds are the longest engine's."""
        longest = ("seconds", "engine_start_s")
        total = {
            key: (max if key in longest else sum)(s.get(key, 0.0) for s in self._stats)
            for key in self._stats[0]
        }
        if total.get("seconds"):
            total["tokens_per_s"] = total["tokens"] / total["seconds"]
            total["prefix_cache_hit_rate"] = total["cached_tokens"] / total["prompt_tokens"]
        return total

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


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


def _serve(i: int, devices: str, setup: Setup, chat: Chat, inbox: Any, outbox: Any) -> None:
    """One engine's process: for each run takes requests until None, and answers with its stats."""
    die_with_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = devices
    n = setup.engine.data_parallel
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= n:
        os.sched_setaffinity(0, cores[i::n])
    try:
        from rft.chat import Renderer
        from rft.samplers.vllm import VllmSampler

        alone = setup.engine.model_copy(update={"data_parallel": 1})
        renderer = Renderer(setup.model, chat)
        sampler = VllmSampler(replace(setup, renderer=renderer, engine=alone))
        outbox.put((i, sampler.stats()))
        while True:
            for candidate in sampler.sample(iter(inbox.get, None)):
                outbox.put((i, candidate))
            outbox.put((i, sampler.stats()))
    except RftError as fault:
        outbox.put((i, fault))
    except BaseException:
        outbox.put((i, RuntimeError(traceback.format_exc())))
