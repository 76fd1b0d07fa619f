"""JSON answers: found in a text, checked by a schema, compared by value.

JSON leaves some things open, and each is settled on the side of not knowing: an object with a key
twice, NaN, a number beyond a float's range and what is nested too deep are no JSON here.
"""

import json
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.protocols import Validator
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

_OPENS = re.compile(r"""\{(?=\s*+["}])|\[(?=\s*+[\[{"\d\-tfn\]])""", re.ASCII)
"""How an object or a list may begin."""


class NoJson(Exception):
    """There is none, or it can't be read."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is there twice")
    return made


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("beyond a float's range")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=_real, parse_constant=_refuse)


def parse(text: str) -> Any:
    """The value of a text that is JSON. Raises NoJson."""
    try:
        return _DECODER.decode(text.strip())
    except (ValueError, RecursionError) as fault:
        raise NoJson(str(fault)) from None


def last(text: str, kind: type | None) -> tuple[Any, str]:
    """The last JSON value in a text, and how it is written there: its last block fenced as json, else
    all of the text, else the last object or list in it.

    kind: dict or list, where only one of the two can be the answer: a `[1]` in prose is a list too.
    Raises NoJson.
    """
    fenced = _fenced(text)
    if fenced is not None:
        return parse(fenced), fenced.strip()
    try:
        return parse(text), text.strip()
    except NoJson:
        pass
    found = [one for one in _values(text) if kind is None or isinstance(one[0], kind)]
    if not found:
        raise NoJson("there is none")
    return found[-1]


def _fenced(text: str) -> str | None:
    """The last block fenced as json; None if there is none. Raises NoJson if it is left open."""
    last: str | None = None
    block: list[str] | None = None
    for line in text.splitlines(keepends=True):
        if block is None:
            block = [] if line.strip().lower() == "```json" else None
        elif line.strip() == "```":
            last, block = "".join(block), None
        else:
            block.append(line)
    if block is not None:
        raise NoJson("its block is left open")
    return last


def _values(text: str) -> Iterator[tuple[Any, str]]:
    """Objects and lists in a text that are not inside another. Raises NoJson at one that is JSON in
    form but not clear."""
    at = 0
    while opening := _OPENS.search(text, at):
        at = opening.start()
        # A fault counts the lines of all that is before it, so it is given what is left only.
        rest = text[at:]
        try:
            value, end = _DECODER.raw_decode(rest)
        except json.JSONDecodeError as fault:
            # What is whole inside something broken does not count; and so each sign is read once.
            at += max(fault.pos, 1)
        except (ValueError, RecursionError) as fault:
            raise NoJson(str(fault)) from None
        else:
            yield value, rest[:end]
            at += end


def same(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, and neither is true or "1"."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k], tolerance) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in zip(one, other))
    if _is_number(one) and _is_number(other):
        return bool(
            one == other
            or abs(Fraction(one) - Fraction(other)) <= Fraction(tolerance) * abs(Fraction(other))
        )
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Schemas -----------------------------------------------------------------------------------------


def validator(schema: dict[str, Any] | str) -> Validator:
    """A checked schema, given itself or as the path of its file, with nothing fetched from anywhere.

    Raises ValueError for what is no schema, a `$ref` that leads out of it or nowhere, and a `format`
    that can't be checked here (it would pass everything).
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(Path(schema).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"schema: {schema}: no such file") from None
        except (OSError, ValueError) as fault:
            raise ValueError(f"schema: {schema}: cannot be read: {fault}") from None
    if not isinstance(schema, dict) or not schema:
        raise ValueError("schema: give a JSON schema (a mapping), or the path of a file with one")
    made = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        made.check_schema(schema)
    except jsonschema.SchemaError as fault:
        where = "/".join(map(str, fault.absolute_path)) or "its top"
        raise ValueError(f"schema: at {where}: {fault.message}") from None
    resource = Resource.from_contents(
        schema, default_specification=specification_with(made.META_SCHEMA["$schema"])
    )
    resolver = Registry().resolver_with_root(resource)
    checkers = made.FORMAT_CHECKER.checkers
    for key, value in _keywords(schema):
        if key in ("$ref", "$dynamicRef", "$recursiveRef"):
            try:
                if not value.startswith("#"):
                    raise Unresolvable(ref=value)
                resolver.lookup(value)
            except Unresolvable:
                raise ValueError(
                    f"schema: {key} {value!r}: a reference must lead to a part of the schema itself "
                    "(#/$defs/name): nothing is fetched"
                ) from None
        if key == "format" and value not in checkers:
            raise ValueError(
                f"schema: format {value!r} can't be checked here, only {', '.join(sorted(checkers))}."
                " Use pattern, or pip install 'jsonschema[format-nongpl]' for more formats"
            )
    ready = made(schema, format_checker=made.FORMAT_CHECKER, registry=Registry())
    try:
        samples: list[Any] = [{}, [], "", 0]
        for sample in samples:
            ready.is_valid(sample)
    except RecursionError:
        raise ValueError("schema: a $ref leads back to itself without end") from None
    return ready


def kind_of(schema: Validator) -> type | None:
    """dict or list, where the schema asks for one of the two at its top."""
    of = schema.schema.get("type") if isinstance(schema.schema, dict) else None
    return {"object": dict, "array": list}.get(of) if isinstance(of, str) else None


def _keywords(schema: Any) -> Iterator[tuple[str, str]]:
    """Every key of a schema with a text for a value. Names of properties, and what stands in enum,
    const, default and examples, are no keywords; those are left out."""
    if isinstance(schema, list):
        for part in schema:
            yield from _keywords(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if isinstance(value, str):
                yield key, value
            elif key in (
                "properties",
                "patternProperties",
                "$defs",
                "definitions",
                "dependentSchemas",
            ):
                yield from _keywords(list(value.values()))
            elif key not in ("enum", "const", "default", "examples"):
                yield from _keywords(value)
