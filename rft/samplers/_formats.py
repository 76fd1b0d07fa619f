"""Number formats of inference: which a machine has, how INT8 is loaded, what the weights take.

INT8 is LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339) by bitsandbytes, through transformers. vLLM has
none: what it quantises itself with `quantization: bitsandbytes` are 4 bits, and since 0.32 not even those.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

THRESHOLD = 6.0
"""An activation of this size makes its column an outlier (arXiv 2208.07339, section 3)."""


def missing(dtype: str, use: str, adapted: bool = False) -> str | None:
    """Why a sampler can't compute in a format here, and what to do; None if it can. adapted: whether it
    serves a LoRA adapter."""
    if dtype == "int8" and use in ("vllm", "ray"):
        return f"int8: {use} has no LLM.int8: set use to transformers"
    if dtype == "int8" and importlib.util.find_spec("bitsandbytes") is None:
        return "int8 needs bitsandbytes: pip install 'rft[quant]'"
    if dtype == "float32" and use == "vllm" and adapted:
        import torch

        if torch.cuda.is_available():
            # Its kernels assert this in the middle of a step.
            return (
                "float32: on a GPU vLLM serves LoRA adapters in 16 bits only: set bfloat16 or float16, "
                "or use: transformers"
            )
    if dtype == "bfloat16" and use in ("vllm", "transformers"):
        import torch

        if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(
            including_emulation=False
        ):
            return f"bf16: {torch.cuda.get_device_name()} has none: take fp16"
    return None


def int8_arguments(device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for LLM.int8. What isn't INT8 is FP16, as in the paper."""
    import torch
    from transformers import BitsAndBytesConfig

    # With an adapter it warns of each product that is not in fp16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=THRESHOLD)
    return {"dtype": torch.float16, "quantization_config": config, "device_map": {"": device}}


def weights_gb(model: Any) -> float:
    """What a torch model's parameters and buffers take, adapters included, GiB. The scales of INT8, a
    number a row, are not among them."""
    held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(held.values()) / (1 << 30)


def peak_rss_gb() -> float:
    """The most memory that this process has held since it began, GiB: libraries and loading included.

    Not getrusage's, which for a child process begins with what its parent held.
    """
    told = Path("/proc/self/status").read_text()
    return int(told.partition("VmHWM:")[2].split()[0]) / (1 << 20)
