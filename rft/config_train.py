"""The settings of training: adapter, number formats, schedule."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rft.section import ArmName, Fraction, Positive, Section


class Lora(Section):
    """The adapter's shape (PEFT)."""

    rank: Positive = 16
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout in front of the adapter."""
    targets: str | list[str] = "all-linear"
    """Module names to adapt, or `all-linear`."""


class Precision(Section):
    """Number formats. Master weights and optimizer state are FP32 in every mode."""

    compute: Literal["fp32", "bf16"] = "fp32"
    """Format of the forward and backward arithmetic (autocast for bf16)."""
    base: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Format in which the frozen base weights are stored."""

    @model_validator(mode="after")
    def _possible(self) -> "Precision":
        if self.compute == "fp32" and self.base != "fp32":
            raise ValueError(
                f"compute fp32 over a base stored in {self.base} would compute in {self.base}: set "
                "base to fp32, or compute to bf16"
            )
        return self


class Train(Section):
    """Stage 5: LoRA fine-tuning on the selected rows, loss on the completion only."""

    include_reference: bool = True
    """Put the data set's own solutions among the candidates to select from."""
    lora: Lora = Lora()
    precision: Precision = Precision()
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""
    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the rows; ignored where match_steps is set."""
    match_steps: ArmName | None = None
    """`arm:NAME`: train for as many optimizer steps as that arm, so that compute is equal."""
    tokens_per_step: Positive = 8192
    """Tokens (prompts and completions) in one optimizer step, over all processes."""
    tokens_per_batch: Positive = 2048
    """Tokens in one forward pass of one process; a step accumulates several."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after warm-up."""
    warmup_ratio: Fraction = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm; larger gradients are scaled down to it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpoint_every: Positive = 100
    """Optimizer steps between checkpoints to resume from."""
    launch: str | None = None
    """Config file for `accelerate launch`; default one process on this machine."""
