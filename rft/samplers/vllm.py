"""The default sampler: requests pulled into a running vLLM engine, finished ones yielded at once.

`LLM.generate` wants every request before it starts and gives every answer after it ends. This goes
one level lower, to the same engine's `add_request` and `step`, and keeps it just full: at most
twice `max_num_seqs` requests are inside, so the caller's iterator runs no further ahead than that,
and a killed run loses no more. Each sample is its own request with its own seed; the KV
cache of a prompt is shared through vLLM's prefix cache.

Log-probabilities are of the model itself: log-softmax of the raw logits, before temperature,
penalties and truncation (vLLM's `logprobs_mode=raw_logprobs`), in nats.

How far a seed holds. The random numbers of a sample depend on its seed alone: not on the order of
requests, on what else is in the batch, or on a resume. Its logits do depend on the batch, in their
last bits, since matrix products of other sizes add in another order; where two tokens' chances are
within that rounding, a token, and so the rest of that sample, can differ. In float32 on one
machine that did not happen in 2,840 samples (75,000 tokens, temperature 0.8) drawn again in another
order, as a subset, and in smaller batches. In bfloat16 it did in 111 of 480 samples of 32 tokens.
Another machine or vLLM version is another rounding.

On a CPU: float32, for the above, and for speed where there is no AVX-512; KV blocks of 32
tokens, since with the default of 128 short prompts are never shared; prefill in one step, because
vLLM 0.32 dies on a seeded request whose prompt is prefilled in several (`CPU Generator does not use
offset`); our own LoRA product, see `_vllm_patches.py`. On a GPU vLLM's own defaults stay.
"""

import itertools
import json
import os
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rft.config import Model
from rft.config_decoding import Engine
from rft.faults import did_you_mean
from rft.loops import may_stop
from rft.samplers import _vllm_patches
from rft.samplers._beam import BeamJob, Peekable, same_search
from rft.samplers._common import budget, candidate, check_adapter
from rft.samplers._formats import missing, peak_rss_gb
from rft.types import Candidate, Finish, Request, RftError, Sampler, Setup

OURS = {
    "model": "model.base",
    "tokenizer": "model.base",
    "revision": "model.revision",
    "max_model_len": "model.max_len",
    "trust_remote_code": "model.trust_remote_code",
    "enable_lora": "sample.policy",
    "max_num_seqs": "engine.max_num_seqs",
    "dtype": "engine.dtype",
    "logprobs_mode": None,
}
"""Engine arguments that have a setting of ours, or none that keeps a sample's meaning (None)."""

FINISH = {"stop": Finish.STOP, "length": Finish.LENGTH, "repetition": Finish.LOOP}

MAX_LORAS = 8
"""Adapters that may share one batch; each takes a slot of memory."""


def vllm(setup: Setup) -> Sampler:
    """`use: vllm`. Starts the engine; raises RftError if it can't be had."""
    if setup.engine.data_parallel > 1:
        from rft.samplers._replicas import replicas

        return replicas(setup)
    return VllmSampler(setup)


