"""Checks of the numbers in a description. They raise ValueError, which readers of files turn into a line."""

import math
import operator
import typing
from typing import Any

from jaxinfer.errors import shown

MOST = (1 << 31) - 2  # of a size or of positions, which are counted in int32


def whole(least: int, **values: int | None) -> None:
    """Raise ValueError unless each value is a whole number from `least` to MOST, or None."""
    for name, value in values.items():
        if value is None:
            continue
        try:
            number = operator.index(value)
        except TypeError:
            raise ValueError(f"{name}={shown(value)} must be a whole number") from None
        if not least <= number <= MOST:
            raise ValueError(f"{name}={shown(value)} must be between {least} and {MOST}")


def positive(**values: float | None) -> None:
    """Raise ValueError unless each value is a finite number above zero, or None."""
    for name, value in values.items():
        try:
            fits = value is None or (math.isfinite(value) and value > 0)
        except (OverflowError, TypeError):
            fits = False
        if not fits:
            raise ValueError(f"{name}={shown(value)} must be a finite number above zero")


def one_of(choices: Any, **values: Any) -> None:
    """Raise ValueError unless each value is one that a Literal lists."""
    known = typing.get_args(choices)
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name}={shown(value)} must be one of {', '.join(map(str, known))}")
