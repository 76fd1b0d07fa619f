"""What every section of an experiment file is made of."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _arm_name(text: str) -> str:
    if not text.startswith("arm:"):
        raise ValueError(f"write arm:{text}, not {text!r}")
    return text


ArmName = Annotated[str, AfterValidator(_arm_name)]
