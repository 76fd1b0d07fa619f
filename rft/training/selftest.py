"""Two proofs before the first step: the format computes what FP32 does, and the trainer computes what the
sampler did.

Peers trust a dtype string and a template. Here a batch of the run's own rows is computed in the chosen
format and in FP32, from the same stored weights, and losses and gradients are compared; and of some
candidates the sampler's log-probabilities are held against the trainer's, with the adapter they were
drawn with. A wrong scale, a base that is not the one sampled from, a lost BOS, an adapter that was not
loaded: each shows there, hours before it would in a curve.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from rft import rows
from rft.config_train import Precision
from rft.precision import QUANTISED, products
from rft.training.data import Batch, Group, Layout, collate, split
from rft.training.objective import Objective, logits
from rft.types import Candidate, RftError

TOKENS = 256
"""Of the batch that is compared."""

LIMITS = {
    # loss: relative; logit: of their standard deviation; cosine: of the gradients, at least.
    "tf32": (0.005, 0.05, 0.995),
    "fp16": (0.005, 0.05, 0.995),
    "bf16": (0.03, 0.3, 0.95),
}
"""What rounding explains. Each product is off by up to 2^-11 (tf32, fp16) or 2^-8 (bf16) of its largest
terms, and errors of some hundred layers add up like a random walk. The small models of the tests stay below
a fifth of these, and SmolLM2-135M in bf16 at a ninth (logits 0.03, cosine 0.9986); overflow exceeds them many
times over."""

CANDIDATES = 16
"""Whose log-probabilities are compared."""

EXACT, ROUNDED, QUANTISED_BASE = 0.02, 0.15, 0.6
"""Most that a token's log-probability may differ on average, nats: both in float32, one of them in 16 bits,
and over a base that is stored in 8 or 4. The quickstart's candidates differ by 5e-8 in float32, and by 0.1
over nf4; another prompt, adapter or scale makes it some tenths to nats."""


@dataclass(frozen=True)
class Formats:
    """The chosen format against FP32, on the same stored weights and rows."""

    loss: float
    """Of a completion token, nats, in the chosen format."""
    loss_fp32: float
    logit_error: float
    """Root mean square of the logits' differences, as a share of their standard deviation."""
    gradient_cosine: float
    """Between the two gradients of all trainable weights."""
    gradient_norm_ratio: float
    """Of the chosen format's gradient to FP32's."""


