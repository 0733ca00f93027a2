"""The parts of a JSON schema and how they name each other: $ref, $id, $anchor (RFC 6901, RFC 3986)."""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from jaxinfer.errors import InputError, shown, shown_text

_ONE = {"not", "if", "then", "else", "contains", "propertyNames", "additionalProperties", "additionalItems", "items"}
_ONE |= {"unevaluatedItems", "unevaluatedProperties"}
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_OLD = re.compile(r"json-schema\.org/draft-0[3-7]/")


@dataclass(frozen=True, eq=False)
class Part:
    """A schema within a schema. Two are the same if they are the same object."""

    value: Any
    base: str  # the address that references in it start from
    path: tuple[str, ...]  # where it stands, for messages
    root: "Schema"

    def error(self, message: str) -> InputError:
        """Make an error of what is wrong here."""
        where = ".".join(shown_text(step, 40) for step in self.path)
        where = where if len(self.path) < 12 else shown_text(where, 120)
        return InputError(": ".join([self.root.what, where, message] if where else [self.root.what, message]))

    def inner(self, *steps: str | int) -> "Part":
        """Go to what stands under a few keys or places of it."""
        value = self.value
        for step in steps:
            value = value[step]
        return self.root.part(value, self.base, (*self.path, *map(str, steps)))

    def named(self) -> "Part":
        """Follow it to what it names, if it is a reference and nothing else; else give itself."""
        found = self
        for _ in range(20):
            value = found.value
            if not isinstance(value, dict) or list(value) != ["$ref"]:
                return found
            found = found.follow(value["$ref"], "$ref")
        return found

    def follow(self, ref: Any, keyword: str) -> "Part":
        """Find what a reference names. Raises InputError."""
        if not isinstance(ref, str):
            raise self.error(f"{keyword} {shown(ref)} must be text, such as '#/$defs/name'")
        address, fragment = urldefrag(urljoin(self.base, ref))
        found = self.root.resources.get(address)
        if found is None:
            raise self.error(f"{keyword} {shown(ref)} must name a part of this schema, such as '#/$defs/name'")
        pointer = unquote(fragment)
        if pointer and not pointer.startswith("/"):
            anchor = self.root.anchors.get((address, pointer))
            if anchor is None:
                raise self.error(f"{keyword} {shown(ref)} names nothing: there is no $anchor {shown(pointer)}")
            return anchor
        value, base = found.value, found.base
        for step in (x.replace("~1", "/").replace("~0", "~") for x in pointer.split("/")[1:]):
            if isinstance(value, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(value):
                value = value[int(step)]
            elif isinstance(value, dict) and step in value:
                value = value[step]
            else:
                raise self.error(f"{keyword} {shown(ref)} names nothing: there is no {shown(step)}")
            base = self.root.base_of(value, base)
        return self.root.part(value, base, (*self.path, keyword))


class Schema:
    """A whole schema, with what in it can be named. `what` says which, for messages."""

    def __init__(self, value: Any, what: str):
        self.what = what
        self.old = isinstance(value, dict) and bool(_OLD.search(str(value.get("$schema"))))  # drafts up to 7
        self.resources: dict[str, Part] = {}
        self.anchors: dict[tuple[str, str], Part] = {}
        self.constants: dict[str, Any] = {}  # schemas made of values
        self._parts: dict[tuple[int, str], Part] = {}
        self.top = self.part(value, self.base_of(value, ""), ())
        self.resources[""] = self.top
        self._collect(value, "", ())

    def part(self, value: Any, base: str, path: tuple[str, ...]) -> Part:
        """Make the one part of a value: the same object for the same value."""
        base = self.base_of(value, base)
        if isinstance(value, bool):
            return self._parts.setdefault((int(value), ""), Part(value, "", path, self))
        return self._parts.setdefault((id(value), base), Part(value, base, path, self))

    def base_of(self, value: Any, base: str) -> str:
        """Give the address that references within a value start from."""
        own = value.get("$id", value.get("id")) if isinstance(value, dict) and not self._hidden(value) else None
        return urldefrag(urljoin(base, own)).url if isinstance(own, str) else base

    def _hidden(self, value: dict[str, Any]) -> bool:
        """Tell whether $ref hides what stands beside it, as in older drafts."""
        return self.old and "$ref" in value

    def _collect(self, value: Any, base: str, path: tuple[str, ...]) -> None:
        if not isinstance(value, dict):
            return
        base, before = self.base_of(value, base), base
        here = self.part(value, base, path)
        if base != before or not path:
            self.resources.setdefault(base, here)
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(value.get(key), str):
                self.anchors.setdefault((base, value[key]), here)
        own = value.get("$id", value.get("id"))
        if self.old and isinstance(own, str) and urldefrag(own).fragment:
            self.anchors.setdefault((base, urldefrag(own).fragment), here)
        for key in value:
            inner = value[key]
            if key in _ONE and isinstance(inner, dict):
                self._collect(inner, base, (*path, key))
            if key in _LISTS and isinstance(inner, list):
                for i, one in enumerate(inner):
                    self._collect(one, base, (*path, key, str(i)))
            if key in _MAPS and isinstance(inner, dict):
                for name, one in inner.items():
                    self._collect(one, base, (*path, key, name))
