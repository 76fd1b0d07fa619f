"""What every section of an experiment file is made of."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Component(Section):
    """A part chosen by name: a built-in, or a function or class in a file of yours."""

    use: str
    """Built-in name, `./file.py:function` (relative to this YAML), or `package.module:function`."""
    args: dict[str, Any] = {}
    """Keyword arguments, checked against the function's signature."""


Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _arm_name(text: str) -> str:
    if not text.startswith("arm:"):
        raise ValueError(f"write arm:{text}, not {text!r}")
    return text


ArmName = Annotated[str, AfterValidator(_arm_name)]