class _Float32(TorchFunctionMode):
    """Has layers compute in float32 whatever their weights are stored in, one layer at a time."""

    KINDS = (
        torch.nn.functional.linear,
        torch.nn.functional.embedding,
        torch.nn.functional.layer_norm,
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.KINDS:
            args = tuple(
                x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in args
            )
        return func(*args, **(kwargs or {}))


def compare_formats(
    objective: Objective, groups: list[Group], precision: Precision
) -> Formats | None:
    """None where there is nothing to compare: FP32 throughout, or a base in whole numbers, whose layers
    have no other way to compute. Leaves gradients as they were: none. Raises RftError where the format
    computes something else than rounding explains."""
    compute = objective.compute
    if precision.compute == "fp32" or precision.base in QUANTISED:
        return None
    device = next(objective.parameters()).device
    batch = _some(groups, objective.fit.layout).to(device)
    found = []
    was_training = objective.training
    objective.eval()
    try:
        for exact in (True, False):
            with (
                _in(objective, None if exact else compute, exact),
                products(Precision() if exact else precision),
            ):
                loss = objective(batch)
                loss.backward()
                with torch.no_grad(), objective.casting():
                    made = logits(objective.model, batch)
            grads = [p.grad.float().flatten() for p in objective.parameters() if p.grad is not None]
            found.append((float(loss.detach()), made, torch.cat(grads)))
            objective.zero_grad(set_to_none=True)
    finally:
        objective.train(was_training)
    (exact_loss, exact_logits, exact_grad), (loss_, logits_, grad) = found
    size = float(batch.weights.sum())
    got = Formats(
        loss=loss_ / size,
        loss_fp32=exact_loss / size,
        logit_error=float((logits_ - exact_logits).pow(2).mean().sqrt() / exact_logits.std()),
        gradient_cosine=float(torch.nn.functional.cosine_similarity(grad, exact_grad, dim=0)),
        gradient_norm_ratio=float(grad.norm() / exact_grad.norm()),
    )
    _check(got, precision.compute)
    return got


def _check(got: Formats, compute: str) -> None:
    loss, logit, cosine = LIMITS[compute]
    off = abs(got.loss - got.loss_fp32) / max(abs(got.loss_fp32), 1e-6)
    # Not `>`: what is not a number must not pass.
    if not (off <= loss and got.logit_error <= logit and got.gradient_cosine >= cosine):
        raise RftError(
            f"train.precision: on a batch of these rows the loss is {got.loss:.4f} where FP32 has "
            f"{got.loss_fp32:.4f}, the logits differ by {got.logit_error:.1%} of their spread, and the "
            f"cosine of the gradients is {got.gradient_cosine:.4f}: more than rounding to "
            f"{compute} explains. Set train.precision.compute and base to fp32, or from fp16 to bf16"
        )


@contextmanager
def _in(objective: Objective, compute: torch.dtype | None, exact: bool) -> Iterator[None]:
    before, objective.compute = objective.compute, compute
    try:
        if exact:
            with _Float32():
                yield
        else:
            yield
    finally:
        objective.compute = before


def _some(groups: list[Group], layout: Layout) -> Batch:
    chosen: list[Group] = []
    room = TOKENS
    for group in groups:
        part = next(split(group, TOKENS))
        if chosen and part.tokens > room:
            break
        chosen.append(part)
        room -= part.tokens
    # Cross-entropies, whatever the run's loss: the formats are in question, and it may be about 0.
    plain = (replace(one, weights=(1.0,) * len(one.weights), old=None) for one in chosen)
    return collate(plain, layout)


@dataclass(frozen=True)
class Parity:
    """The sampler's log-probabilities against the trainer's."""

    candidates: int
    tokens: int
    difference: float
    """Mean over candidates of |sampler - trainer| for a token, nats."""
    largest: float
    """Of one candidate, for a token."""


@torch.no_grad()
def compare_sampler(objective: Objective, sample: Path, label: str, limit: float) -> Parity | None:
    """Candidates of the stage in `sample`, drawn with the weights that the model has now. limit: nats.

    None where none of them has log-probabilities of its own. Raises RftError where they differ by
    more than two implementations do.
    """
    columns = ["id", "prompt_id", "prompt_token_ids", "token_ids", "logprob"]
    read = (
        c for c in rows.read(sample, Candidate, columns) if c.logprob is not None and c.token_ids
    )
    chosen = list(islice(read, CANDIDATES))
    if not chosen:
        return None
    device = next(objective.parameters()).device
    off = []
    was_training = objective.training
    objective.eval()
    try:
        for candidate in chosen:
            batch = _alone(candidate).to(device)
            with objective.casting():
                made = logits(objective.model, batch)
            own = -float(cross_entropy(made, batch.labels, reduction="sum"))
            off.append(abs(own - (candidate.logprob or 0.0)) / len(candidate.token_ids))
    finally:
        objective.train(was_training)
    tokens = sum(len(c.token_ids) for c in chosen)
    got = Parity(len(chosen), tokens, statistics.mean(off), max(off))
    if not got.difference <= limit:
        raise RftError(
            f"{label}: the sampler gave its tokens other log-probabilities than the model that is trained: "
            f"{got.difference:.3g} nats a token on average over {got.candidates} candidates. Was another "
            "base model, adapter, chat template or number format sampled with? Compare model.base, "
            "sample.policy, sample.engine and train.precision.base; candidates that were drawn elsewhere must "
            "come through `use: replay` without log-probabilities"
        )
    return got


def _alone(candidate: Candidate) -> Batch:
    prompt = np.asarray(candidate.prompt_token_ids, np.int32)
    ids = np.asarray(candidate.token_ids, np.int32)
    return collate([Group(candidate.prompt_id, prompt, (ids,), (1.0,))], Layout.ROWS)


def compare_samplers(
    objective: Objective, job: dict[str, Any], precision: Precision
) -> list[dict[str, Any]]:
    """`compare_sampler` for each stage that the job names in `drawn`, with the adapter that it sampled
    with; those are left out whose weights this model can't take on."""
    model, found = objective.model, []
    for number, one in enumerate(job.get("drawn", [])):
        # On a GPU vLLM samples a checkpoint in float32 in 16 bits.
        full = one["dtype"] == "float32" or (
            one["dtype"] == "auto" and not torch.cuda.is_available()
        )
        limit = EXACT if full and precision.compute in ("fp32", "tf32") else ROUNDED
        if precision.base in QUANTISED:
            limit = QUANTISED_BASE
        with _as_sampled(model, one["adapter"], f"policy{number}", job.get("start")) as fits:
            sample = Path(one["sample"])
            if fits and (got := compare_sampler(objective, sample, job["label"], limit)):
                found.append(asdict(got))
    return found


@contextmanager
def _as_sampled(model: Any, adapter: str | None, name: str, start: str | None) -> Iterator[bool]:
    if adapter == start:
        # As it is: a fresh adapter changes nothing.
        yield True
    elif not hasattr(model, "get_base_model") or (start and not _has_layers_of(model, Path(start))):
        # All weights are trained, or the base is no longer what was sampled from.
        yield False
    elif "pissa" in str(model.peft_config["default"].init_lora_weights):
        # Its frozen part is no longer the base that others' adapters are for.
        yield False
    elif adapter is None:
        with model.disable_adapter():
            yield True
    elif not _has_layers_of(model, Path(adapter)):
        yield False
    else:
        (own,) = model.active_adapters
        model.load_adapter(adapter, adapter_name=name)
        model.set_adapter(name)
        try:
            yield True
        finally:
            model.set_adapter(own)
            model.delete_adapter(name)


def _has_layers_of(model: Any, adapter: Path) -> bool:
    """Whether the model has adapters at all layers that the one in the folder is for: PEFT would wrap
    the others, and leave them wrapped."""
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        return False
    with safe_open(weights, "pt") as file:
        wanted = {name.partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118 - no mapping
    mine = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    return wanted <= mine
