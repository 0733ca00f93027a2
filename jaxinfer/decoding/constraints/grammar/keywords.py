"""Reads what the keywords of a JSON schema say of a value, as alternatives of simple conditions.

A schema becomes a list of `Alt`, one of which has to hold: the kind of a value and conditions on it, the atoms. The
atoms of an object or array name the parts of the schema that hold for what is in it, which are looked into only when
their turn comes. `not` is carried inwards to the atoms: what is never negated may be narrowed and stays right.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from jaxinfer.decoding.constraints.grammar.references import Part
from jaxinfer.errors import nearest, shown

KINDS = ("object", "array", "string", "number", "true", "false", "null")
MOST_WAYS = 300  # alternatives of one value
Conj = tuple[tuple[Part, bool], ...]  # parts that hold, or with False do not
Atom = tuple[Any, ...]
Rule = Callable[..., "list[Alt] | None"]  # of a reader, a part, the keyword's value, and whether it holds

NOTES = {"$schema", "$id", "id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"}
NOTES |= {
    "deprecated",
    "readOnly",
    "writeOnly",
    "$anchor",
    "$dynamicAnchor",
    "$vocabulary",
    "contentEncoding",
    "contentMediaType",
}
NOTES |= {"contentSchema", "example"}
_ENCODED = {"contentEncoding", "contentMediaType"}  # are to be kept to in drafts up to 7
_BESIDE = {
    "unevaluatedProperties",
    "unevaluatedItems",
    "then",
    "else",
    "minContains",
    "maxContains",
    "additionalItems",
}  # are read with another
_REFUSED = {"$dynamicRef", "$recursiveRef", "nullable", "discriminator"}


@dataclass(frozen=True)
class Alt:
    """A value of a kind, for which some atoms hold."""

    kind: str
    atoms: tuple[Atom, ...] = ()


def union(*several: Iterable[Alt]) -> list[Alt]:
    """Let any of the ways hold."""
    return list(dict.fromkeys(alt for some in several for alt in some))


def meet(part: Part, some: list[Alt], others: list[Alt]) -> list[Alt]:
    """Let one way of the first and one of the second hold. Raises InputError if there are too many ways."""
    found: dict[Alt, None] = {}
    for one in some:
        for other in others:
            if one.kind == other.kind:
                found[Alt(one.kind, tuple(dict.fromkeys((*one.atoms, *other.atoms))))] = None
        if len(found) > MOST_WAYS:
            raise part.error(f"has more than the limit of {MOST_WAYS} alternatives; combine fewer of them")
    free = {alt.kind for alt in found if not alt.atoms}
    return [alt for alt in found if alt.kind not in free or not alt.atoms]


ALL = [Alt(kind) for kind in KINDS]


def on(kind: str, *ways: tuple[Atom, ...]) -> list[Alt]:
    """Allow a value of another kind, or one of this kind for which one of the ways holds."""
    return [Alt(x) for x in KINDS if x != kind] + [Alt(kind, way) for way in ways]


def negated(kind: str, atom: Atom) -> list[tuple[Atom, ...]]:
    """Give the ways in which a condition fails. None if that cannot be said: the result is narrower, and right."""
    name, *rest = atom
    if name in ("match", "format", "int", "multiple") or (name == "among" and kind == "string"):
        return [((*atom[:-1], not atom[-1]),)]
    if name == "length":
        least, most = rest
        below: list[tuple[Atom, ...]] = [(("length", 0, least - 1),)] if least else []
        return below + ([(("length", most + 1, None),)] if most is not None else [])
    if name == "bound":
        value, above, strict = rest
        return [(("bound", value, not above, not strict),)]
    if name == "among":  # of numbers: what is between them
        cuts = [None, *sorted(rest[0]), None]
        return [_between(low, high) for low, high in itertools.pairwise(cuts)]
    if name == "at":
        return [(("min", rest[0] + 1), ("place", rest[0], ((part, not yes),))) for part, yes in rest[1]]
    if name == "from":
        return [(("has", rest[0], ((part, not yes),), 1, None),) for part, yes in rest[1]]
    if name == "min":
        return [(("max", rest[0] - 1),)] if rest[0] else []
    if name == "max":
        return [(("min", rest[0] + 1),)]
    if name == "has":
        begin, conj, least, most = rest
        if least == 1 and most is None:
            return [(("from", begin, ((part, not yes),)),) for part, yes in conj]
        few: list[tuple[Atom, ...]] = [(("has", begin, conj, 0, least - 1),)] if least else []
        return few + ([(("has", begin, conj, most + 1, None),)] if most is not None else [])
    if name == "property":
        return [(("need", rest[0]), ("value", rest[0], ((part, not yes),))) for part, yes in rest[1]]
    if name == "need":
        return [(("absent", rest[0]),)]
    if name == "absent":
        return [(("need", rest[0]),)]
    return []  # unique, like, rest, names


def _between(low: Fraction | None, high: Fraction | None) -> tuple[Atom, ...]:
    ends = ((low, True), (high, False))
    return tuple(("bound", value, above, True) for value, above in ends if value is not None)


class Reader:
    """The alternatives of the parts of one schema."""

    def __init__(self, hollow: Callable[[Alt], bool], rules: dict[str, Rule]):
        self.hollow, self.rules = hollow, rules  # whether no value is such; what each keyword says
        self.known: dict[tuple[Part, bool], list[Alt]] = {}
        self.open: list[Part] = []

    def of(self, conj: Conj) -> list[Alt]:
        """Give the alternatives of a value for which several parts hold."""
        found = ALL
        for part, yes in conj:
            found = meet(part, found, self.ways(part, yes))
        return found

    def ways(self, part: Part, yes: bool = True) -> list[Alt]:
        """Give the alternatives of a value for which a part holds, or does not. Raises InputError."""
        if isinstance(part.value, bool):
            return ALL if part.value == yes else []
        if (part, yes) not in self.known:
            if part in self.open:
                raise part.error("leads back to itself before any value is read")
            self.open.append(part)
            try:
                self.known[part, yes] = self._read(part, yes)
            finally:
                self.open.pop()
        return self.known[part, yes]

    def _read(self, part: Part, yes: bool) -> list[Alt]:
        schema = part.value
        if not isinstance(schema, dict):
            raise part.error(f"expected a schema in braces, got {shown(schema)}")
        found: list[Alt] = ALL if yes else []
        unsaid = None
        keys = ["$ref"] if "$ref" in schema and part.root.old else list(schema)
        for key in keys:
            if key in _BESIDE or key.startswith("x-") or (key in NOTES and not (key in _ENCODED and part.root.old)):
                continue
            rule = self.rules.get(key)
            if rule is None:
                hint = "" if key in _REFUSED else nearest(key, {*self.rules, *NOTES})
                raise part.error(f"keyword {shown(key)} cannot be kept to{hint}")
            said = rule(self, part, schema[key], yes)
            if said is None:
                unsaid = key
            else:
                found = meet(part, found, said) if yes else union(found, said)
        for key in ("unevaluatedProperties", "unevaluatedItems"):
            if key in schema and "$ref" not in keys[:1] * part.root.old:
                if yes:
                    found = unevaluated(part, key, found)
                else:
                    unsaid = key
        if unsaid is not None and not found:
            raise part.error(f"keyword {unsaid!r} cannot be kept to where it must not hold (under not, oneOf, if)")
        if yes:
            return found
        if len(found) > MOST_WAYS:
            raise part.error(f"has more than the limit of {MOST_WAYS} alternatives; combine fewer of them")
        return found

    def disjoint(self, one: Part, other: Part) -> bool:
        """Tell whether certainly no value is of both."""
        return all(self.hollow(alt) for alt in meet(one, self.ways(one), self.ways(other)))


def unevaluated(part: Part, keyword: str, alts: list[Alt]) -> list[Alt]:
    """Give the alternatives of a schema with what holds for properties or items that none of its keywords names."""
    conj = ((part.inner(keyword), True),)
    found = []
    for alt in alts:
        atoms = alt.atoms
        if keyword == "unevaluatedProperties" and alt.kind == "object" and not any(x[0] == "rest" for x in atoms):
            names, likes = (tuple(dict.fromkeys(x[1] for x in atoms if x[0] == kind)) for kind in ("property", "like"))
            atoms = (*atoms, ("rest", names, likes, conj))
        if keyword == "unevaluatedItems" and alt.kind == "array" and not any(x[0] == "from" for x in atoms):
            if any(x[0] == "has" for x in atoms):
                raise part.error("keyword 'unevaluatedItems' cannot be kept to beside 'contains'")
            atoms = (*atoms, ("from", max((x[1] + 1 for x in atoms if x[0] == "at"), default=0), conj))
        found.append(Alt(alt.kind, atoms))
    return union(found)


def conditions(kind: str, atoms: list[Atom], yes: bool) -> list[Alt] | None:
    """Let all atoms hold of a value of this kind, or with False let one of them fail."""
    if yes:
        return on(kind, tuple(atoms))
    ways = [way for atom in atoms for way in negated(kind, atom)]
    return [Alt(kind, way) for way in ways] if ways or not atoms else None
