"""Checks values that a caller gives: whole numbers of 32 bits, and fields of their annotated types."""

import dataclasses
import functools
import inspect
import math
import numbers
import operator
import types
import typing
from collections.abc import Iterable
from typing import Any

from jaxinfer.errors import InputError, nearest, shown

MOST = 2**31 - 1  # what an int32 on the device holds


def whole(value: Any, name: str, least: int = -MOST, most: int | None = MOST) -> int:
    """Return `value` as an int: any integral scalar, of Python, numpy or JAX. most=None: however large.

    Raises InputError for anything else, a bool too, and for a number out of bounds.
    """
    try:
        if not is_bool(value):
            number = operator.index(value)
            if number >= least and (most is None or number <= most):
                return number
    except TypeError:
        pass
    if most is None:
        bounds = f", {least} or above"
    else:
        bounds = "" if least == -MOST else f", {least} or above" if most == MOST else f" from {least} to {most}"
    raise InputError(f"{name}={shown(value)} must be a whole number{bounds}")


def is_bool(value: Any) -> bool:
    """Tell whether it is a truth value, of Python, numpy or JAX."""
    return isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"


def typed(thing: Any) -> None:
    """Hold each field of a frozen dataclass to its annotation, in its `__post_init__`, and settle it.

    Whole numbers of any kind become ints that fit in 32 bits, lists become tuples. Raises InputError for a value of
    another type. Annotations of other kinds than decode methods and cache policies have are passed over.
    """
    cls: Any = type(thing)
    for name, hint in _hints(cls).items():
        value = getattr(thing, name)
        settled = _settled(value, hint, name)
        if settled is not value:
            object.__setattr__(thing, name, settled)


def counts(thing: Any) -> dict[str, int]:
    """Return the fields of a dataclass that are whole numbers, by name."""
    fields = ((field.name, getattr(thing, field.name)) for field in dataclasses.fields(thing))
    return {name: value for name, value in fields if isinstance(value, int) and not isinstance(value, bool)}


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _settled(value: Any, hint: Any, name: str) -> Any:
    """Return `value` as its annotation has it. Raises InputError."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        wrong = []
        for part in (part for part in parts if part is not type(None)):
            try:
                return _settled(value, part, name)
            except InputError as error:
                expected, semicolon, advice = str(error).partition(" must be ")[2].partition("; ")
                wrong.append(expected.replace(" or ", ", "))
        wrong += ["left out (None)"] if type(None) in parts else []
        raise InputError(f"{name}={shown(value)} must be {_either(wrong)}{semicolon}{advice}")
    if hint is int:
        return whole(value, name)
    if hint is float:
        ok = isinstance(value, numbers.Real) and not is_bool(value) and math.isfinite(value)
        return _given(ok, value, name, "a finite number")
    if hint is bool:
        return bool(_given(is_bool(value) and not getattr(value, "ndim", 0), value, name, "True or False"))
    if hint is str:
        return _given(isinstance(value, str), value, name, "a text")
    if kind is typing.Literal:
        same = [part for part in parts if type(part) is type(value) and part == value]
        near = nearest(value, [x for x in parts if isinstance(x, str)]) if isinstance(value, str) else ""
        return _given(bool(same), value, name, _either(map(repr, parts)) + near)
    if kind is tuple and (parts[1:] == (Ellipsis,) or len(set(parts)) == 1):
        listed = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
        items = tuple(_settled(x, parts[0], name) for x in _given(listed, value, name, "a list"))
        return value if isinstance(value, tuple) and all(map(operator.is_, items, value)) else items
    if inspect.isabstract(hint):  # a contract
        return _given(isinstance(value, hint), value, name, f"a {hint.__name__}, such as Lookup()")
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _given(isinstance(value, hint), value, name, f"a {hint.__name__}")
    return value


def _either(words: Iterable[str]) -> str:
    """ "a, b or c"."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _given(ok: bool, value: Any, name: str, what: str) -> Any:
    if not ok:
        raise InputError(f"{name}={shown(value)} must be {what}")
    return value


FORBID_UNKNOWN_KEYS = {"extra": "forbid"}  # what pydantic reads from `__pydantic_config__`
