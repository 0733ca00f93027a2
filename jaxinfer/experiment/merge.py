"""Reading YAML and merging dotted overrides such as `decoding.seed=3` or `rows.1.method.width=8` into it.

Nothing here knows the schema, except which keys have a shorthand: a bare value in place of a mapping.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host.files import path_of, read_text
from jaxinfer.host.yaml_text import MOST_BYTES, parse

Keys = tuple[str | int, ...]  # a dotted path, split

SHORTHAND = {"model": "source", "prompts": "source"}  # `model: smollm2-135m` means `model: {source: smollm2-135m}`
ROW_SHORTHAND = {"method": "name", "policy": "name"}


@dataclass(frozen=True)
class Origin:
    """The origin of values, so that an error can name the file or the override that is at fault."""

    file: str
    overrides: tuple[tuple[Keys, str], ...] = ()
    above: Keys = ()  # where the paths that it is asked about begin

    def below(self, path: Keys) -> "Origin":
        """Give the origin of what lies below a path, for those who know nothing of what is above."""
        return dataclasses.replace(self, above=(*self.above, *path))

    def of(self, path: Keys) -> str:
        """Give the override that set `path` (or something around or below it), else the file."""
        path = (*self.above, *path)
        for touched, text in reversed(self.overrides):
            shared = min(len(touched), len(path))
            if touched[:shared] == path[:shared]:
                return named(text)
        return self.file

    def error(self, path: Keys, problem: str) -> InputError:
        """Make the error `<origin>: <dotted path>: <problem>`, in one line."""
        return InputError(
            ": ".join(filter(None, (self.of(path), shown_text(dotted((*self.above, *path)), 120), problem)))
        )


def named(override: str) -> str:
    """Name an override in an error line."""
    return f"override {shown(override, 120)}"


def dotted(path: Keys) -> str:
    """Write a dotted path as the user does: `rows.1.method`."""
    return ".".join(map(str, path))


def show(value: Any, width: int = 60) -> str:
    """Show a bad value in an error line, as YAML spells it, cut to `width` characters."""
    words = {True: "true", False: "false"} if isinstance(value, bool) else {None: "null"} if value is None else {}
    text = words[value] if words else " ".join(shown(value, width + 1).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def read(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[dict, Origin]:
    """Read a YAML file with overrides applied in order, shorthands expanded, and the origin of every value.

    Raises InputError for a file that is missing, unreadable, not YAML, or not a mapping, and for a malformed override.
    """
    if not str(path).strip():
        raise InputError("the name of the config file is empty")
    if not Path(path_of(path)).exists():
        raise InputError(f"{shown_text(str(path))}: no such config file")
    text, file = read_text(path, most=MOST_BYTES), shown_text(str(path))
    data = parse(text, file)
    if data is None:
        raise InputError(f"{file}: is empty; a config is a mapping that starts with 'name: ...'")
    if not isinstance(data, dict):
        raise InputError(f"{file}: holds {kind(data)}; a config is a mapping that starts with 'name: ...'")
    origin = Origin(file)
    for override in overrides:
        data, keys = apply(expand(data), override)
        origin = dataclasses.replace(origin, overrides=(*origin.overrides, (keys, override)))
    return expand(data), origin


def apply(data: dict, override: str) -> tuple[dict, Keys]:
    """Apply one override `a.b=value` to `data` (a copy), and give the path that it set.

    The value is parsed as YAML. Mappings on the way are created where they are missing; list entries must exist.
    Raises InputError for anything else.
    """
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"{named(override)}: write it as path.to.key=value, such as decoding.seed=1")
    parsed = parse(value, named(override))
    if len(parts) == 1 and parts[0] in SHORTHAND and not isinstance(parsed, dict | None):
        parts.append(SHORTHAND[parts[0]])
    path = _resolve(data, parts, override)
    return _put(data, path, parsed), path


def expand(data: dict) -> dict:
    """Write out the shorthands in `data` as mappings."""
    data = _expand(data, SHORTHAND, str | list)
    if isinstance(extras := data.get("extras"), dict):
        data["extras"] = {k: {"source": v} if isinstance(v, str) else v for k, v in extras.items()}
    if isinstance(data.get("rows"), list):
        data["rows"] = [_expand(row, ROW_SHORTHAND, str) if isinstance(row, dict) else row for row in data["rows"]]
    return data


def first_difference(one: Any, other: Any, path: Keys = ()) -> tuple[str, Any, Any] | None:
    """Find the first place where two trees of plain data differ: (dotted path, value in one, in other), or None."""
    if isinstance(one, dict) and isinstance(other, dict):
        steps = [(key, one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other])]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        steps = [(index, a, b) for index, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else (dotted(path), one, other)
    return next((found for step, a, b in steps if (found := first_difference(a, b, (*path, step)))), None)


def kind(value: Any) -> str:
    """Say what a YAML value is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), "a single value")


def _expand(mapping: dict, shorthand: dict[str, str], bare) -> dict:
    return {
        key: {shorthand[key]: value} if key in shorthand and isinstance(value, bare) else value
        for key, value in mapping.items()
    }


def _resolve(data: Any, parts: list[str], override: str) -> Keys:
    """Turn list indices in `parts` into integers, checked against the lists that are there."""
    path: list[str | int] = []
    for part in parts:
        here = shown_text(dotted(tuple(path)), 120) or "the config"
        if isinstance(data, list):
            if not part.isdecimal() or len(part) > 9 or int(part) >= len(data):
                valid = f"0 to {len(data) - 1}" if data else "none, it is empty"
                raise InputError(f"{named(override)}: {here} is a list: {shown(part)} is not an index of it ({valid})")
            path.append(int(part))
            data = data[int(part)]
        elif data is None or isinstance(data, dict):
            path.append(part)
            data = (data or {}).get(part)
        else:
            raise InputError(f"{named(override)}: {here} is {show(data)}, which has no key {shown(part)}")
    return tuple(path)


def _put(data: Any, path: Keys, value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    if isinstance(data, list):
        return [_put(entry, tuple(rest), value) if index == first else entry for index, entry in enumerate(data)]
    return {**(data or {}), first: _put((data or {}).get(first), tuple(rest), value)}
