"""What is in the docs and can be computed: the settings, for people and editors, from the docstrings in
rft/config.py and of the built-in components; and the numbers of docs/precision.md.

`scripts/make_reference.py` writes docs/configuration.md, configs/schema.json and the tables of
docs/precision.md with this; nothing that runs an experiment imports it.
"""

import inspect
import json
import re
import sys
import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from rft import components, formats
from rft.config import Arm, Experiment
from rft.config_train import Train
from rft.faults import model_in
from rft.section import Component, Section

KINDS = {
    "prompts": "prompt loaders",
    "samplers": "samplers",
    "allocators": "allocators",
    "scorers": "scorers",
    "selectors": "selectors",
}


def schema() -> str:
    """JSON schema of an experiment file, for editors that complete YAML."""
    top = Experiment.model_json_schema()
    top["title"] = "rft experiment"
    top["properties"]["extends"] = {
        "type": "string",
        "description": "Another experiment file whose keys this one starts from.",
    }
    # Through `extends`, and in an arm, any key may come from another place.
    for partial in (top, top["$defs"]["Model"], top["$defs"]["Prompts"]):
        partial.pop("required", None)
    body = {k: v for k, v in top["properties"].items() if k in Arm.model_fields}
    top["$defs"]["ArmKeys"] = {"type": "object", "additionalProperties": False, "properties": body}
    top["properties"]["arms"]["additionalProperties"] = {
        "anyOf": [{"$ref": "#/$defs/ArmKeys"}, {"type": "null"}]
    }
    return json.dumps(top, indent=1) + "\n"


def reference() -> str:
    """docs/configuration.md, from the models and the built-in components."""
    out = [
        "# Configuration",
        "",
        "<!-- Made by scripts/make_reference.py from the docstrings in rft/config.py and of the",
        "built-in components: edit them there. -->",
        "",
        "An experiment is one YAML file. Override any setting on the command line by its dotted",
        "path: `rft run configs/quickstart.yaml train.lr=1e-4 arms.rft.sample.n=32`. A file can",
        "start from another with `extends: ./other.yaml`. Strings that begin with `./` or `../`",
        "are paths relative to the file they stand in, and on the command line relative to the",
        "current folder. `~/` is your home folder.",
        "",
    ]

    def section(model: type[BaseModel], path: str) -> None:
        doc = " ".join((model.__doc__ or "").split())
        out.extend([f"## {path or 'Top level'}", "", doc, ""])
        out.extend(["| setting | type | default | meaning |", "|---|---|---|---|"])
        inner: list[tuple[type[BaseModel], str]] = []
        for name, field in model.model_fields.items():
            nested = model_in(field.annotation)
            kind = _type_name(field.annotation)
            if nested and nested is not Component:
                inner.append((nested, f"{path}.{name}".lstrip(".")))
                see = f"see [{inner[-1][1]}](#{_anchor(inner[-1][1])})"
                optional = not field.is_required() and field.get_default() is None
                default, kind = (
                    (f"`null`; {see}", "section, null") if optional else (see, "section")
                )
            elif field.is_required():
                default = "(needed)"
            else:
                default = f"`{_plain(field.get_default(call_default_factory=True))}`"
            about = field.description or " ".join((nested.__doc__ or "").split() if nested else [])
            out.append(f"| `{name}` | {kind} | {default} | {' '.join(about.split())} |")
        out.append("")
        for nested, where in inner:
            section(nested, where)

    section(Experiment, "")
    section(Component, "component (scorers, selectors)")
    for kind in KINDS:
        out.extend(_built_in(kind))
    return "\n".join(out).rstrip() + "\n"