class VllmSampler:
    """One engine in this process (in worker processes of vLLM's with tensor_parallel)."""

    _alive = False

    def __init__(self, setup: Setup):
        began = time.monotonic()
        _set_environment(setup.model, setup.engine)
        try:
            import vllm
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
        except ImportError as fault:
            raise RftError(
                f"use: vllm: it cannot be imported ({fault}). `make setup` installs it; or set "
                "sample.use=transformers eval.use=transformers"
            ) from fault
        self._setup = setup
        on_cpu = current_platform.is_cpu()
        args = engine_args(setup, on_cpu)
        known = [name for name in EngineArgs.__dataclass_fields__ if name != "model"]
        for name in setup.engine.extra:
            if name not in known:
                raise RftError(
                    f"engine.extra.{name} is no engine argument of vLLM{did_you_mean(name, known)}"
                )
        if VllmSampler._alive:
            # vLLM keeps state per process: the older engine would go on, and answer wrongly.
            raise RftError("use: vllm: close this process's other vLLM sampler first")
        if on_cpu and setup.adapters:
            _vllm_patches.group_lora_by_adapter()
        _vllm_patches.find_loops_fast()
        _vllm_patches.leave_out_ranks()
        preload = os.environ.get("LD_PRELOAD", "")
        try:
            self._llm = vllm.LLM(**args)
        except Exception as fault:
            raise RftError(_start_advice(setup, on_cpu, fault)) from fault
        finally:
            # vLLM preloads OpenMP in its own processes. In others, say copies of the engine, that would
            # count the cores before they are given theirs, and its threads crowd on these.
            os.environ["LD_PRELOAD"] = preload
        VllmSampler._alive = True
        self._engine = self._llm.llm_engine
        self._on_cpu = on_cpu
        self.dtype = str(self._engine.model_config.dtype).removeprefix("torch.")
        limits = self._engine.vllm_config.scheduler_config
        self.room = 2 * limits.max_num_seqs
        self._adapters = {
            path: vllm.lora.request.LoRARequest(f"adapter{i}", i, path)
            for i, path in enumerate(setup.adapters, start=1)
        }
        self._end_ids = _end_ids(self._llm, setup)
        self._beams: dict[str, BeamJob] = {}
        self._single: dict[str, Request] = {}
        self._count = itertools.count()
        self._stats = dict.fromkeys(("requests", "prompt_tokens", "cached_tokens", "tokens"), 0)
        self._seconds = 0.0
        self._start_s = time.monotonic() - began

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]:
        """Pulls requests while there is room, and yields candidates in the order they finish.

        Raises RftError for a prompt of model.max_len tokens or more, an adapter that the set-up
        doesn't name, or a decoding setting that vLLM lacks.
        """
        pulled = Peekable(requests)
        try:
            while True:
                while len(self._single) + len(self._beams) < self.room and pulled.more():
                    self._submit(pulled)
                if not self._single and not self._beams:
                    if pulled.ended:
                        return
                    continue
                began = time.monotonic()
                done = [c for out in self._engine.step() if out.finished for c in self._take(out)]
                self._seconds += time.monotonic() - began
                yield from done
        finally:
            # The caller stopped early, or a request was bad: leave an empty engine behind.
            self._engine.abort_request([*self._single, *self._beams])
            self._single.clear()
            self._beams.clear()

    def _submit(self, pulled: Peekable) -> None:
        request = pulled.next()
        tokens = budget(request, self._setup.model.max_len)
        check_adapter(request.adapter, self._setup)
        if 0 < request.decoding.temperature < 0.01:
            # vLLM would sample at 0.01 instead, or below 1e-5 at 0.
            raise RftError(
                f"temperature: {request.decoding.temperature} is too low for vLLM: set 0 "
                "(greedy, with n: 1), or 0.01 and above"
            )
        if not request.decoding.beam_width:
            key = str(next(self._count))
            self._single[key] = request
            self._add(key, request, request.prompt_token_ids, _params(request, tokens))
            return
        if request.decoding.repetition_penalty != 1:
            raise RftError(
                "repetition_penalty: vLLM's beam search has none: set it to 1, or use: transformers"
            )
        siblings = [request]
        while pulled.more() and same_search(pulled.peek(), request):
            siblings.append(pulled.next())
        self._beam_step(BeamJob(siblings, tokens, self._end_ids, self._setup))

    def _add(self, key: str, request: Request, token_ids: tuple[int, ...], params: Any) -> None:
        from vllm.inputs.engine import tokens_input

        lora = self._adapters[request.adapter] if request.adapter else None
        self._engine.add_request(key, tokens_input(list(token_ids)), params, lora_request=lora)

    def _beam_step(self, job: BeamJob) -> None:
        width = min(job.search.keep, self._engine.model_config.get_vocab_size())
        for beam in job.search.running:
            key = str(next(self._count))
            job.waiting.append(key)
            self._beams[key] = job
            params = _final(temperature=0.0, max_tokens=1, logprobs=width, detokenize=False)
            self._add(key, job.first, job.first.prompt_token_ids + beam.token_ids, params)

    def _take(self, out: Any) -> list[Candidate]:
        """Candidates that a finished engine output completes."""
        self._stats["prompt_tokens"] += len(out.prompt_token_ids)
        self._stats["cached_tokens"] += out.num_cached_tokens or 0
        if out.request_id in self._beams:
            return self._take_beam(self._beams.pop(out.request_id), out)
        request = self._single.pop(out.request_id)
        got = out.outputs[0]
        finish = FINISH.get(got.finish_reason)
        if finish is None:
            raise RftError(
                f"vLLM ended request {request.id} with {got.finish_reason!r}: see the log"
            )
        self._stats["requests"] += 1
        self._stats["tokens"] += len(got.token_ids)
        # logprobs=0 leaves one entry a position in vLLM's flat form: the sampled token's.
        logprobs = tuple(got.logprobs.logprobs)
        return [candidate(request, self._setup.renderer, tuple(got.token_ids), logprobs, finish)]

    def _take_beam(self, job: BeamJob, out: Any) -> list[Candidate]:
        job.options[out.request_id] = [
            (token, entry.logprob) for token, entry in out.outputs[0].logprobs[0].items()
        ]
        if len(job.options) < len(job.waiting):
            return []
        job.search.advance([job.options[key] for key in job.waiting])
        job.waiting.clear()
        job.options.clear()
        if not job.search.done:
            self._beam_step(job)
            return []
        found = job.candidates()
        self._stats["requests"] += len(found)
        self._stats["tokens"] += sum(len(c.token_ids) for c in found)
        return found

    def stats(self) -> dict[str, float]:
        """Counts, seconds spent inside the engine (the caller's time is not in them), and memory."""
        got = self._stats
        return {
            **got,
            **({"peak_rss_gb": peak_rss_gb()} if self._on_cpu else self._memory()),
            "prefix_cache_hit_rate": got["cached_tokens"] / max(1, got["prompt_tokens"]),
            "seconds": self._seconds,
            "tokens_per_s": got["tokens"] / self._seconds if self._seconds else 0.0,
            "engine_start_s": self._start_s,
        }

    def _memory(self) -> dict[str, float]:
        """On a GPU what the weights take, and the most there was, GiB; nothing where the engine runs in
        other processes. The KV cache fills what gpu_memory_utilization leaves."""
        try:
            runner = self._engine.model_executor.driver_worker.worker.model_runner
            weights = runner.model_memory_usage / (1 << 30)
        except AttributeError:
            return {}
        import torch

        return {
            "weights_gb": weights,
            "peak_gpu_gb": torch.cuda.max_memory_allocated() / (1 << 30),
        }

    def close(self) -> None:
        self._engine.engine_core.shutdown()
        VllmSampler._alive = False


