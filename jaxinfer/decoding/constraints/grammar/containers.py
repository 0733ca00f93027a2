"""The keywords of arrays and objects: see `keywords`."""

from typing import Any

from jaxinfer.decoding.constraints.grammar.keywords import Alt, Atom, Reader, Rule, conditions, meet, on, union
from jaxinfer.decoding.constraints.grammar.logic import parts_of
from jaxinfer.decoding.constraints.grammar.references import Part
from jaxinfer.decoding.constraints.grammar.scalars import count, whole
from jaxinfer.errors import shown


def _items(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    if isinstance(value, list):  # up to 2019-09: the first few, one by one
        return _first_few(part, "items", yes)
    begin = len(part.value["prefixItems"]) if isinstance(part.value.get("prefixItems"), list) else 0
    return conditions("array", [("from", begin, ((part.inner("items"), True),))], yes)


def _first_few(part: Part, keyword: str, yes: bool) -> list[Alt] | None:
    count = len(part.value[keyword])
    atoms: list[Atom] = [("at", i, ((part.inner(keyword, i), True),)) for i in range(count)]
    if keyword == "items" and "additionalItems" in part.value:
        atoms.append(("from", count, ((part.inner("additionalItems"), True),)))
    return conditions("array", atoms, yes)


def _prefix_items(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    parts_of(part, "prefixItems")
    return _first_few(part, "prefixItems", yes)


def _contains(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    least = whole(part, part.value.get("minContains", 1), "minContains")
    most = part.value.get("maxContains")
    most = None if most is None else whole(part, most, "maxContains")
    return conditions("array", [("has", 0, ((part.inner("contains"), True),), least, most)], yes)


def _unique(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    if not isinstance(value, bool):
        raise part.error(f"uniqueItems must be true or false, got {shown(value)}")
    return conditions("array", [("unique",)] if value else [], yes)


def _mapping(part: Part, keyword: str) -> dict[str, Any]:
    value = part.value.get(keyword, {})
    if not isinstance(value, dict):
        raise part.error(f"{keyword} must be schemas by name, got {shown(value)}")
    return value


def _names(part: Part, value: Any, keyword: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise part.error(f"{keyword} must be a list of names, got {shown(value)}")
    return value


def _properties(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    names = _mapping(part, "properties")
    return conditions("object", [("property", x, ((part.inner("properties", x), True),)) for x in names], yes)


def _required(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    if isinstance(value, bool):
        raise part.error("required must be a list of names (true or false is that of draft 3)")
    return conditions("object", [("need", name) for name in _names(part, value, "required")], yes)


def _pattern_properties(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    patterns = _mapping(part, "patternProperties")
    return conditions("object", [("like", x, ((part.inner("patternProperties", x), True),)) for x in patterns], yes)


def _additional(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    names, patterns = _mapping(part, "properties"), _mapping(part, "patternProperties")
    inner = (part.inner("additionalProperties"), True)
    if not yes and value in (True, {}):
        return []
    return conditions("object", [("rest", tuple(names), tuple(patterns), (inner,))], yes)


def _property_names(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt] | None:
    return conditions("object", [("names", ((part.inner("propertyNames"), True),))], yes)


def _dependent(reader: Reader, part: Part, keyword: str, yes: bool) -> list[Alt]:
    found = on("object", ()) if yes else []
    for name, what in _mapping(part, keyword).items():
        if isinstance(what, list) and keyword != "dependentSchemas":
            names = _names(part, what, keyword)
            if yes:
                said = on("object", (("absent", name),), tuple(("need", x) for x in names))
            else:
                said = [Alt("object", (("need", name), ("absent", x))) for x in names]
        else:
            has, inner = [Alt("object", (("need", name),))], part.inner(keyword, name)
            said = meet(part, has, reader.ways(inner, yes))
            said = union(on("object", (("absent", name),)), said) if yes else said
        found = meet(part, found, said) if yes else union(found, said)
    return found


def _dependent_required(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    for name, names in _mapping(part, "dependentRequired").items():
        _names(part, names, f"dependentRequired.{name}")
    return _dependent(reader, part, "dependentRequired", yes)


CONTAINER_RULES: dict[str, Rule] = {
    "items": _items,
    "prefixItems": _prefix_items,
    "minItems": count("array", "minItems", lambda n: ("min", n)),
    "maxItems": count("array", "maxItems", lambda n: ("max", n)),
    "contains": _contains,
    "uniqueItems": _unique,
    "properties": _properties,
    "required": _required,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "propertyNames": _property_names,
    "minProperties": count("object", "minProperties", lambda n: ("min", n)),
    "maxProperties": count("object", "maxProperties", lambda n: ("max", n)),
    "dependentRequired": _dependent_required,
    "dependentSchemas": lambda reader, part, value, yes: _dependent(reader, part, "dependentSchemas", yes),
    "dependencies": lambda reader, part, value, yes: _dependent(reader, part, "dependencies", yes),
}
