"""ModelConfig to JSON and back."""

import dataclasses
import types
import typing
from typing import Any

from jaxinfer.config import ModelConfig

_SCALARS: dict[Any, Any] = {int: int, float: (int, float), str: str, bool: bool}


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists, and numbers."""
    return dataclasses.asdict(config)


def config_from_json(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `config_to_json`. Raises TypeError or ValueError that names what does not fit."""
    return _build(ModelConfig, values)


def _build(kind: Any, value: Any) -> Any:
    """`value`, made of JSON's types, as the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _build(inner, value)
    if origin is tuple:
        return tuple(_build(arguments[0], item) for item in value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
        return kind(**{name: _build(hints[name], item) for name, item in value.items()})
    if kind in _SCALARS and (not isinstance(value, _SCALARS[kind]) or isinstance(value, bool) != (kind is bool)):
        raise TypeError(f"{value!r} where {kind.__name__} belongs")
    return value
