"""The settings of evaluating once more in other number formats (docs/inference.md)."""

from typing import Literal

from pydantic import field_validator, model_validator

from rft.section import Section

Format = Literal["fp32", "bf16", "fp16", "int8"]

DTYPES: dict[Format, str] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "int8": "int8",
}
"""Format -> what `engine.dtype` calls it."""

NAMES: dict[str, str] = {dtype: name for name, dtype in DTYPES.items()}


class Inference(Section):
    """Every arm evaluated once more in other number formats, on the same problems and with the same seeds:
    what a format costs in accuracy, and what it brings in memory and speed. Nothing is trained again."""

    formats: list[Format] = []
    """Formats to compare with that of `eval.engine.dtype`: name it too on a GPU, where `auto` is the
    checkpoint's own format. `int8` is LLM.int8 (bitsandbytes), through
    transformers only."""
    use: Literal["vllm", "transformers"] | None = None
    """Sampler for them; null takes `eval.use`. With another one the format of `eval.engine.dtype` is
    sampled through it as well, and the others are compared with that, since memory and speed of two
    samplers can't be compared."""

    @field_validator("formats")
    @classmethod
    def _once(cls, given: list[Format]) -> list[Format]:
        if len(set(given)) < len(given):
            raise ValueError(f"each format once, not {', '.join(given)}")
        return given

    @model_validator(mode="after")
    def _needed(self) -> "Inference":
        if self.use and not self.formats:
            raise ValueError(
                "use: there are no formats to sample through it: name some, or leave it out"
            )
        return self