def _built_in(kind: str) -> list[str]:
    """A section on the built-in components of a kind, with the arguments that `args:` may name."""
    out = [f"## Built-in {KINDS[kind]}", ""]
    names = ["hf", "jsonl"] if kind == "prompts" else components.builtin_names(kind)
    for name in names:
        out.extend([f"### `{name}`", ""])
        found = components.find(kind, name)
        parameters = list(inspect.signature(found, eval_str=True).parameters.values())
        own = {p.name: p for p in parameters[components.given(kind, found) :]}
        prose, meanings = _docstring(inspect.getdoc(found) or "", list(own))
        if kind == "samplers":
            # What they are is said at the file's top; the function tells of its arguments, if any.
            about = inspect.getdoc(sys.modules[found.__module__]) or ""
            prose = [" ".join(about.split("\n\n")[0].split()), *(prose if own else [])]
        for paragraph in prose:
            out.extend([paragraph, ""])
        if own:
            out.extend(["| argument | type | default | meaning |", "|---|---|---|---|"])
        for key, p in own.items():
            default = "(needed)" if p.default is p.empty else f"`{_plain(p.default)}`"
            kind_of = _type_name(p.annotation)
            out.append(f"| `{key}` | {kind_of} | {default} | {meanings.get(key, '')} |")
        out.extend([""] if own else [])
    return out


def _docstring(text: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Paragraphs, and what is said of each argument from a line `name: ...` up to the next or a
    blank line."""
    prose: list[str] = []
    meanings: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        names = "|".join(arguments) or "$"
        before, *told = re.split(rf"^({names}): ", paragraph, flags=re.MULTILINE)
        prose.extend([" ".join(before.split())] if before.strip() else [])
        for name, said in zip(told[::2], told[1::2], strict=True):
            said = " ".join(said.split()).replace("|", "\\|")
            meanings[name] = said[:1].upper() + said[1:]
    return prose, meanings


def _anchor(path: str) -> str:
    return path.replace(".", "")


def _plain(value: Any) -> str:
    if isinstance(value, Section):
        return _plain(value.model_dump(exclude_defaults=True))
    if isinstance(value, list):
        value = [
            v.model_dump(exclude_defaults=True) if isinstance(v, Section) else v for v in value
        ]
    return json.dumps(value, ensure_ascii=False).replace("|", "\\|")


def _type_name(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_name(args[0])
    if origin is Literal:
        return " \\| ".join(f"`{a}`" for a in args)
    if annotation is type(None):
        return "null"
    if origin in (list, tuple, dict):
        inner = ", ".join(_type_name(a) for a in args)
        return f"{origin.__name__}[{inner}]"
    if args:
        return " \\| ".join(_type_name(a) for a in args)
    return getattr(annotation, "__name__", str(annotation))


def precision(page: str) -> str:
    """docs/precision.md with what stands between its markers computed anew. Raises ValueError where the
    markers are not those of `computed`."""
    made = computed()
    marked = re.compile(r"(<!-- computed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    if [found[2] for found in marked.finditer(page)] != list(made):
        raise ValueError(f"docs/precision.md: needs the markers {', '.join(made)}, in this order")
    return marked.sub(lambda found: f"{found[1]}{made[found[2]]}\n{found[3]}", page)


def computed() -> dict[str, str]:
    """The tables of docs/precision.md, by the names of their markers and in the page's order."""
    shown = (f"$ rft formats {x}\n{formats.described(x)}" for x in ("0.1", "70000"))
    return {
        "floating": _table(formats.floating_rows()),
        "numbers": "```\n" + "\n\n".join(shown) + "\n```",
        "blockwise": _table(formats.blockwise_rows()),
        "masters": _table(_masters()),
        "scaling": _table(_scaling()),
    }


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _masters() -> list[list[str]]:
    lr: float = Train.model_fields["lr"].default
    head = ["format", "step above 1", "1 + 1e-3", "after 1,000 updates"]
    rows = [[*head, f"weights that {lr:g} doesn't move"]]
    for f in (formats.FP32, formats.FP16, formats.BF16):
        weight = 1.0
        for _ in range(1000):
            weight = formats.round_to(weight + 1e-3, f)
        stuck = next(2.0**e for e in range(-30, 30) if formats.spacing(2.0**e, f) / 2 > lr)
        one = f"{formats.round_to(1 + 1e-3, f):.8g}"
        rows.append([f.name, f"{f.epsilon:.3g}", one, f"{weight:.8g}", f"above {stuck:g}"])
    return rows


def _scaling() -> list[list[str]]:
    rows = [["format", "1e-8", "1e-8 × 65536", "the same, divided again"]]
    for f in (formats.FP32, formats.BF16, formats.FP16):
        plain, scaled = formats.round_to(1e-8, f), formats.round_to(1e-8 * 65536, f)
        rows.append([f.name, *(f"{x:.6g}" for x in (plain, scaled, scaled / 65536))])
    return rows