def _final(**settings: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **settings)


def _params(request: Request, tokens: int) -> Any:
    from vllm.sampling_params import RepetitionDetectionParams

    decoding = request.decoding
    loops = may_stop(request.id, decoding.loops)
    return _final(
        repetition_detection=loops
        and RepetitionDetectionParams(loops.period, loops.least, loops.repeats),
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        min_p=decoding.min_p,
        repetition_penalty=decoding.repetition_penalty,
        seed=request.seed % (1 << 63) if decoding.temperature else None,
        stop=decoding.stop,
        max_tokens=tokens,
        logprobs=0,
        flat_logprobs=True,
        # Text is decoded once at the end; only stop strings need it on the way.
        detokenize=bool(decoding.stop),
    )


def for_others(setup: Setup) -> tuple[dict[str, Any], dict[str | None, Any]]:
    """What a library that starts an engine of its own needs: its arguments, and by adapter what a request
    for it is given. Sets the environment. Raises RftError as `engine_args` does."""
    _set_environment(setup.model, setup.engine)
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform

    requests: dict[str | None, Any] = {None: None}
    for i, path in enumerate(setup.adapters, 1):
        requests[path] = LoRARequest(f"adapter{i}", i, path)
    return engine_args(setup, current_platform.is_cpu()), requests


def engine_args(setup: Setup, on_cpu: bool) -> dict[str, Any]:
    """Arguments for `vllm.LLM`. Raises RftError for an `engine.extra` that can't be."""
    model, engine = setup.model, setup.engine
    if fault := missing(engine.dtype, "vllm"):
        raise RftError(f"engine.dtype: {fault}")
    compiled = engine.compile if engine.compile is not None else not on_cpu
    args: dict[str, Any] = {
        "model": model.base,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "max_model_len": model.max_len,
        "dtype": "float32" if on_cpu and engine.dtype == "auto" else engine.dtype,
        "max_num_seqs": engine.max_num_seqs or (64 if on_cpu else 256),
        "tensor_parallel_size": engine.tensor_parallel,
        "enable_prefix_caching": True,
        "enforce_eager": not compiled,
        "disable_log_stats": True,
        "seed": 0,
        # Beam search asks for more than the default of 20.
        "max_logprobs": -1,
    }
    if on_cpu:
        args |= {
            "kv_cache_memory_bytes": int(engine.kv_cache_gb * (1 << 30)),
            "block_size": 32,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(2048, model.max_len),
        }
    else:
        args["gpu_memory_utilization"] = engine.gpu_memory_utilization
    if setup.adapters:
        args |= lora_args(setup.adapters)
        if fault := missing(engine.dtype, "vllm", adapted=True):
            raise RftError(f"engine.dtype: {fault}")
        if on_cpu and {"lm_head", "embed_tokens"} & set(args["lora_target_modules"] or ()):
            # The products of these layers still mix up rows with and without an adapter.
            raise RftError(
                "train.lora.targets: on a CPU vLLM can't serve adapters of lm_head or embed_tokens "
                "faithfully: leave these out, or set use: transformers"
            )
    for name, setting in OURS.items():
        if name in engine.extra:
            fix = f"set {setting} instead" if setting else "it changes what a log-probability is"
            raise RftError(f"engine.extra.{name}: {fix}")
    args |= engine.extra
    if on_cpu and (
        args["enable_chunked_prefill"] or args["max_num_batched_tokens"] < model.max_len
    ):
        raise RftError(
            "engine.extra: on a CPU vLLM stops with an error on seeded requests whose prompt is "
            "prefilled in more than one step: leave enable_chunked_prefill off, and "
            f"max_num_batched_tokens at model.max_len ({model.max_len}) or more"
        )
    return args


