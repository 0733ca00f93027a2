"""Checked access to what a checkpoint says about its model: every complaint names the file and the field."""

from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import InputError

_REQUIRED = object()


@dataclass(frozen=True)
class Fields:
    """The fields of a `config.json`, or the metadata of a GGUF file under one prefix.

    `get`, `integer`, `number`, `text` and `flag` read one field. Each raises InputError if the field is missing (and no
    default is given) or is not of that type. A field that is present but null counts as missing.
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
            raise InputError(f"{self.file}: field {self.prefix + name!r} must be {wanted}, not {value!r}")
        return value

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        """A whole number above zero: every integer that describes an architecture is a size or a count."""
        value = self._typed(name, default, (int,), "a whole number")
        if value is not default and value <= 0:
            raise InputError(f"{self.file}: field {self.prefix + name!r} must be above zero, not {value}")
        return value

    def token_id(self, name: str) -> int | None:
        """The number of a token, which may be zero; None if the field is missing."""
        value = self._typed(name, None, (int,), "the number of a token")
        if value is not None and value < 0:
            raise InputError(f"{self.file}: field {self.prefix + name!r} must be the number of a token, not {value}")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        value = self._typed(name, default, (int, float), "a number")
        return value if value is default else float(value)

    def positive(self, name: str, default: Any = _REQUIRED) -> float:
        """A number above zero."""
        value = self.number(name, default)
        if value is not default and value <= 0:
            raise InputError(f"{self.file}: field {self.prefix + name!r} must be above zero, not {value}")
        return value

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        return self._typed(name, default, (str,), "a string")

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        return self._typed(name, default, (bool,), "true or false")

    def group(self, name: str) -> "Fields | None":
        """The fields inside an object-valued field; None if it is missing."""
        value = self._typed(name, None, (dict,), "an object")
        return None if value is None else Fields(self.file, value)

    def require(self, name: str, value: Any) -> None:
        """Raise InputError if the field is there and says anything else."""
        if self.get(name, value) != value:
            raise InputError(f"{self.file}: {self.prefix + name}={self.get(name)!r}: only {value!r} is supported")

    def refuse(self, name: str, why: str) -> None:
        """Raise InputError if the field is set to anything but null, false or zero."""
        if self.get(name, None):
            raise InputError(f"{self.file}: {self.prefix + name}={self.get(name)!r}: {why}")
