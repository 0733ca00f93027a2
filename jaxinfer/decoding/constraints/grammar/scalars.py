"""The keywords of numbers and strings, and those that list values: see `keywords`."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from jaxinfer.decoding.constraints.grammar.formats import FORMATS
from jaxinfer.decoding.constraints.grammar.keywords import (
    ALL,
    KINDS,
    Alt,
    Atom,
    Reader,
    Rule,
    conditions,
    meet,
    negated,
    on,
    union,
)
from jaxinfer.decoding.constraints.grammar.numbers import digits_of
from jaxinfer.decoding.constraints.grammar.references import Part
from jaxinfer.errors import nearest, shown

_TYPES: dict[str, tuple[str, tuple[Atom, ...]]] = {
    "string": ("string", ()),
    "integer": ("number", (("int", True),)),
    "number": ("number", ()),
    "null": ("null", ()),
    "array": ("array", ()),
    "object": ("object", ()),
}


MOST_VALUES = 10_000  # of an enum


def exactly(part: Part, value: Any) -> Alt:
    """Allow nothing but one value of JSON."""
    if isinstance(value, bool) or value is None:
        return Alt({True: "true", False: "false", None: "null"}[value])
    if isinstance(value, str):
        return Alt("string", (("among", (value,), True),))
    if isinstance(value, (int, float)):
        return Alt("number", (("among", (number(part, value),)),))
    if isinstance(value, list):
        places = tuple(("at", i, ((_constant(part, x), True),)) for i, x in enumerate(value))
        return Alt("array", (("min", len(value)), ("max", len(value)), *places))
    never = (part.root.part(False, "", part.path), True)
    atoms: list[Atom] = []
    for name, x in value.items():
        atoms += [("need", name), ("property", name, ((_constant(part, x), True),))]
    return Alt("object", (*atoms, ("rest", tuple(value), (), (never,))))


def _constant(part: Part, value: Any) -> Part:
    made = part.root.constants.setdefault(repr(value), {"const": value})
    return part.root.part(made, "", part.path)


def number(part: Part, value: Any) -> Fraction:
    """Read a number of a schema, as it is written in decimal."""
    if isinstance(value, float) and not math.isfinite(value):
        raise part.error(f"{value} is no number of JSON (its text is too large for a float)")
    return Fraction(value) if isinstance(value, int) else Fraction(repr(value))


def _type(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    types = value if isinstance(value, list) else [value]
    if not types or not all(isinstance(one, str) and (one in _TYPES or one == "boolean") for one in types):
        known = sorted([*_TYPES, "boolean"])
        hint = nearest(types[0], known) if types and isinstance(types[0], str) else ""
        raise part.error(f"type {shown(value)} must be one of {', '.join(known)}, or a list of these{hint}")
    found = [Alt(*_TYPES[one]) for one in types if one != "boolean"]
    if "boolean" in types:
        found += [Alt("true"), Alt("false")]
    if "number" in types:
        found = [alt for alt in found if alt != Alt("number", (("int", True),))]
    if yes:
        return union(found)
    kinds = {alt.kind for alt in found}
    fractions = [Alt("number", (("int", False),))] if "integer" in types and "number" not in types else []
    return [Alt(kind) for kind in KINDS if kind not in kinds] + fractions


def _enum(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    if not isinstance(value, list) or not value:
        raise part.error("enum is empty" if value == [] else f"enum must be a list of values, got {shown(value)}")
    if len(value) > MOST_VALUES:
        raise part.error(f"enum has {len(value):,} values, and at most {MOST_VALUES:,} can be kept to")
    alts = [exactly(part, one) for one in value]
    listed = [alt for alt in alts if alt.kind in ("string", "number")]
    alts = [alt for alt in alts if alt.kind not in ("string", "number")]
    for kind in ("string", "number"):
        values = tuple(dict.fromkeys(x for alt in listed if alt.kind == kind for x in alt.atoms[0][1]))
        if values:
            alts.append(Alt(kind, (("among", values, True) if kind == "string" else ("among", values),)))
    if yes:
        return union(alts)
    found = ALL
    for alt in alts:
        found = meet(part, found, on(alt.kind, *(way for atom in alt.atoms for way in negated(alt.kind, atom))))
    return found


def _const(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    return _enum(reader, part, [value], yes)


def _bound(above: bool, strict: bool) -> Rule:
    def rule(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
        if strict and isinstance(value, bool):  # draft 4: says how minimum is meant
            name = "minimum" if above else "maximum"
            if name not in part.value:
                raise part.error(f"{_name(above, True)} {shown(value)} needs {name} beside it")
            return conditions("number", [("bound", _number(part, part.value[name], name), above, True)] * value, yes)
        return conditions("number", [("bound", _number(part, value, _name(above, strict)), above, strict)], yes)

    return rule


def _name(above: bool, strict: bool) -> str:
    side = "minimum" if above else "maximum"
    return f"exclusive{side.title()}" if strict else side


def _number(part: Part, value: Any, keyword: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise part.error(f"{keyword} must be a number, got {shown(value)}")
    found = number(part, value)
    digits = digits_of(abs(found))
    if digits is None or len(digits[0]) + len(digits[1]) > 100:
        raise part.error(f"{keyword} {shown(value)} has more than the limit of 100 digits")
    return found


def _multiple(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    of = _number(part, value, "multipleOf")
    if of <= 0:
        raise part.error(f"multipleOf must be greater than 0, got {shown(value)}")
    return conditions("number", [("multiple", of, True)], yes)


def count(kind: str, keyword: str, atom: Callable[[int], Atom]) -> Rule:
    """Give the rule of a keyword that gives a count."""

    def rule(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
        return conditions(kind, [atom(whole(part, value, keyword))], yes)

    return rule


def whole(part: Part, value: Any, keyword: str) -> int:
    """Read a count that a schema gives. Raises InputError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise part.error(f"{keyword} must be a whole number from 0, got {shown(value)}")
    return value


def _text(kind: str, keyword: str) -> Rule:
    def rule(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
        if not isinstance(value, str):
            raise part.error(f"{keyword} must be text, got {shown(value)}")
        if keyword == "format" and value not in FORMATS:
            raise part.error(
                f"format {shown(value)} is not supported; supported: {', '.join(FORMATS)}{nearest(value, FORMATS)}"
            )
        return conditions("string", [(kind, value, True)], yes)

    return rule


SCALAR_RULES: dict[str, Rule] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "minimum": _bound(True, False),
    "maximum": _bound(False, False),
    "exclusiveMinimum": _bound(True, True),
    "exclusiveMaximum": _bound(False, True),
    "multipleOf": _multiple,
    "minLength": count("string", "minLength", lambda n: ("length", n, None)),
    "maxLength": count("string", "maxLength", lambda n: ("length", 0, n)),
    "pattern": _text("match", "pattern"),
    "format": _text("format", "format"),
}
