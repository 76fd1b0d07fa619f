"""From `use:` and `args:` in YAML to something callable, checked before anything runs.

No registry and no base class: a built-in lives in the file and under the name that YAML uses
(`rft/scorers/answer.py` has `answer`), and anything else is `./file.py:name` or `package.mod:name`.
The arguments are bound to the signature, so a typing error is found by `rft check`.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

import rft
from rft.config import ConfigError
from rft.faults import did_you_mean
from rft.section import Component
from rft.types import digest

SHARED = ("rft.equations", "rft.overlap")
"""Modules outside the components' folders whose code decides what some of these do."""


def builtin_names(kind: str) -> list[str]:
    """Names of the files in rft/<kind>/ that hold a component of their own name."""
    folder = Path(rft.__file__).parent / kind
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def find(kind: str, use: str, where: str = "") -> Callable[..., Any]:
    """The function or class that `use` names. kind: samplers, allocators, scorers, selectors or
    prompts.

    where: the component's dotted path in the experiment, for messages. Raises ConfigError.
    """
    setting = f"{where or kind}.use"
    if ":" not in use:
        names = ["hf", "jsonl"] if kind == "prompts" else builtin_names(kind)
        if use not in names:
            raise ConfigError(
                f"{setting}: there is no {use!r}{did_you_mean(use, names)}; built in are "
                f"{', '.join(names)}; your own is ./file.py:function"
            )
        module = importlib.import_module(
            "rft.prompts" if kind == "prompts" else f"rft.{kind}.{use}"
        )
        return getattr(module, use)
    file, _, name = use.rpartition(":")
    if file.endswith(".py"):
        module = _load_file(Path(file), setting)
    else:
        try:
            module = importlib.import_module(file)
        except ImportError as fault:
            raise ConfigError(f"{setting}: {use}: cannot import {file}: {fault}") from None
    found = getattr(module, name, None)
    if not callable(found):
        there = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{setting}: {file} has no {name!r}{did_you_mean(name, there)}")
    return found


def _load_file(path: Path, setting: str) -> Any:
    # The module's name holds the path, so that two files of one name do not meet.
    name = f"rft_user_{path.stem}_{digest(str(path.resolve()))[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"{setting}: {path}: no such file (beside the YAML: ./file.py)")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as fault:
        del sys.modules[name]
        raise ConfigError(f"{setting}: {path}: {type(fault).__name__}: {fault}") from fault
    return module


def given(kind: str, found: Callable[..., Any]) -> int:
    """How many leading arguments the pipeline passes itself; the rest come from `args:`."""
    if inspect.isclass(found) and kind in ("scorers", "selectors", "allocators"):
        return 0  # it is made from its arguments, and then called
    return {"scorers": 2, "selectors": 1, "prompts": 0, "samplers": 1, "allocators": 1}[kind]


def is_stream(use: str) -> bool:
    """Whether a scorer is a `StreamScorer`, which runs in the stage's own process."""
    found = find("scorers", use)
    return inspect.isclass(found) and callable(getattr(found, "score", None))


def parameters(kind: str, use: str, where: str = "") -> list[str]:
    """Names of the arguments that a component takes from `args:`."""
    found = find(kind, use, where)
    return list(inspect.signature(found).parameters)[given(kind, found) :]


def bind(
    kind: str, component: Component, where: str = ""
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Finds a component and reads its arguments through the signature's annotations.

    where: the component's dotted path in the experiment. Raises ConfigError that names the argument.
    """
    found = find(kind, component.use, where)
    at = f"{where or kind}.args"
    signature = inspect.signature(found)
    known = list(signature.parameters)[given(kind, found) :]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in component.args:
        if key not in known and not open_ended:
            raise ConfigError(
                f"{at}.{key}: {component.use} takes no argument {key!r}"
                f"{did_you_mean(key, known)}; it takes {', '.join(known) or 'none'}"
            )
    for key in known:
        parameter = signature.parameters[key]
        if parameter.default is parameter.empty and key not in component.args:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise ConfigError(f"{at}: {component.use} needs the argument {key!r}")
    args = _typed(component, found, at)
    try:
        # What annotations cannot say of arguments together (rft/selectors/_common.py).
        getattr(found, "check_args", lambda _: None)(args)
    except (TypeError, ValueError) as fault:
        raise ConfigError(f"{at}: {component.use}: {fault}") from None
    return found, args


def argument(kind: str, component: Component, name: str, where: str = "") -> Any:
    """What a component's argument is: as given, or its default; None where it has none of the name.

    Raises ConfigError as `bind` does.
    """
    made, args = bind(kind, component, where)
    parameter = inspect.signature(made).parameters.get(name)
    return args.get(name, parameter and parameter.default)


def _typed(component: Component, found: Callable[..., Any], at: str) -> dict[str, Any]:
    """The arguments read through their annotations, as settings are: YAML's `1e-4` is a string."""
    try:
        hints = typing.get_type_hints(
            found.__init__ if inspect.isclass(found) else found,
            include_extras=True,
        )
    except (NameError, TypeError, AttributeError):
        return dict(component.args)  # annotations that only a type checker understands
    args: dict[str, Any] = {}
    for key, value in component.args.items():
        args[key] = value
        later = isinstance(value, str) and value.startswith("arm:")
        if later or key not in hints:
            continue
        try:
            args[key] = TypeAdapter(hints[key]).validate_python(value)
        except PydanticSchemaGenerationError:
            continue
        except ValidationError as fault:
            raise ConfigError(f"{at}.{key}: {fault.errors()[0]['msg']}, not {value!r}") from None
    return args


def make(kind: str, component: Component, where: str = "") -> Callable[..., Any]:
    """The component with its arguments in place, ready for the pipeline's own."""
    found, args = bind(kind, component, where)
    try:
        if inspect.isclass(found) and not given(kind, found):
            made: Any = found(**args)
            return made
        return functools.partial(found, **args)
    except (TypeError, ValueError) as fault:
        raise ConfigError(f"{where or kind}: {component.use}: {fault}") from fault


def source_digest(kind: str, use: str) -> str:
    """Hash of the code of the file a component stands in, comments and layout aside. With a
    built-in, the helpers (`_name.py`) that it imports from its folder count too."""
    found = inspect.unwrap(find(kind, use))
    try:
        path = inspect.getsourcefile(found)
    except TypeError:  # an object that can be called, such as a partial: the file that names it
        file = use.rpartition(":")[0]
        path = file if file.endswith(".py") else importlib.import_module(file).__file__
    assert path is not None
    trees = {Path(path): ast.parse(Path(path).read_text())}
    waiting = [] if ":" in use else list(trees)
    while waiting:
        for helper in _helpers(trees[waiting.pop()], kind):
            if helper not in trees:
                trees[helper] = ast.parse(helper.read_text())
                waiting.append(helper)
    return digest(*(ast.dump(trees[path]) for path in sorted(trees)))


def _helpers(tree: ast.AST, kind: str) -> list[Path]:
    """Files named `_...py` of the kind's folder that a file imports, and those of SHARED."""
    folder = Path(rft.__file__).parent / kind
    names = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for name in (
            [alias.name for alias in node.names]
            if node.module == f"rft.{kind}"
            else [node.module.removeprefix(f"rft.{kind}.")]
        )
    ]
    return [
        folder / f"{n}.py" for n in names if n.startswith("_") and (folder / f"{n}.py").is_file()
    ] + [folder.parent / f"{n.removeprefix('rft.')}.py" for n in names if n in SHARED]
