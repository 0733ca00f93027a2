"""From a JSON schema to the automaton of the texts that are written under it.

Whole: every text is JSON and an instance of the schema. At most as wide: properties come in the order of the schema,
none that it does not name unless it says so, with at most one space where JSON allows any; what nests in itself does so
a few times, for JSON of any depth is no regular language.
"""

import itertools
from typing import Any

from jaxinfer.decoding.constraints.grammar import numbers, strings
from jaxinfer.decoding.constraints.grammar.chars import of
from jaxinfer.decoding.constraints.grammar.combine import anything, both, minus
from jaxinfer.decoding.constraints.grammar.containers import CONTAINER_RULES
from jaxinfer.decoding.constraints.grammar.keywords import Alt, Atom, Conj, Reader
from jaxinfer.decoding.constraints.grammar.logic import LOGIC_RULES
from jaxinfer.decoding.constraints.grammar.machine import MOST_PARTS, Machine, TooLarge
from jaxinfer.decoding.constraints.grammar.parts import Parts, words
from jaxinfer.decoding.constraints.grammar.references import Part, Schema
from jaxinfer.decoding.constraints.grammar.scalars import SCALAR_RULES
from jaxinfer.decoding.constraints.grammar.shapes import ArrayShape, ObjectShape
from jaxinfer.errors import InputError, shown

DEPTHS = (5, 3, 2)  # how often a part of a schema nests in itself: as often as the limits allow
FREE_DEPTH = 3  # the same for JSON of which nothing is said
MOST_DEEP = 40  # schemas within schemas
MOST_PATTERNS = 4  # of the names of properties that may come together
_SPACE = of(" ")


def machine_of_schema(schema: Any, what: str) -> Machine:
    """Build the machine of the texts under a schema. Raises InputError, led by `what`, for what cannot be kept."""
    if not isinstance(schema, (dict, bool)):
        raise InputError(f"{what}: expected a schema in braces, got {shown(schema)}")
    for depth in DEPTHS:
        writer = Writer(Schema(schema, what), depth)
        try:
            return writer.made()
        except TooLarge as error:
            if not writer.cut or depth == DEPTHS[-1]:
                raise InputError(f"{what}: {error}") from None
        except RecursionError:
            raise InputError(f"{what}: is nested too deep") from None
    raise AssertionError


