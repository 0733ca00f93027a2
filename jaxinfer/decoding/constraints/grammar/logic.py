"""The keywords that combine schemas: see `keywords`."""

from typing import Any

from jaxinfer.decoding.constraints.grammar.keywords import ALL, Alt, Reader, Rule, meet, union
from jaxinfer.decoding.constraints.grammar.references import Part
from jaxinfer.errors import shown


def parts_of(part: Part, keyword: str) -> list[Part]:
    """Give the schemas in a list. Raises InputError."""
    value = part.value[keyword]
    if not isinstance(value, list) or not value:
        raise part.error(f"{keyword} must hold at least one schema, got {shown(value)}")
    return [part.inner(keyword, i) for i in range(len(value))]


def _all_of(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    return _every(reader, part, [(one, yes) for one in parts_of(part, "allOf")], yes)


def _any_of(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    return _every(reader, part, [(one, yes) for one in parts_of(part, "anyOf")], not yes)


def _every(reader: Reader, part: Part, conj: list[tuple[Part, bool]], every: bool) -> list[Alt]:
    found: list[Alt] = ALL if every else []
    for one, yes in conj:
        said = reader.ways(one, yes)
        found = meet(part, found, said) if every else union(found, said)
    return found


def _one_of(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    parts = parts_of(part, "oneOf")
    if not yes:  # not any of them; that several hold at once is left out
        return _every(reader, part, [(one, False) for one in parts], True)
    found: list[Alt] = []
    for one in parts:
        ways = reader.ways(one)
        for other in parts:
            if other is not one and not reader.disjoint(one, other):
                ways = [alt for alt in meet(part, ways, reader.ways(other, False)) if not reader.hollow(alt)]
        if parts.count(one) == 1:
            found = union(found, ways)
    if not found:
        raise part.error("no value is of exactly one schema of oneOf; use anyOf where several may hold")
    return found


def _not(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    found = reader.ways(part.inner("not"), not yes)
    # Names under two of these keywords hold, but do not count as having been looked at by a schema.
    names = {"property": "value", "at": "place"}
    return [Alt(alt.kind, tuple((names.get(x[0], x[0]), *x[1:]) for x in alt.atoms)) for alt in found]


def _if(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    found: list[Alt] = []
    for holds, keyword in ((True, "then"), (False, "else")):
        after = ALL if yes else []
        if keyword in part.value:
            after = reader.ways(part.inner(keyword), yes)
        if after:
            found = union(found, meet(part, reader.ways(part.inner("if"), holds), after))
    return found


def _ref(reader: Reader, part: Part, value: Any, yes: bool) -> list[Alt]:
    return reader.ways(part.follow(value, "$ref"), yes)


LOGIC_RULES: dict[str, Rule] = {
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
    "$ref": _ref,
}