def lora_args(adapters: tuple[str, ...]) -> dict[str, Any]:
    """Engine arguments that let the adapters be served: room for the highest of their ranks, and
    hooks in the layers that they change and no others."""
    from vllm.config.lora import MaxLoRARanks

    rank, targets = 1, set[str]()
    for folder in adapters:
        path = Path(folder) / "adapter_config.json"
        try:
            config = json.loads(path.read_text())
            rank = max(rank, config["r"], *(config.get("rank_pattern") or {}).values())
            named = config["target_modules"]
        except (OSError, ValueError, KeyError) as fault:
            raise RftError(
                f"{path}: not a LoRA adapter ({type(fault).__name__}: {fault}). Give a folder that "
                "PEFT saved, or run the arm's training again"
            ) from fault
        # A string is a pattern, and could be any layer.
        targets |= {"*"} if isinstance(named, str) else set(named)
    allowed = [r for r in typing.get_args(MaxLoRARanks) if r >= rank]
    if not allowed:
        raise RftError(
            f"train.lora.rank: vLLM serves ranks up to {max(typing.get_args(MaxLoRARanks))}, not "
            f"{rank}: train with a lower one, or set use: transformers"
        )
    return {
        "enable_lora": True,
        "max_lora_rank": min(allowed),
        "max_loras": min(len(adapters), MAX_LORAS),
        "max_cpu_loras": len(adapters),
        "lora_target_modules": None if "*" in targets else sorted(targets),
    }


def _end_ids(llm: Any, setup: Setup) -> frozenset[int]:
    """Tokens at which the engine ends a sample: the tokenizer's, and the generation config's."""
    extra = llm.model_config.try_get_generation_config().get("eos_token_id", [])
    ids = [extra] if isinstance(extra, int) else extra or []
    return frozenset([*ids, setup.renderer.eos_id])


def _set_environment(model: Model, engine: Engine) -> None:
    """Sets what vLLM reads from the environment, before it is imported."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // engine.tensor_parallel)
    groups = [cores[i * share : (i + 1) * share] for i in range(engine.tensor_parallel)]
    os.environ.setdefault(
        # In this process vLLM leaves threads alone; in its worker processes it would bind them to
        # one hardware thread a core.
        "VLLM_CPU_OMP_THREADS_BIND",
        "|".join(",".join(map(str, group)) for group in groups if group),
    )
    # It holds whole GiB only, and wins over the engine argument that engine.kv_cache_gb sets.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    if engine.tensor_parallel == 1:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if Path(model.base).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _start_advice(setup: Setup, on_cpu: bool, fault: Exception) -> str:
    text = str(fault).strip() or type(fault).__name__
    low = text.lower()
    # pydantic puts a heading before the line that says what is wrong.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    short = next((line for line in lines if line.startswith("Value error")), lines[0])[:300]
    if "memory" in low or "kv cache" in low:
        memory = (
            "engine.kv_cache_gb" if on_cpu else "engine.gpu_memory_utilization, or free the GPU"
        )
        fix = f"lower {memory}, engine.max_num_seqs or model.max_len"
        if "kv cache" in low and "larger than" in low:
            fix = f"raise {memory}, or lower model.max_len"
    elif "max_model_len" in low or "max_position_embeddings" in low:
        fix = "lower model.max_len to what the model was made for"
    elif "lora" in low:
        fix = "vLLM can't serve this adapter: set use: transformers"
    elif not Path(setup.model.base).exists():
        fix = "check model.base: it is neither a folder here nor a model that the hub gives us"
    else:
        fix = "check that model.base is a complete model folder; the log has vLLM's own words"
    return f"model.base: {setup.model.base}: vLLM did not start: {short}. Fix: {fix}"
