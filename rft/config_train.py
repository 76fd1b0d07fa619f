"""The settings of training: adapter, number formats, schedule."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rft.section import ArmName, Fraction, Positive, Section
from rft.types import falls_in


class Lora(Section):
    """The adapter (PEFT)."""

    rank: Positive = 16
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The update is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that high ranks learn as fast (arXiv 2312.03732)."""
    dora: bool = False
    """Learn the length of each weight column apart from its direction (DoRA, arXiv 2402.09353). Slower, and
    evaluated as a merged model, since vLLM serves no such adapters."""
    init: Literal["zero", "pissa"] = "zero"
    """`zero`: the update starts at 0. `pissa`: it starts as the weight's largest singular directions, which
    are taken out of the frozen base (arXiv 2404.02948); saved as a plain adapter of twice the rank."""
    dropout: Fraction = 0.0
    """Dropout in front of the adapter."""
    targets: str | list[str] = "all-linear"
    """Module names to adapt, or `all-linear`."""


Master = Literal["fp32", "bf16", "fp16"]
Compute = Literal["fp32", "tf32", "bf16", "fp16"]
Storage = Literal["fp32", "bf16", "fp16", "int8", "nf4"]


class Precision(Section):
    """Number formats (docs/precision.md). Master weights are FP32 in every mode, and so is the optimizer's
    state but for the moments of `optimizer: adamw_8bit`."""

    master: Master = "fp32"
    """Format of the trainable weights: fp32; the others are refused."""
    compute: Compute = "fp32"
    """Format of the forward and backward arithmetic: autocast for bf16 and fp16, the latter with dynamic
    loss scaling; tf32 on GPUs."""
    base: Storage = "fp32"
    """Format in which the frozen base weights are stored. int8 and nf4 (QLoRA) need bitsandbytes."""
    reduce: Literal["fp32", "bf16"] = "fp32"
    """Format in which processes add up their gradients."""

    @model_validator(mode="after")
    def _possible(self) -> "Precision":
        if self.master != "fp32":
            raise ValueError(
                f"master {self.master}: an update smaller than half a unit in the last place of a "
                f"{self.master} weight is rounded away, and nearly all are (docs/precision.md). Leave it "
                "at fp32; to save memory, set base"
            )
        if self.compute in ("fp32", "tf32") and self.base in ("bf16", "fp16"):
            raise ValueError(
                f"compute {self.compute} over a base stored in {self.base} would compute in {self.base}: "
                "set base to fp32, or compute to bf16"
            )
        if self.compute == "fp16" and self.base == "bf16":
            raise ValueError(
                "compute fp16 over a base stored in bf16: what bf16 holds above 65504 is infinite in "
                "fp16. Set base to fp16 or fp32"
            )
        return self


class EarlyStop(Section):
    """Some prompts are kept from training; it ends when the loss on them no longer falls, and the best
    weights are those that are saved."""

    hold_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of the training prompts, chosen by a hash of their ids. None of them is an evaluation's."""
    every: Positive | None = None
    """Steps between two looks; default once an epoch."""
    patience: Positive = 2
    """Looks without a better figure before training ends."""
    by: Literal["loss", "accuracy"] = "loss"
    """Of a completion token, given what is before it: its cross-entropy, or whether it is the likeliest."""

    def keeps(self, prompt_id: str) -> bool:
        """Whether a prompt is kept from training."""
        return falls_in(self.hold_out, "hold_out", prompt_id)


class Spikes(Section):
    """What to do when the loss leaps."""

    action: Literal["ignore", "stop", "rollback"] = "ignore"
    """`rollback`: go back to the last checkpoint and leave out the steps since then, three times at most. A
    loss that is not a number always stops the run, or rolls it back."""
    nats: Annotated[float, Field(gt=0)] = 1.0
    """A leap is a step whose loss is higher by this than the median of the 32 steps before it."""


class Reward(Section):
    """Weights of the rows by the value that the scorers gave; the best row weighs 1. A reference without a
    value counts as the best."""

    by: Literal["exp", "linear"] = "exp"
    """`exp`: exp((value - best) / beta), as reward-weighted regression has it (Peters and Schaal 2007, ICML)
    and, of advantages, AWR (arXiv 1910.00177); e^-20 at least. `linear`: value / best, of values from 0."""
    beta: Annotated[float, Field(gt=0)] = 1.0
    """With `exp`: the difference in value that divides the weight by e. Small ones leave the best alone."""


class Negatives(Section):
    """Wrong samples that training makes less likely, of prompts with a sample that was kept
    (Reinforce-Rej, arXiv 2504.11343). A sample whose verdict is unknown is not one of them."""

    per_prompt: Positive = 4
    """Most of one prompt, drawn by chance."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Their advantage is minus this, where the best kept row's is 1."""


