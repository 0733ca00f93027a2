"""Arithmetic on numbers, on arrays of them, or on formulas that something else evaluates.

The analyzer's formulas are written once. With numbers for the setting they give numbers; with arrays for a part of it,
all of a length, they give arrays: a figure for each of many settings. With an `Expression` they give the formula as
text, in JavaScript's notation, which a page evaluates as its controls move.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Number: TypeAlias = Any
"""An int, a float, an array of them, or an `Expression`: a checker cannot follow arithmetic on their union."""


class Expression:
    """A formula over named variables. Its text evaluates to a number in JavaScript."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def __add__(self, other: Number) -> Number:
        return self if _is(other, 0) else Expression(f"({self}+{_text(other)})")

    def __radd__(self, other: Number) -> Number:
        return self if _is(other, 0) else Expression(f"({_text(other)}+{self})")

    def __sub__(self, other: Number) -> Number:
        return self if _is(other, 0) else Expression(f"({self}-{_text(other)})")

    def __rsub__(self, other: Number) -> Number:
        return Expression(f"({_text(other)}-{self})")

    def __mul__(self, other: Number) -> Number:
        if _is(other, 0):
            return 0
        return self if _is(other, 1) else Expression(f"({self}*{_text(other)})")

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Number:
        return self if _is(other, 1) else Expression(f"({self}/{_text(other)})")

    def __rtruediv__(self, other: Number) -> Number:
        return 0 if _is(other, 0) else Expression(f"({_text(other)}/{self})")

    def __pow__(self, other: Number) -> Number:
        return Expression(f"Math.pow({self},{_text(other)})")

    def __rpow__(self, other: Number) -> Number:
        return Expression(f"Math.pow({_text(other)},{self})")


def is_plain(value: Number) -> bool:
    """Tell whether it is one number: neither a formula nor an array."""
    return not isinstance(value, Expression | np.ndarray)


def is_one(value: Number) -> bool:
    """Tell whether it is the number 1, and no formula or array that may be."""
    return is_plain(value) and value == 1


def over(value: Number, parts: Number) -> Number:
    """Divide by a number of parts; by one part, give the value itself."""
    return value if is_one(parts) else value / parts


def smallest(*values: Number) -> Number:
    """Give the smallest of the values."""
    return _apply("Math.min", min, np.minimum, *values)


def largest(*values: Number) -> Number:
    """Give the largest of the values."""
    return _apply("Math.max", max, np.maximum, *values)


def ceil(value: Number) -> Number:
    """Round up to a whole number."""
    return _apply("Math.ceil", math.ceil, np.ceil, value)


def floor(value: Number) -> Number:
    """Round down to a whole number."""
    return _apply("Math.floor", math.floor, np.floor, value)


def where_at_most(value: Number, bound: Number, one: Number, other: Number) -> Number:
    """Give `one` where value <= bound, else `other`."""
    if any(isinstance(part, Expression) for part in (value, bound)):
        return Expression(f"({_text(value)}<={_text(bound)}?{_text(one)}:{_text(other)})")
    if not (is_plain(value) and is_plain(bound)):
        return np.where(value <= bound, one, other)
    return one if value <= bound else other


def _apply(name: str, function: Callable[..., Number], of_arrays: Callable[..., Number], *values: Number) -> Number:
    if any(isinstance(value, Expression) for value in values):
        return Expression(f"{name}({','.join(map(_text, values))})")
    if any(isinstance(value, np.ndarray) for value in values):
        return of_arrays(values[0]) if len(values) == 1 else functools.reduce(of_arrays, values)
    return function(*values)


def _is(value: Number, number: int) -> bool:
    return not isinstance(value, Expression) and value == number


def _text(value: Number) -> str:
    return value.text if isinstance(value, Expression) else repr(value)
