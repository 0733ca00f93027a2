"""Frozen dataclasses, ModelConfig first, to standard JSON and back: every value checked against its annotation."""

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from jaxinfer.config import SSM, ModelConfig, RopeScaling
from jaxinfer.errors import InputError, nearest, shown

T = TypeVar("T")
INFINITY = "Infinity"  # what stands for it: JSON has no such number

_MOST = 2**31 - 1  # of a whole number: sizes and positions are int32 on a device
_MOST_LAYERS = 100_000
_FROM_ZERO = {"ModelConfig.d_ff", "MLA.nope_dim", "TokenizerSettings.bos_id", "TokenizerSettings.eos_ids"}
_FROM_ZERO |= {f"HeadsConfig.{name}" for name in ("n_heads", "n_kv_heads", "head_dim", "d_ff")}
_ANY_SIGN = {f"ModelConfig.{name}_scale" for name in ("embed", "residual", "logit", "query")}
_ANY_SIGN |= {"ModelConfig.alibi", "MoE.scale"}
_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
}


def config_to_json(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists, and numbers that standard JSON has."""
    return _plain(dataclasses.asdict(config))


def config_from_json(values: Any, where: str = "configuration") -> ModelConfig:
    """Invert `config_to_json`. Raises InputError, which begins with `where` and the field that does not fit."""
    config = from_json(ModelConfig, values, where)
    if config.n_layers > _MOST_LAYERS:
        raise InputError(
            f"{_at(where, 'segments')}: {config.n_layers} layers are more than the {_MOST_LAYERS} that can be"
        )
    names = [kind.name for kind in config.kinds]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{_at(where, 'segments')}: two kinds of layers are both called {shown(twice)}")
    return config


def from_json(kind: type[T], values: Any, where: str) -> T:
    """Make a dataclass from what JSON holds: its inverse is `config_to_json`.

    Raises InputError, which begins with `where`, a file or a field, and the field that does not fit.
    """
    return _build(kind, values, where, "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        if value != math.inf:
            raise ValueError(f"{value} in a configuration")
        return INFINITY
    return value


def _build(kind: Any, value: Any, where: str, field: str) -> Any:
    """Return `value`, made of JSON's types, as the annotated type `kind`. `field`: whose value it is, as Class.name."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _build(_chosen([x for x in arguments if x is not type(None)], value), value, where, field)
    if origin is typing.Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            hint = nearest(value, [x for x in arguments if isinstance(x, str)]) if isinstance(value, str) else ""
            raise InputError(f"{where}: {shown(value)} must be one of {', '.join(map(str, arguments))}{hint}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, where, field)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if kind is float and value == INFINITY and isinstance(value, str):
        value = math.inf
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{where}: {shown(value)} is not {_NAMES[kind]}")
    return value if kind in (str, bool, dict) else _number(kind, value, where, field)


def _number(kind: Any, value: Any, where: str, field: str) -> Any:
    """Return a number within what its field can be: sizes from 1, factors above 0, all of them finite but one."""
    if kind is int:
        least = 0 if field in _FROM_ZERO else 1
        if not least <= value <= _MOST:
            raise InputError(f"{where}: {shown(value)} must be from {least} to {_MOST}")
        return value
    try:
        value = float(value)
    except OverflowError:
        value = math.nan
    if field == "SSM.dt_limit":
        if not value >= 0:
            raise InputError(f"{where}: {shown(value)} must be 0 or above")
    elif not math.isfinite(value) or not (value > 0 or field in _ANY_SIGN):
        raise InputError(f"{where}: {shown(value)} must be a finite number{'' if field in _ANY_SIGN else ' above 0'}")
    return value


def _chosen(kinds: list[Any], value: Any) -> Any:
    """Return the type of a union that a value is of: of dataclasses, the one that has all of its fields."""
    if len(kinds) == 1 or not isinstance(value, dict):
        return kinds[0]
    for kind in kinds:
        fields = dataclasses.fields(kind)
        needed = {field.name for field in fields if field.default is dataclasses.MISSING}
        if needed <= set(value) <= {field.name for field in fields}:
            return kind
    return kinds[0]


def _tuple(arguments: tuple[Any, ...], value: Any, where: str, field: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: {shown(value)} is not a list")
    many = len(arguments) == 2 and arguments[1] is Ellipsis
    if not many and len(value) != len(arguments):
        raise InputError(f"{where}: {shown(value)} must be a list of {len(arguments)}")
    kinds = [arguments[0]] * len(value) if many else arguments
    return tuple(_build(kinds[i], item, f"{where}[{i}]", field) for i, item in enumerate(value))


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {shown(value)} is not an object with the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise InputError(f"{where}: {kind.__name__} has no field {shown(name)}{nearest(name, hints)}")
    for field in dataclasses.fields(kind):
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in value:
            raise InputError(f"{where}: field {field.name!r} is missing")
    built = {
        name: _build(hints[name], item, _at(where, name), f"{kind.__name__}.{name}") for name, item in value.items()
    }
    for name, items in built.items():
        if name in ("segments", "pattern") and not items:
            raise InputError(f"{_at(where, name)}: is empty")
    if kind is RopeScaling and built["kind"] == "longrope" and not built.get("divisors"):
        raise InputError(f"{where}.divisors: is empty")
    if kind is SSM and not _rises(built.get("dt_limit", (0.0, math.inf))):
        raise InputError(f"{where}.dt_limit: {shown(value['dt_limit'])} must be two numbers that rise")
    try:
        return kind(**built)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where}: {error}") from None


def _at(where: str, name: str) -> str:
    """Return a field of what `where` names: of a file, or of a field in one."""
    return f"{where}.{name}" if ": " in where else f"{where}: {name}"


def _rises(limit: tuple[float, float]) -> bool:
    return limit[0] < limit[1] and math.isfinite(limit[0])