class Writer:
    """Writes the parts of one schema."""

    def __init__(self, schema: Schema, depth: int):
        self.schema, self.depth = schema, depth
        self.parts = Parts()
        self.reader = Reader(self.hollow, {**SCALAR_RULES, **LOGIC_RULES, **CONTAINER_RULES})
        self.path: list[Conj] = []
        self.looking = 0
        self.cut = False  # whether something would have nested deeper
        self.ways: dict[Conj, list[Alt]] = {}

    def made(self) -> Machine:
        """Make the machine of the whole schema. Raises InputError."""
        start = self.parts.part()
        end = self.value(((self.schema.top, True),), start)
        found = None if end is None else self.parts.made(start, end)
        if not found:
            raise self.schema.top.error("no JSON that can be written is an instance of it")
        return found

    def of(self, conj: Conj) -> list[Alt]:
        if conj not in self.ways:
            self.ways[conj] = self.reader.of(conj)
        return self.ways[conj]

    def value(self, conj: Conj, start: int) -> int | None:
        """Add a value for which parts of the schema hold; None if there is none, or it would nest too deep."""
        conj = tuple(dict.fromkeys((part.named(), yes) for part, yes in conj))
        conj = tuple((part, yes) for part, yes in conj if not (yes and part.value in (True, {})))
        if self.path.count(conj) >= (self.depth if conj else min(FREE_DEPTH, self.depth)):
            self.cut = True
            return None
        if len(self.path) >= MOST_DEEP:
            raise self.part_of(conj).error(f"is nested more than {MOST_DEEP} deep")
        self.path.append(conj)
        ends = [end for alt in self.of(conj) if (end := self.alternative(alt, start)) is not None]
        self.path.pop()
        if not ends:
            return None
        end = self.parts.part()
        for one in ends:
            self.parts.skip(one, end)
        return end

    def part_of(self, conj: Conj) -> Part:
        """Name the part of the schema that a message is about."""
        return conj[0][0] if conj else self.schema.top

    @property
    def here(self) -> Part:
        """Name the part, while something is being written."""
        return next((conj[0][0] for conj in reversed(self.path) if conj), self.schema.top)

    def alternative(self, alt: Alt, start: int) -> int | None:
        if alt.kind in ("true", "false", "null"):
            return self.parts.text(start, alt.kind)
        if alt.kind in ("number", "string"):
            found = self.number(alt.atoms) if alt.kind == "number" else self.string(alt.atoms, written=True)
            return self.parts.machine(start, found) if found else None
        return self.array(alt.atoms, start) if alt.kind == "array" else self.object(alt.atoms, start)

    def number(self, atoms: tuple[Atom, ...]) -> Machine:
        try:
            return numbers.machine_of_number(atoms)
        except InputError as error:
            raise self.here.error(str(error)) from None

    def string(self, atoms: tuple[Atom, ...], written: bool = False) -> Machine:
        try:
            return strings.written(atoms) if written else strings.contents(atoms)
        except InputError as error:
            patterns = [shown(atom[1]) for atom in atoms if atom[0] == "match"]
            raise self.here.error(f"pattern {patterns[0]} {error}" if patterns else str(error)) from None

    def space(self, start: int) -> int:
        """Add a space, or none."""
        end = self.parts.chars(start, _SPACE)
        self.parts.skip(start, end)
        return end

    def array(self, atoms: tuple[Atom, ...], start: int) -> int | None:
        """Add the texts of an array: states are how many items there are, and how many of them `contains` counts."""
        shape = ArrayShape(atoms)
        if len(shape.has) > 1:
            raise self.here.error("keyword 'contains' cannot be kept to twice in one array")
        if shape.unique and (shape.most is None or shape.most > 1):
            raise self.here.error("keyword 'uniqueItems' cannot be kept to for more than one item")
        if shape.most is not None and shape.most < shape.least:
            return None
        if shape.loop * 4 > MOST_PARTS:
            raise TooLarge(f"is larger than the limit of {MOST_PARTS:,} parts; allow fewer items")
        parts, close = self.parts, self.parts.part()
        first = (0, 0)
        nodes = {first: parts.text(start, "[")}
        todo, closes = [first], False
        while todo:
            count, counted = todo.pop()
            node = nodes[count, counted]
            if count >= shape.least and shape.enough(counted):
                parts.skip(node if not count else self.space(node), close)
                closes = True
            if shape.most is not None and count >= shape.most:
                continue
            entry = self.space(parts.text(node, ",") if count else node)
            for conj, after in shape.items(count, counted):
                end = self.value(conj, entry)
                if end is None:
                    continue
                key = (min(count + 1, shape.loop), after)
                if key not in nodes:
                    nodes[key] = parts.part()
                    todo.append(key)
                parts.skip(end, nodes[key])
        return parts.text(close, "]") if closes else None

    def object(self, atoms: tuple[Atom, ...], start: int) -> int | None:
        """Add the texts of an object: states are the place in the order of names, and how many there are so far."""
        shape = ObjectShape(atoms, self.names_of(atoms))
        parts, close = self.parts, self.parts.part()
        if not shape.possible:
            return None
        extras = self.extras(shape)
        if shape.least > len(shape.known) + bool(extras):
            if extras:
                raise self.here.error(
                    f"minProperties {shape.least} cannot be kept to: of names that are not listed two may be the same"
                )
            return None
        first = (0, 0, 0, 0, False)  # place, names, whether extras, all of them, whether any is written
        nodes = {first: parts.text(start, "{")}
        entries: dict[tuple, int] = {}  # before the next name: the same part whether it is the first one or not
        pairs: dict[tuple, int | None] = {}
        todo, closes = [first], False

        def pair(state: tuple, name: Machine, conj: Conj, after: tuple, which: int = 0) -> None:
            key = state[:-1]
            if key not in entries:
                entries[key] = parts.part()
            parts.skip(self.space(parts.text(nodes[state], ",") if state[-1] else nodes[state]), entries[key])
            if (which, *key) not in pairs:
                pairs[which, *key] = self.pair(entries[key], name, conj)
                go(pairs[which, *key], after)

        def go(end: int | None, state: tuple) -> None:
            if end is None:
                return
            if state not in nodes:
                nodes[state] = parts.part()
                todo.append(state)
            parts.skip(end, nodes[state])

        while todo:
            state = todo.pop()
            place, count, extra, total, some = state
            node = nodes[state]
            room = shape.most is None or total < shape.most
            more = total + 1 if shape.most is not None else 0
            if place < len(shape.known):
                name = shape.known[place]
                after = (place + 1, min(count + 1, shape.least), extra, more, True)
                if name not in shape.needs:
                    go(node, (place + 1, *state[1:]))
                if room and name not in shape.absent:
                    pair(state, words([strings.quoted(name)]), shape.conj_of(name), after)
                continue
            if count >= shape.least:
                parts.skip(self.space(node) if some else node, close)
                closes = True
            for i, (machine, conj) in enumerate(extras if room else ()):
                pair(state, machine, conj, (place, min(count + 1 - extra, shape.least), 1, more, True), i + 1)
        return parts.text(close, "}") if closes else None

    def pair(self, start: int, name: Machine, conj: Conj) -> int | None:
        colon = self.space(self.parts.text(self.parts.machine(start, name), ":"))
        return self.value(conj, colon)

    def names_of(self, atoms: tuple[Atom, ...]) -> Machine | None:
        """Give the names that `propertyNames` allows; None: all."""
        found = None
        for atom in atoms:
            if atom[0] == "names":
                some = [self.string(alt.atoms) for alt in self.of(atom[1]) if alt.kind == "string"]
                every = some[0] if some else words([])
                for other in some[1:]:
                    every = _either(every, other)
                found = every if found is None else both(found, every)
        return found

    def extras(self, shape: ObjectShape) -> list[tuple[Machine, Conj]]:
        """Give the names that are not listed, by which patterns they match, and what holds for their values."""
        if shape.closed and not shape.likes:
            return []
        patterns = list(dict.fromkeys([*shape.likes, *(x for _, some, _ in shape.rests for x in some)]))
        if len(patterns) > MOST_PATTERNS:
            raise self.here.error(f"patternProperties: at most {MOST_PATTERNS} patterns can be kept to in one object")
        machines = {x: self.string((("match", x, True),)) for x in patterns}
        base = anything() if shape.allowed is None else shape.allowed
        if shape.known:
            base = minus(base, words(shape.known))
        found = []
        for signs in itertools.product((True, False), repeat=len(patterns)):
            some = {x for x, sign in zip(patterns, signs, strict=True) if sign}
            if shape.closed and not some & set(shape.likes):
                continue
            names = base
            for x in patterns:
                names = (both if x in some else minus)(names, machines[x])
            conj = shape.conj_of(None, some)
            if names and not self.hollows(conj):
                found.append((strings.between_quotes(names), conj))
        return found

    def hollows(self, conj: Conj) -> bool:
        """Tell whether certainly no value is such."""
        return all(self.hollow(alt) for alt in self.of(conj))

    def hollow(self, alt: Alt) -> bool:
        """Tell whether certainly no value is such: looked for a few levels deep."""
        if self.looking > 4 or not alt.atoms:
            return False
        self.looking += 1
        try:
            if alt.kind == "number":
                return not self.number(alt.atoms)
            if alt.kind == "string":
                return not self.string(alt.atoms)
            if alt.kind == "array":
                shape = ArrayShape(alt.atoms)
                if shape.most is not None and shape.most < shape.least:
                    return True
                return any(self.hollows(shape.item(i)) for i in range(min(shape.least, shape.loop, 30)))
            names = ObjectShape(alt.atoms, self.names_of(alt.atoms))
            return not names.possible or any(self.hollows(names.conj_of(name)) for name in names.needs)
        finally:
            self.looking -= 1


def _either(one: Machine, other: Machine) -> Machine:
    every = anything()
    return minus(every, minus(minus(every, one), other))
