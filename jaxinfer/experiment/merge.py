"""Reading YAML and merging dotted overrides such as `decoding.seed=3` or `rows.1.method.width=8` into it.

Nothing here knows the schema, except which keys have a shorthand: a bare value in place of a mapping.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxinfer.errors import InputError

Keys = tuple[str | int, ...]  # a dotted path, split

SHORTHAND = {"model": "source", "prompts": "source"}  # `model: smollm2-135m` means `model: {source: smollm2-135m}`
ROW_SHORTHAND = {"method": "name", "policy": "name"}


@dataclass(frozen=True)
class Origin:
    """Where values came from, so that an error can name the file or the override that is at fault."""

    file: str
    overrides: tuple[tuple[Keys, str], ...] = ()

    def of(self, path: Keys) -> str:
        """The override that set `path` (or something around or below it), else the file."""
        for touched, text in reversed(self.overrides):
            shared = min(len(touched), len(path))
            if touched[:shared] == path[:shared]:
                return f"override {text!r}"
        return self.file

    def error(self, path: Keys, problem: str) -> InputError:
        """`<origin>: <dotted path>: <problem>`, in one line."""
        return InputError(": ".join(filter(None, (self.of(path), dotted(path), problem))))


def dotted(path: Keys) -> str:
    """A path as the user writes it: `rows.1.method`."""
    return ".".join(map(str, path))


def show(value: Any, width: int = 60) -> str:
    """A bad value for an error line, as YAML spells it, cut to `width` characters."""
    words = {True: "true", False: "false"} if isinstance(value, bool) else {None: "null"} if value is None else {}
    text = words[value] if words else " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def read(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[dict, Origin]:
    """A YAML file with overrides applied in order, shorthands expanded, and the origin of every value.

    Raises InputError for a file that is missing, unreadable, not YAML, or not a mapping, and for a malformed override.
    """
    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{file}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
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


def parse(text: str, where: str) -> Any:
    """One YAML document. Raises InputError with the line number of a syntax error or a duplicate key."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise InputError(f"{where}{line}: not valid YAML: {problem}") from None


def apply(data: dict, override: str) -> tuple[dict, Keys]:
    """`data` with one override `a.b=value` applied (a copy), and the path that it set.

    The value is parsed as YAML. Mappings on the way are created where they are missing; list entries must exist.
    Raises InputError for anything else.
    """
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"override {override!r}: write it as path.to.key=value, such as decoding.seed=1")
    parsed = parse(value, f"override {override!r}")
    if len(parts) == 1 and parts[0] in SHORTHAND and not isinstance(parsed, dict | None):
        parts.append(SHORTHAND[parts[0]])
    path = _resolve(data, parts, override)
    return _put(data, path, parsed), path


def expand(data: dict) -> dict:
    """`data` with the shorthands written out as mappings."""
    data = _expand(data, SHORTHAND, str | list)
    if isinstance(extras := data.get("extras"), dict):
        data["extras"] = {k: {"source": v} if isinstance(v, str) else v for k, v in extras.items()}
    if isinstance(data.get("rows"), list):
        data["rows"] = [_expand(row, ROW_SHORTHAND, str) if isinstance(row, dict) else row for row in data["rows"]]
    return data


def first_difference(one: Any, other: Any, path: Keys = ()) -> tuple[str, Any, Any] | None:
    """The first place where two trees of plain data differ: (dotted path, value in one, value in other), or None."""
    if isinstance(one, dict) and isinstance(other, dict):
        steps = [(key, one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other])]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        steps = [(index, a, b) for index, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else (dotted(path), one, other)
    return next((found for step, a, b in steps if (found := first_difference(a, b, (*path, step)))), None)


def kind(value: Any) -> str:
    """What a YAML value is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), "a single value")


def _expand(mapping: dict, shorthand: dict[str, str], bare) -> dict:
    return {
        key: {shorthand[key]: value} if key in shorthand and isinstance(value, bare) else value
        for key, value in mapping.items()
    }


def _resolve(data: Any, parts: list[str], override: str) -> Keys:
    """`parts` with list indices turned into integers, checked against the lists that are there."""
    path: list[str | int] = []
    for part in parts:
        here = dotted(tuple(path)) or "the config"
        if isinstance(data, list):
            if not part.isdecimal() or int(part) >= len(data):
                valid = f"0 to {len(data) - 1}" if data else "none, it is empty"
                raise InputError(f"override {override!r}: {here} is a list: {part!r} is not an index of it ({valid})")
            path.append(int(part))
            data = data[int(part)]
        elif data is None or isinstance(data, dict):
            path.append(part)
            data = (data or {}).get(part)
        else:
            raise InputError(f"override {override!r}: {here} is {show(data)}, which has no key {part!r}")
    return tuple(path)


def _put(data: Any, path: Keys, value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    if isinstance(data, list):
        return [_put(entry, tuple(rest), value) if index == first else entry for index, entry in enumerate(data)]
    return {**(data or {}), first: _put((data or {}).get(first), tuple(rest), value)}


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads `1e-3` as a number (YAML 1.2) and rejects a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
