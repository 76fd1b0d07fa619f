"""An offline vLLM engine in the stage's own process, for scorers that run a model.

Two ways in: `classify` gives the numbers of a reward model's head for a list of rows, and `add` with
`step` let a judge keep the engine full. Samplers have their own engine, since the two leaves share
nothing: that one draws with seeds and adapters, this one reads rows. One engine at a time in a
process: vLLM keeps state of its own there, and a second engine would answer wrongly.
"""

import os
from pathlib import Path
from typing import Any

from rft.faults import did_you_mean
from rft.types import RftError

_alive: list["Engine"] = []


class Engine:
    """One running engine. Raises RftError if it can't be had.

    scorer: the scorer's name, for messages. extra: arguments of `vllm.LLM` that win over ours.
    """

    def __init__(
        self,
        scorer: str,
        model: str,
        *,
        revision: str | None,
        trust_remote_code: bool,
        max_len: int,
        dtype: str,
        extra: dict[str, Any],
        pooling: bool = False,
    ):
        _set_environment(model)
        try:
            import vllm
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
        except ImportError as fault:
            raise RftError(
                f"{scorer}: vLLM cannot be imported ({fault}): `make setup` installs it"
            ) from fault
        known = list(EngineArgs.__dataclass_fields__)
        for name in extra:
            if name not in known:
                raise RftError(
                    f"{scorer}: engine.{name} is no engine argument of vLLM"
                    f"{did_you_mean(name, known)}"
                )
        if _alive:
            raise RftError(
                f"{scorer}: another scorer of this stage has a vLLM engine, and a process holds one: "
                "give the judge a base_url, or the reward model backend: transformers"
            )
        on_cpu = current_platform.is_cpu()
        args: dict[str, Any] = {
            "model": model,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "max_model_len": max_len,
            "dtype": "float32" if on_cpu and dtype == "auto" else dtype,
            "enforce_eager": on_cpu,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "seed": 0,
        }
        if pooling:
            args["runner"] = "pooling"
        if on_cpu:
            # As for sampling: short prompts are shared in small blocks only, and a seeded request
            # whose prompt is prefilled in several steps ends the engine.
            args |= {
                "kv_cache_memory_bytes": 1 << 30,
                "block_size": 32,
                "max_num_seqs": 64,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(2048, max_len),
            }
        try:
            self.llm = vllm.LLM(**args | extra)
        except Exception as fault:
            lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
            short = next(
                (x for x in lines if x.startswith("Value error")), (lines or [repr(fault)])[0]
            )
            raise RftError(
                f"{scorer}: {model}: vLLM did not start: {short[:300]}. Fix: check that it is a "
                "complete model folder, and its memory (engine: {gpu_memory_utilization: 0.5}, "
                "max_len); the log has vLLM's own words"
            ) from fault
        self.room = 2 * self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        _alive.append(self)

    def classify(self, rows: list[list[int]]) -> list[list[float]]:
        """The head's raw numbers (no sigmoid, no softmax) for each row of token ids."""
        from vllm import PoolingParams

        outs = self.llm.encode(
            [{"prompt_token_ids": row} for row in rows],
            pooling_params=PoolingParams(use_activation=False),
            pooling_task="classify",
            use_tqdm=False,
        )
        return [out.outputs.data.float().tolist() for out in outs]

    def add(self, key: str, token_ids: list[int], body: dict[str, Any]) -> None:
        """Puts in a request with the sampling settings of a chat completion's body."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        names = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop")
        params = SamplingParams(
            output_kind=RequestOutputKind.FINAL_ONLY,
            **{name: body[name] for name in names if name in body},
        )
        self.llm.llm_engine.add_request(key, tokens_input(token_ids), params)

    def step(self) -> list[tuple[str, str, str | None, int, int]]:
        """Runs the engine on: (key, text, finish reason, prompt tokens, tokens) of what is done."""
        return [
            (
                out.request_id,
                out.outputs[0].text,
                out.outputs[0].finish_reason,
                len(out.prompt_token_ids),
                len(out.outputs[0].token_ids),
            )
            for out in self.llm.llm_engine.step()
            if out.finished
        ]

    def close(self) -> None:
        if self in _alive:
            self.llm.llm_engine.engine_core.shutdown()
            _alive.remove(self)


def _set_environment(model: str) -> None:
    """What vLLM reads from the environment, before it is imported."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
    # It holds whole GiB only, and wins over the engine argument.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