class Loss(Section):
    """How much each token of a row counts (docs/training.md, weighted losses). The defaults are the mean
    cross-entropy of the step's completion tokens."""

    weigh: Literal["tokens", "completions", "prompts"] = "tokens"
    """What weighs the same: every token; every completion, so that a token of a long one counts less; or
    every prompt, whose completions share its weight (GRPO's mean, arXiv 2402.03300)."""
    reward: Reward | None = None
    """`{}` takes the defaults; null weighs all selected rows the same."""
    clip: Annotated[float, Field(gt=0, lt=1)] | None = None
    """RAFT++ (arXiv 2504.11343): the ratio of a token's probability to the one it was sampled with, in place
    of its log-probability, without a gradient where it is past 1 + clip (of negatives, below 1 - clip).
    Needs `sample.logprobs: tokens`; 0.2 is usual. References keep their cross-entropy."""
    negatives: Negatives | None = None
    """`{}` takes the defaults; null learns from the selected rows only."""

    @model_validator(mode="after")
    def _bounded(self) -> "Loss":
        if self.negatives and self.clip is None:
            raise ValueError(
                "negatives without clip: nothing would bound how unlikely wrong answers are made, and "
                "the model comes apart. Set clip to 0.2 (and sample.logprobs to tokens)"
            )
        return self

    def of_rows(self) -> dict[str, Any]:
        """What the selected rows carry for it; empty for plain rows."""
        asked = self.model_dump(mode="json", include={"reward", "negatives"}, exclude_none=True)
        if self.reward and self.weigh == "prompts":
            asked["weigh"] = "prompts"  # a prompt's rows are weighed among themselves
        return asked | ({"logprobs": True} if self.clip is not None else {})


class Train(Section):
    """Stage 5: fine-tuning on the selected rows, loss on the completion only."""

    include_reference: bool = True
    """Put the data set's own solutions among the candidates to select from."""
    lora: Lora | None = Lora()
    """The adapter to train; null trains all weights."""
    precision: Precision = Precision()
    loss: Loss = Loss()
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """`adamw_8bit`: bitsandbytes' AdamW, whose two moments are stored in 8 bits by blocks (arXiv 2110.02861): 2
    bytes a trainable weight and not 8, which pays where all weights are trained. `paged_adamw_8bit`: moved
    to the CPU's memory while the GPU's is short."""
    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the rows; ignored where match is set."""
    match: ArmName | None = None
    """`arm:NAME`: train for as much as that arm, whatever the rows, so that compute is no reason for a
    difference."""
    match_by: Literal["steps", "tokens", "flops"] = "steps"
    """What is made equal: optimizer steps, tokens of the rows (each with its prompt), or what is computed
    for them (Kaplan et al. 2020, arXiv 2001.08361, without attention)."""
    tokens_per_step: Positive = 8192
    """Tokens (prompts and completions) in one optimizer step, over all processes."""
    tokens_per_batch: Positive = 2048
    """Tokens in one forward pass of one process; a step accumulates several."""
    layout: Literal["tree", "rows"] = "tree"
    """`tree`: what a prompt's completions have in common is computed once, where the model's attention
    allows it. `rows`: a padded row for each."""
    shuffle: Literal["prompts", "rows"] = "prompts"
    """What is shuffled: `prompts`, so that a prompt's completions are learnt in one step and share it;
    `rows`, one by one, so that a step holds more different prompts and is slower."""
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
    compile: bool = False
    """Have torch.compile make the decoder layers' kernels, on a GPU: it takes its time once, so it is for long
    runs. What it brings has not been measured."""
    early_stop: EarlyStop | None = None
    """`{}` takes the defaults; null trains to the end."""
    spikes: Spikes = Spikes()
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow", "comet_ml"], ...] = ()
    """Where accelerate sends each line of metrics.jsonl as well."""
    checkpoint_every: Positive = 100
    """Optimizer steps between checkpoints to resume from."""
    launch: str | None = None
    """Config file for `accelerate launch`; default one process on this machine."""

    @model_validator(mode="after")
    def _possible(self) -> "Train":
        if self.lora is None and self.precision.base != "fp32":
            raise ValueError(
                f"lora: null trains the weights that precision.base: {self.precision.base} stores, and "
                "masters are fp32: set precision.base to fp32, or give a lora"
            )
        if self.lora and self.precision.base in ("int8", "nf4"):
            if self.lora.dora:
                raise ValueError(
                    f"lora.dora over a base in {self.precision.base}: it is evaluated as a merged model, "
                    "and merging would round it. Set precision.base to bf16, or dora to false"
                )
        if self.lora and self.lora.init == "pissa" and self.precision.base != "fp32":
            raise ValueError(
                f"lora.init: pissa takes directions out of the base, which {self.precision.base} would "
                "round: set precision.base to fp32, or init to zero"
            )
        return self


SPEED_ONLY = (
    *("launch", "checkpoint_every", "tokens_per_batch", "gradient_checkpointing", "layout"),
    *("trackers", "compile"),
)
"""Settings that change speed, memory or safety, and not what is learnt."""

NO_DEEPSPEED = (
    "DeepSpeed takes the backward pass and the step over, and with them what a step is here. Use "
    "configs/accelerate/fsdp8.yaml: FSDP2 shards the same things as ZeRO-3"
)
