"""A mapping as a frozen dataclass: each value is held to its annotation, and an unknown key is named.

The classes are plain dataclasses; pydantic validates them and is imported only when a config is read.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxinfer.compress.context import KINDS
from jaxinfer.errors import InputError, nearest
from jaxinfer.experiment import merge, registry
from jaxinfer.experiment.merge import Keys, Origin, show
from jaxinfer.weights.formats import FORMATS

Config = TypeVar("Config")

LONGEST_NAME = 100  # of an experiment
_EXAMPLES = {  # for each required key
    "name": "write a name such as 'quickstart'",
    "model": "write 'model: smollm2-135m', or a path to a checkpoint",
    "source": "write a built-in name such as 'smollm2-135m', or a path",
    "rows": "write a list with one entry for each row of the table",
    "method": "write the name of a decode method, such as 'greedy'",
    "kind": f"write one of {', '.join(KINDS)}",
    "factor": "write how many times the context grows, such as 4",
}


def read_as(cls: type[Config], path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a config file as a frozen dataclass. Raises InputError."""
    return typed(cls, *merge.read(path, overrides))


def typed(cls: type[Config], data: dict, origin: Origin, also: tuple[str, ...] = ()) -> Config:
    """Read a plain mapping as a `cls`. also: keys that were read before, which an unknown one may be meant for.

    Raises InputError, one line with the path, the value and what would be right.
    """
    pydantic = registry.import_pydantic()
    # Strict mode takes a dataclass from a mapping only when the mapping comes as JSON.
    document = json.dumps(data, default=str)
    try:
        config: Config = registry.adapter(typing.cast(Any, cls)).validate_json(document, strict=True)
        _check_formats(config, (), origin)
        return config
    except pydantic.ValidationError as caught:
        errors = caught.errors(include_url=False)
    except pydantic.errors.PydanticUserError as error:  # an annotation that has no values in YAML
        raise InputError(f"{cls.__module__}.{cls.__name__}: {str(error).splitlines()[0]}") from None
    # A mistyped key is both unknown and missing: tell about the unknown one.
    errors.sort(key=lambda error: error["type"] != "unexpected_keyword_argument")
    first = errors[0]
    path = _within(data, first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        known = [*_keys_at(cls, path[:-1]), *(also if len(path) == 1 else ())]
        raise origin.error(path, f"unknown key{registry.suggest(str(path[-1]), known)}")
    if first["type"] == "missing":
        key = first["loc"][-1]
        raise origin.error((*path, key), f"missing; {_EXAMPLES.get(key, 'write a value')}")
    wanted = dict.fromkeys(registry.expected(error) for error in errors if _within(data, error["loc"]) == path)
    raise origin.error(path, f"expected {' or '.join(wanted)}, got {show(first['input'])}")


def _check_formats(config: Any, path: Keys, origin: Origin) -> None:
    """Raise InputError for a weight format that there is not, under a key `weights`, however deep it lies."""
    if isinstance(config, Mapping):
        values: Mapping[str, Any] = config
    elif dataclasses.is_dataclass(config):
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    else:
        return
    for key, value in values.items():
        if key == "weights" and isinstance(value, str) and value not in FORMATS:
            hint = nearest(value, FORMATS)
            raise origin.error((*path, key), f"{show(value)} must be one of {', '.join(FORMATS)}{hint}")
        _check_formats(value, (*path, key), origin)


def check_name(name: str, origin: Origin) -> None:
    """Raise InputError for the name of an experiment that names no folder."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise origin.error(("name",), f"letters, digits and ._- only (it names a folder), got {show(name)}")
    if len(name) > LONGEST_NAME:
        raise origin.error(("name",), f"at most {LONGEST_NAME} characters (it names a folder), got {len(name)}")


def _within(data: Any, loc: tuple) -> Keys:
    """Give pydantic's location without the names of union branches that it puts in between."""
    path: list[str | int] = []
    for step in loc:
        keys = [key for key in data if str(key) == step] if isinstance(data, dict) else []  # JSON has no other keys
        if keys or (isinstance(data, list) and isinstance(step, int) and step < len(data)):
            path.append(keys[0] if keys else step)
            data = data[path[-1]]
    return tuple(path)


def _keys_at(cls: type, path: Keys) -> list[str]:
    """List the valid keys of the mapping at `path` below a `cls`."""
    for key in (step for step in path if isinstance(step, str)):
        hint = typing.get_type_hints(cls).get(key, cls)  # a name within a mapping: its class is known already
        classes = [one for one in typing.get_args(hint) if isinstance(one, type) and dataclasses.is_dataclass(one)]
        cls = classes[0] if classes else hint  # of a tuple or a mapping, the class of its entries
    return [field.name for field in dataclasses.fields(cls)]
