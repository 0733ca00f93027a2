"""Sums up the atoms of an array or an object, for texts that are written one part after another: see `texts`."""

from jaxinfer.decoding.constraints.grammar.keywords import Atom, Conj
from jaxinfer.decoding.constraints.grammar.machine import Machine
from jaxinfer.decoding.constraints.grammar.pattern import machine_of

_NAMED = ("property", "value", "need", "absent")  # atoms that name a property


class ArrayShape:
    """The atoms of an array, sorted."""

    def __init__(self, atoms: tuple[Atom, ...]):
        self.least = max((atom[1] for atom in atoms if atom[0] == "min"), default=0)
        self.most = min((atom[1] for atom in atoms if atom[0] == "max"), default=None)
        self.unique = ("unique",) in atoms
        self.places = [(atom[1], atom[2]) for atom in atoms if atom[0] in ("at", "place")]
        self.tails = [(atom[1], atom[2]) for atom in atoms if atom[0] == "from"]
        self.has = [atom[1:] for atom in atoms if atom[0] == "has" and (atom[3] or atom[4] is not None)]
        steady = max([1, self.least, *(i + 1 for i, _ in self.places), *(i for i, _ in self.tails)])
        self.loop = max([steady, *(one[0] for one in self.has)])  # from here on all items are alike
        if self.most is not None:
            self.loop = max(self.loop, self.most)

    def item(self, i: int) -> Conj:
        """Give what holds for the item at a place."""
        conj = [one for place, some in self.places if place == i for one in some]
        return (*conj, *(one for place, some in self.tails if place <= i for one in some))

    def items(self, i: int, counted: int) -> list[tuple[Conj, int]]:
        """Give what may hold for it, and how many items are counted after it."""
        conj = self.item(i)
        if not self.has or i < self.has[0][0]:
            return [(conj, counted)]
        _, some, least, most = self.has[0]
        counts = (*conj, *some)
        if most is None:
            return [(conj, counted), *([(counts, counted + 1)] if counted < least else [])]
        less = [((*conj, (part, not yes)), counted) for part, yes in some]
        return [*less, *([(counts, counted + 1)] if counted < most else [])]

    def enough(self, counted: int) -> bool:
        return not self.has or counted >= self.has[0][2]


class ObjectShape:
    """The atoms of an object, sorted."""

    def __init__(self, atoms: tuple[Atom, ...], allowed: Machine | None):
        self.allowed = allowed
        self.known = list(dict.fromkeys(atom[1] for atom in atoms if atom[0] in _NAMED))
        self.needs = {atom[1] for atom in atoms if atom[0] == "need"}
        self.absent = {atom[1] for atom in atoms if atom[0] == "absent"}
        if allowed is not None:
            self.absent |= {name for name in self.known if not allowed.matches(name)}
        self.properties = [(atom[1], atom[2]) for atom in atoms if atom[0] in ("property", "value")]
        self.likes = list(dict.fromkeys(atom[1] for atom in atoms if atom[0] == "like"))
        self.like = [(atom[1], atom[2]) for atom in atoms if atom[0] == "like"]
        self.rests = [atom[1:] for atom in atoms if atom[0] == "rest"]
        self.least = max((atom[1] for atom in atoms if atom[0] == "min"), default=0)
        self.most = min((atom[1] for atom in atoms if atom[0] == "max"), default=None)
        named = any(atom[0] in ("property", "like") for atom in atoms)
        self.closed = named and not self.rests
        self.possible = not self.needs & self.absent and (
            self.most is None or max(self.least, len(self.needs)) <= self.most
        )

    def conj_of(self, name: str | None, matched: set[str] | None = None) -> Conj:
        """Give what holds for the value of a name; for names that are not listed, of those that match some patterns."""
        if matched is None:
            patterns = {*self.likes, *(x for _, some, _ in self.rests for x in some)}
            matched = {x for x in patterns if machine_of(x, "ecma", search=True).matches(name or "")}
        found = [one for known, conj in self.properties if known == name for one in conj]
        found += [one for pattern, conj in self.like if pattern in matched for one in conj]
        for names, patterns, conj in self.rests:
            if name not in names and not matched & set(patterns):
                found += conj
        return tuple(found)
