"""Arithmetic on numbers, or on formulas that something else evaluates.

The analyzer's formulas are written once. With numbers for the setting they give numbers; with an `Expression` for a
part of it they give the formula as text, in JavaScript's notation, which a page evaluates as its controls move.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

Number: TypeAlias = Any
"""An int, a float, or an `Expression`: a checker cannot follow arithmetic on their union."""


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


def smallest(*values: Number) -> Number:
    """Give the smallest of the values."""
    return _apply("Math.min", min, *values)


def largest(*values: Number) -> Number:
    """Give the largest of the values."""
    return _apply("Math.max", max, *values)


def ceil(value: Number) -> Number:
    """Round up to a whole number."""
    return _apply("Math.ceil", math.ceil, value)


def floor(value: Number) -> Number:
    """Round down to a whole number."""
    return _apply("Math.floor", math.floor, value)


def where_at_most(value: Number, bound: Number, one: Number, other: Number) -> Number:
    """Give `one` where value <= bound, else `other`."""
    if any(isinstance(part, Expression) for part in (value, bound)):
        return Expression(f"({_text(value)}<={_text(bound)}?{_text(one)}:{_text(other)})")
    return one if value <= bound else other


def _apply(name: str, function: Callable[..., Number], *values: Number) -> Number:
    if any(isinstance(value, Expression) for value in values):
        return Expression(f"{name}({','.join(map(_text, values))})")
    return function(*values)


def _is(value: Number, number: int) -> bool:
    return not isinstance(value, Expression) and value == number


def _text(value: Number) -> str:
    return value.text if isinstance(value, Expression) else repr(value)
