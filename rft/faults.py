"""What is wrong with a user's words, said with the path, the place and the nearest right word."""

import difflib
import json
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean NEAREST?`, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def explain(
    fault: ValidationError,
    top: type[BaseModel],
    path: Path,
    prefix: str = "",
    overrides: Sequence[str] = (),
) -> str:
    """A pydantic error of the model `top` as lines of `file: dotted.path: what; fix`.

    prefix: dotted path at which `top` stands in the file. overrides: settings that came from the
    command line, which is then named in place of the file.
    """
    set_here = [text.partition("=")[0] for text in overrides]
    lines = []
    for error in fault.errors():
        parts = [str(p) for p in error["loc"]]
        # Of a setting that may be text or a list, pydantic names both kinds as if they were keys.
        parts = [p for p in parts if p not in ("str", "list[str]")]
        dotted = prefix + ".".join(parts)
        # A section's own check may fail because of one setting within it.
        at_shell = any(
            f"{a}.".startswith(f"{b}.") for k in set_here for a, b in ((dotted, k), (k, dotted))
        )
        where = "command line" if at_shell else str(path)
        if error["type"] == "extra_forbidden":
            fields = _fields_at(parts[:-1], top)
            hint = did_you_mean(parts[-1], fields)
            if hint:
                near = hint.removeprefix("; did you mean ").removesuffix("?")
                hint = f"; did you mean {prefix}{'.'.join([*parts[:-1], near])}?"
            else:
                hint = f"; settings there are {', '.join(fields)}" if fields else ""
            lines.append(f"{where}: {dotted} is not a setting{hint}")
        elif error["type"] == "missing":
            lines.append(f"{where}: {dotted} is missing: set it")
        elif error["type"] == "value_error":
            lines.append(f"{where}: {dotted or 'experiment'}: {error['ctx']['error']}")
        else:
            got = json.dumps(error["input"], default=str)[:80]
            lines.append(f"{where}: {dotted}: {error['msg']}, not {got}")
    return "\n".join(dict.fromkeys(lines))


def _fields_at(parts: list[str], top: type[BaseModel]) -> list[str]:
    model: Any = top
    for part in parts:
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        model = field and model_in(field.annotation)
        if model is None:
            return []
    return list(model.model_fields)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The section within a type such as `Train | None` or `list[Component]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        if found := model_in(inner):
            return found
    return None
