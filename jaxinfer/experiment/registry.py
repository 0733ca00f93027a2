"""From names in a config or on the command line to the objects that the engine takes.

A mapping such as {name: lookup, width: 8} becomes `jaxinfer.Lookup(width=8)`. Its keys are the fields of the class.
"""

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping
from typing import Any

import jaxinfer
from jaxinfer.errors import nearest
from jaxinfer.experiment.merge import Keys, Origin, show
from jaxinfer.host.optional import require


def method(spec: Mapping[str, Any] | str, path: Keys, origin: Origin):
    """Make the decode method that `spec` describes. Raises InputError, as the others here."""
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        raise origin.error(path, f"expected a mapping, got {show(spec)}")
    return _named("method", jaxinfer.METHODS, spec, path, origin)


def policy(spec: Mapping[str, Any], path: Keys, origin: Origin):
    """Make the cache policy that `spec` describes."""
    return _named("policy", jaxinfer.POLICIES, spec, path, origin)


def sampling(spec: Mapping[str, Any], path: Keys, origin: Origin):
    """Make `jaxinfer.Sampling` with one number a field: in an experiment all prompts of a row share them."""
    hints: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(jaxinfer.Sampling)}
    hints["logit_bias"] = dict[int, float] | tuple[tuple[int, float], ...]  # pairs are what `as_mapping` gives
    hints["bad_words"] = tuple[tuple[int, ...], ...]
    return _construct("sampling", jaxinfer.Sampling, hints, spec, path, origin)


def as_mapping(thing: Any, name: str | None = None) -> dict[str, Any]:
    """Undo the functions above: give the fields of a dataclass, after its `name` if it has one."""
    names: dict[type, str] = {cls: name for name, cls in jaxinfer.METHODS.items()}
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    fields = {key: as_mapping(x, names.get(type(x))) if dataclasses.is_dataclass(x) else x for key, x in fields.items()}
    return fields if name is None else {"name": name, **fields}


def import_pydantic():
    """Import pydantic, or raise an InputError that says how to install it."""
    return require("pydantic", "to read a config")


@functools.cache
def adapter(hint: Any) -> Any:
    """Make what checks values of a type, once: it takes milliseconds."""
    return import_pydantic().TypeAdapter(hint)


def suggest(word: str, choices) -> str:
    """Name the nearest of `choices`, or all of them when none is near: the end of an error line."""
    return nearest(str(word), choices) or (f"; valid: {', '.join(choices)}" if choices else "; there are none")


def expected(error: dict) -> str:
    """Say what a pydantic error would have taken, in plain words."""
    kind = error["type"].partition("_")[0]
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "text",
        "tuple": "a list",
        "list": "a list",
        "dict": "a mapping",
        "dataclass": "a mapping",
        "none": "null",
    }
    return words.get(kind) or error["msg"].removeprefix("Input should be ")


def _named(kind: str, classes: Mapping[str, type], spec: Mapping, path: Keys, origin: Origin):
    if "name" not in spec:
        raise origin.error((*path, "name"), f"missing; write the name of a {kind}: {', '.join(classes)}")
    name = spec["name"]
    if not isinstance(name, str) or name not in classes:
        raise origin.error(path, f"unknown {kind} {show(name)}{suggest(name, classes)}")
    cls = classes[name]
    parameters = {key: value for key, value in spec.items() if key != "name"}
    return _construct(f"{kind} {name!r}", cls, typing.get_type_hints(cls), parameters, path, origin)


def _construct(what: str, cls: type, hints: Mapping, parameters: Mapping, path: Keys, origin: Origin):
    """Construct `cls(**parameters)`, each parameter checked against its type first."""
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    for key in parameters:
        if key not in names:
            raise origin.error((*path, key), f"{what} has no such parameter{suggest(key, names)}")
    values = {key: _value(value, hints[key], (*path, key), origin) for key, value in parameters.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise origin.error(path, " ".join(str(error).split())) from None


def _value(value: Any, hint: Any, path: Keys, origin: Origin) -> Any:
    if hint is jaxinfer.DecodeMethod:  # one method within another
        return method(value, path, origin)
    parts = [one for one in (hint, *typing.get_args(hint)) if isinstance(one, type) and dataclasses.is_dataclass(one)]
    if parts and isinstance(value, Mapping):  # a dataclass within the method
        (part,) = parts
        return _construct(part.__name__, part, typing.get_type_hints(part), value, path, origin)
    return _typed(value, hint, path, origin)


def _typed(value: Any, hint: Any, path: Keys, origin: Origin) -> Any:
    pydantic = import_pydantic()
    try:
        return adapter(hint).validate_json(json.dumps(value, default=str), strict=True)
    except pydantic.ValidationError as caught:
        wanted = dict.fromkeys(expected(error) for error in caught.errors(include_url=False))
    raise origin.error(path, f"expected {' or '.join(wanted)}, got {show(value)}")
