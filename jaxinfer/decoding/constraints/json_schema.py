"""JSON schemas that users give: as a mapping, or as a file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host.files import read_json

MOST_DEEP = 100  # values within values of a mapping


def read_schema(schema: Mapping[str, Any] | str | Path) -> tuple[dict[str, Any], str]:
    """Read a schema as plain JSON, and say what to call it in messages. Raises InputError if it cannot be read."""
    if isinstance(schema, Mapping):
        return plain(schema, ()), "JSON schema"
    if not isinstance(schema, (str, Path)):
        raise InputError(f"JSON schema {shown(schema)}: give a mapping, or the path of a file")
    return read_json(schema, "JSON schema"), f"JSON schema {shown_text(str(schema))}"


def plain(value: Any, path: tuple[str, ...]) -> Any:
    """Give a value of mappings, lists and scalars as JSON has it; path: where it stands.

    Raises InputError for what JSON does not have: other objects, NaN, names that are no text, what holds itself.
    """

    def fail(message: str) -> InputError:
        return InputError(": ".join(["JSON schema", *[shown_text(".".join(path), 80)] * bool(path), message]))

    if len(path) > MOST_DEEP:
        raise fail(f"is nested more than {MOST_DEEP} deep, or holds itself")
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise fail(f"the name {shown(name)} is not text")
        return {plain(name, path): plain(inner, (*path, name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, (*path, str(i))) for i, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise fail(f"{value} is not a number of JSON")
    if isinstance(value, str):
        if any(0xD800 <= ord(x) < 0xE000 for x in value):
            raise fail(f"{shown(value)} holds half a character (a lone surrogate)")
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise fail(f"{shown(value)} is not a value of JSON")
