"""From a JSON schema to the regular expression that outlines-core makes of it, and a check that it keeps all of it.

outlines-core passes over keywords that it does not know (`minimum`), or that stand beside one that it takes first
(`maxLength` beside `pattern`). A text would then be no instance of the schema, so such a schema is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxinfer.decoding.automaton import over_bytes
from jaxinfer.errors import InputError, nearest

_NOTES = {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"}
_NOTES |= {"deprecated", "readOnly", "writeOnly"}
_RULES = {  # in the order in which outlines-core looks for them: what may stand beside each
    "properties": {"type", "required", "additionalProperties"},
    "allOf": set(),
    "anyOf": set(),
    "oneOf": set(),
    "prefixItems": {"type", "items"},
    "enum": {"type"},
    "const": {"type"},
    "$ref": set(),
}
_TYPES = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
    "array": {"items", "minItems", "maxItems"},
    "object": {"additionalProperties", "minProperties", "maxProperties"},
}
_IS = {
    "string": lambda x: isinstance(x, str),
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "number": lambda x: isinstance(x, (int, float)) and not isinstance(x, bool),
    "boolean": lambda x: isinstance(x, bool),
    "null": lambda x: x is None,
    "array": lambda x: isinstance(x, list),
    "object": lambda x: isinstance(x, Mapping),
}
_DATE, _TIME = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z"
_FORMATS = {  # narrower than outlines-core's, of which some write what is no JSON
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_ESCAPED = [*range(0x20), ord('"'), ord("\\")]  # bytes that a JSON string cannot hold as they are


def read_schema(schema: Mapping[str, Any] | str | Path) -> tuple[dict[str, Any], str]:
    """A schema as plain JSON, and what to call it in messages. Raises InputError for a file that cannot be read."""
    if isinstance(schema, Mapping):
        try:
            return json.loads(json.dumps(schema)), "JSON schema"
        except (TypeError, ValueError) as error:
            raise InputError(f"JSON schema: {error}") from None
    what = f"JSON schema {schema}"
    try:
        found = json.loads(Path(schema).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}: give the path of a file, or a mapping") from None
    except ValueError as error:  # neither JSON nor UTF-8
        raise InputError(f"{what}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f'{what}: expected an object, such as {{"type": "object", "properties": ...}}')
    return found, what


def pattern_of(schema: dict[str, Any], what: str) -> str:
    """The regular expression for JSON of a schema. Raises InputError for a schema that it could not keep to."""
    try:
        from outlines_core.json_schema import build_regex_from_schema
    except ImportError:
        raise InputError('outlines-core is needed for a constraint: pip install "jaxinfer[constrain]"') from None
    checked = _checked(schema, schema, (), what)
    try:
        return build_regex_from_schema(json.dumps(checked))
    except (ValueError, TypeError) as error:
        raise InputError(f"{what}: {str(error).strip().splitlines()[0]}") from None


def _checked(schema: Any, root: dict, path: tuple[str, ...], what: str, refs: tuple[str, ...] = ()) -> Any:
    """The schema with its patterns in brackets, all of it checked; refs: those that led here."""

    where = ": ".join([what, ".".join(path)] if path else [what])

    def fail(message: str) -> InputError:
        return InputError(f"{where}: {message}")

    def inner(key: str, child: Any, name: str | None = None) -> Any:
        return _checked(child, root, (*path, key, *([] if name is None else [name])), what, refs)

    if not isinstance(schema, dict):
        raise fail(f"expected a schema in braces, got {json.dumps(schema)}")
    rule = next((key for key in _RULES if key in schema), None)
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    if "type" in schema and (not types or not all(isinstance(one, str) and one in _TYPES for one in types)):
        raise fail(f"type {json.dumps(schema['type'])} must be one of {', '.join(_TYPES)}, or a list of these")
    known = {rule, *_RULES[rule]} if rule else {"type", *(key for one in types for key in _TYPES[one])}
    for key in schema:
        if key not in known | _NOTES:
            beside = f"beside {rule!r}" if rule else f"for type {' or '.join(types)}" if types else "without a type"
            raise fail(f"keyword {key!r} cannot be kept to {beside}{nearest(key, known)}")
    for key in _COUNTS:
        if key in schema and (not _IS["integer"](schema[key]) or schema[key] < 0):
            raise fail(f"{key} must be a whole number from 0, got {json.dumps(schema[key])}")
    new = dict(schema)
    if rule == "properties":
        missing = set(schema.get("required", [])) - set(schema["properties"])
        if missing:
            raise fail(f"required names {min(missing)!r}, which is not among its properties")
        new["properties"] = {name: inner(rule, child, name) for name, child in schema["properties"].items()}
    elif rule in ("allOf", "anyOf", "oneOf", "prefixItems"):
        if not schema[rule] or (rule == "allOf" and len(schema[rule]) > 1):
            raise fail(f"{rule} must hold {'one schema' if rule == 'allOf' else 'at least one schema'}")
        new[rule] = [inner(rule, child, str(i)) for i, child in enumerate(schema[rule])]
    elif rule in ("enum", "const"):
        values = schema["enum"] if rule == "enum" else [schema["const"]]
        wrong = [x for x in values if types and not any(_IS[one](x) for one in types)]
        if not values or wrong:
            raise fail("enum is empty" if not values else f"{json.dumps(wrong[0])} is not of type {types[0]}")
    elif rule == "$ref":
        _follow(schema["$ref"], root, path, what, refs, where)
    for key in ("items", "additionalProperties"):
        if rule is None and key in schema and not isinstance(schema[key], bool):
            new[key] = inner(key, schema[key])
    if "string" in types and rule is None:
        _check_string(new, where)
    for key in ("$defs", "definitions"):
        if key in schema:
            new[key] = {name: inner(key, child, name) for name, child in schema[key].items()}
    return new


def _follow(ref: Any, root: dict, path: tuple[str, ...], what: str, refs: tuple[str, ...], where: str) -> None:
    """Check what a reference names, and that it does not lead back to itself."""
    if not isinstance(ref, str) or not ref.startswith("#/"):
        raise InputError(f"{where}: $ref {json.dumps(ref)} must name a part of this schema, such as '#/$defs/name'")
    if ref in refs:
        raise InputError(f"{where}: $ref {ref!r} leads back to itself: JSON of any depth is no regular language")
    found: Any = root
    for step in ref[2:].split("/"):
        if not isinstance(found, dict) or step not in found:
            raise InputError(f"{where}: $ref {ref!r} names nothing: there is no {step!r}")
        found = found[step]
    _checked(found, root, (*path, "$ref"), what, (*refs, ref))


def _check_string(schema: dict[str, Any], where: str) -> None:
    """Put the pattern of a string, or of its format, in brackets.

    Raises InputError for one that writes what JSON has to escape.
    """
    given = [key for key in ("pattern", "format", "minLength", "maxLength") if key in schema]
    if ("pattern" in given or "format" in given) and len(given) > 1:
        raise InputError(f"{where}: {given[0]} and {given[1]} cannot be kept to together")
    if "format" in given:
        name = schema.pop("format")
        if name not in _FORMATS:
            known = ", ".join(_FORMATS)
            raise InputError(f"{where}: format {json.dumps(name)} is not supported; supported: {known}")
        schema["pattern"] = _FORMATS[name]
    if "pattern" not in schema:
        return
    pattern = schema["pattern"]
    if not isinstance(pattern, str):
        raise InputError(f"{where}: pattern must be text, got {json.dumps(pattern)}")
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern = pattern[:-1]
    states = over_bytes(pattern, f"{where}: pattern {schema['pattern']!r}").next
    if (states[:, _ESCAPED] >= 0).any():
        raise InputError(
            f"{where}: pattern {schema['pattern']!r} allows a quote, a backslash or a control character, which JSON "
            "has to escape: say which characters may come, such as [a-z ]"
        )
    schema["pattern"] = f"^(?:{pattern})$"
