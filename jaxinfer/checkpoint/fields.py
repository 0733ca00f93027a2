"""Checked access to what a checkpoint says about its model: every complaint names the file and the field."""

import math
from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import InputError, shown

_REQUIRED = object()


@dataclass(frozen=True)
class Fields:
    """The fields of a `config.json`, or the metadata of a GGUF file under one prefix.

    `get` reads one field; `integer`, `count`, `number`, `positive`, `text`, `flag`, `listed` and `group` check its type
    too. Each raises InputError if the field is missing (and no default is given) or is not of that type. A field that
    is present but null counts as missing: `is_null` tells the two apart.
    """

    file: str
    values: dict[str, Any]
    prefix: str = ""

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self.values.get(self.prefix + name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise InputError(f"{self.file}: field {self.prefix + name!r} is missing, and this model family needs it")
        return default

    def _typed(self, name: str, default: Any, types: tuple[type, ...], wanted: str) -> Any:
        value = self.get(name, default)
        wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if value is not default and wrong:
            raise self._wrong(name, wanted, value)
        return value

    def _wrong(self, name: str, wanted: str, value: Any) -> InputError:
        return InputError(f"{self.file}: field {self.prefix + name!r} must be {wanted}, not {shown(value)}")

    def is_null(self, name: str) -> bool:
        """Tell whether the field is there and null: some families take that for another value than a missing one."""
        return self.prefix + name in self.values and self.values[self.prefix + name] is None

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        """Read a whole number above zero: every integer that describes an architecture is a size or a count."""
        value = self._typed(name, default, (int,), "a whole number")
        if value is not default and value <= 0:
            raise self._wrong(name, "above zero", value)
        return value

    def count(self, name: str, default: Any = _REQUIRED) -> int:
        """Read a whole number that may be zero."""
        value = self._typed(name, default, (int,), "a whole number")
        if value is not default and value < 0:
            raise self._wrong(name, "zero or above", value)
        return value

    def token_id(self, name: str) -> int | None:
        """Read the number of a token, which may be zero; None if the field is missing."""
        value = self._typed(name, None, (int,), "the number of a token")
        if value is not None and value < 0:
            raise self._wrong(name, "the number of a token", value)
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """Read a finite number."""
        value = self._typed(name, default, (int, float), "a number")
        if value is default:
            return value
        if not is_finite(value):
            raise self._wrong(name, "a finite number", value)
        return float(value)

    def positive(self, name: str, default: Any = _REQUIRED) -> float:
        """Read a finite number above zero."""
        value = self.number(name, default)
        if value is not default and value <= 0:
            raise self._wrong(name, "above zero", value)
        return value

    def listed(self, name: str, length: int | None, known: Any = None, default: Any = _REQUIRED) -> list:
        """Read a list, of `length` values if that is given, each of `known` if that is."""
        value = self._typed(name, default, (list,), "a list")
        if value is default:
            return value
        if (length is not None and len(value) != length) or not all(known is None or _among(x, known) for x in value):
            each = f" of {', '.join(map(str, known))}" if known else ""
            raise self._wrong(name, f"a list of {length}{each}" if length is not None else f"a list{each}", value)
        return value

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        return self._typed(name, default, (str,), "a string")

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        return self._typed(name, default, (bool,), "true or false")

    def group(self, name: str) -> "Fields | None":
        """Return the fields inside an object-valued field; None if it is missing."""
        value = self._typed(name, None, (dict,), "an object")
        return None if value is None else Fields(self.file, value)

    def require(self, name: str, value: Any) -> None:
        """Raise InputError if the field is there and says anything else."""
        if self.get(name, value) != value:
            raise InputError(f"{self.file}: {self.prefix + name}={shown(self.get(name))}: only {value!r} is supported")

    def refuse(self, name: str, why: str) -> None:
        """Raise InputError if the field is set to anything but null, false or zero."""
        if self.get(name, None):
            raise InputError(f"{self.file}: {self.prefix + name}={shown(self.get(name))}: {why}")


def is_finite(value: Any) -> bool:
    """Tell whether a number is one that a float holds."""
    try:
        return math.isfinite(float(value))
    except (OverflowError, TypeError, ValueError):  # an integer of hundreds of digits; no number
        return False


def _among(value: Any, known: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, float) and value in known
