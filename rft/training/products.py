"""Matrix products, by the faster of the two libraries that torch has on a CPU; what is done to each number
between them, by one kernel on a GPU.

torch gives float32 products to MKL, which uses half of what an AMD core has (its AVX-512 code is kept for
Intel's); oneDNN, which torch carries for 16 bits, uses all of it: 490 against 220 GFLOP/s on two Zen cores.
On Intel's they are alike. Which of them computes must not depend on a measurement, or a resumed run would
not repeat an uninterrupted one to the last bit.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.nn.functional import linear

from rft.precision import HAS_TRITON

# Each length of a row is a primitive of its own, of which oneDNN would keep a thousand: some 100 MB. A layer
# needs about thirty.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

Function = TypeVar("Function", bound=Callable[..., Any])

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def computed_in(x: torch.Tensor) -> torch.dtype:
    """The format of an autocast region's products; outside of one, that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x (T, I) @ weight (O, I) transposed, + bias (O,): (T, O). Has no gradient of its own."""
    if HAS_ONEDNN and x.dtype is torch.float32 and x.device.type == "cpu":
        got: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            _dense(x), _dense(weight), bias, "none", [], ""
        )
        return got
    return linear(x, weight, bias)


def summed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x (T, O) transposed @ y (T, I): (O, I), the gradient of a weight. The wider side comes last,
    which oneDNN does at twice the speed."""
    if x.shape[1] > y.shape[1] and x.device.type == "cpu":
        return product(y.T, x.T).T.contiguous()
    return product(x.T, y.T)


@functools.cache
def compiled(function: Any) -> Any:
    """By torch.compile. Each format, and whether there are gradients, is another kernel; and one process
    trains many jobs, so torch's limit of 8 to a function is too low."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function)


def fused(function: Function) -> Function:
    """Has a function of numbers, each apart or along the last dimension, compiled to a pass or two where its
    tensors are on a GPU with Triton. What is under a mode that looks at each operation is left as it is."""

    @functools.wraps(function)
    def call(first: torch.Tensor, *others: Any) -> Any:
        if not (HAS_TRITON and first.is_cuda) or torch._C._len_torch_function_stack() > 0:
            return function(first, *others)
        for one in (first, *others):
            if isinstance(one, torch.Tensor) and one.dim() > 1:
                # Or each function would be compiled for the first batch's length, and then for any.
                torch._dynamo.maybe_mark_dynamic(one, one.dim() - 2)
        return compiled(function)(first, *others)

    return call  # type: ignore[return-value]


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Rows or columns without gaps: for others oneDNN has a kernel that is a thousand times slower."""
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()
