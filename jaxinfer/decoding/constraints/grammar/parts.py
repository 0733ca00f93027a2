"""Automata built from parts, and made deterministic (Rabin & Scott 1959)."""

from collections.abc import Callable, Iterable

import numpy as np

from jaxinfer.decoding.constraints.grammar.chars import Ranges
from jaxinfer.decoding.constraints.grammar.machine import (
    DEAD,
    MOST_PARTS,
    MOST_STATES,
    MOST_WORK,
    Machine,
    TooLarge,
    classes,
    trimmed,
)


class Parts:
    """A nondeterministic automaton while it is built. A part is a state; what is added returns the part after it."""

    def __init__(self) -> None:
        self.sets: dict[Ranges, int] = {}
        self.moves: list[list[tuple[int, int]]] = []  # of each part: by which set, to which part
        self.free: list[list[int]] = []  # where it leads without a character
        self.guards: dict[int, list[tuple[str, int]]] = {}  # the same, at the "start" or the "end" of the text only

    def part(self) -> int:
        """Make a new part. Raises TooLarge."""
        if len(self.moves) >= MOST_PARTS:
            raise TooLarge(f"is larger than the limit of {MOST_PARTS:,} parts; repeat less, or allow less")
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1

    def chars(self, start: int, some: Ranges) -> int:
        """Add one character of a set."""
        end = self.part()
        self.move(start, some, end)
        return end

    def move(self, start: int, some: Ranges, end: int) -> None:
        """Add one character of a set, to a part that is there."""
        if some:
            self.moves[start].append((self.sets.setdefault(some, len(self.sets)), end))

    def skip(self, start: int, end: int | None = None) -> int:
        """Add a step without a character, to a part that is there or to a new one."""
        end = self.part() if end is None else end
        self.free[start].append(end)
        return end

    def guard(self, start: int, where: str) -> int:
        """Add a step without a character, at the "start" or the "end" of the text alone."""
        end = self.part()
        self.guards.setdefault(start, []).append((where, end))
        return end

    def text(self, start: int, text: str) -> int:
        """Add a text as it is."""
        for x in text:
            start = self.chars(start, ((ord(x), ord(x)),))
        return start

    def machine(self, start: int, machine: Machine) -> int:
        """Add a text of a machine."""
        first, end = len(self.moves), self.part()
        sets = machine.sets
        for _ in range(len(machine.final)):
            self.part()
        self.skip(start, first + 1)
        for state, (row, final) in enumerate(zip(machine.next.tolist(), machine.final.tolist(), strict=True)):
            here = first + 1 + state
            by_target: dict[int, list[int]] = {}
            for kind, after in enumerate(row):
                if after != DEAD:
                    by_target.setdefault(after, []).append(kind)
            for after, kinds in by_target.items():
                for kind in kinds:
                    self.move(here, sets[kind], first + 1 + after)
            if final:
                self.skip(here, end)
        return end

    def made(self, start: int, end: int) -> Machine:
        """Make the deterministic automaton of the texts that lead from one part to another. Raises TooLarge."""
        return _Subsets(self, start, end).machine


def build(add: Callable[[Parts, int], int]) -> Machine:
    """Build the machine of what a function adds to parts."""
    parts = Parts()
    start = parts.part()
    return parts.made(start, add(parts, start))


def words(texts: Iterable[str]) -> Machine:
    """Build the machine of a few texts. Raises TooLarge."""
    parts = Parts()
    start, end = parts.part(), parts.part()
    ways: dict[tuple[int, str], int] = {}  # what they begin with alike is there once
    for text in texts:
        here = start
        for x in text:
            if (here, x) not in ways:
                ways[here, x] = parts.text(here, x)
            here = ways[here, x]
        parts.skip(here, end)
    return parts.made(start, end)


class _Subsets:
    """A state is a set of parts."""

    def __init__(self, parts: Parts, start: int, end: int):
        self.parts, self.end, self.work = parts, end, 0
        starts, kind, masks = classes(list(parts.sets))
        self.masks = masks
        self.index: dict[int, np.ndarray] = {}
        self.seen: dict[frozenset[int], int] = {}
        self.closed: dict[frozenset[int], int] = {}
        self.final: list[bool] = []
        self.todo: list[frozenset[int]] = []
        width = int(kind.max(initial=0)) + 1
        self.state(frozenset([start]), at_start=True)
        rows: list[np.ndarray] = []
        while len(rows) < len(self.todo):
            rows.append(self.row(self.todo[len(rows)], width))
        self.machine = trimmed(Machine(starts, kind, np.array(rows), np.array(self.final, bool)))

    def closure(self, members: Iterable[int], where: tuple[str, ...] = ()) -> frozenset[int]:
        seen, todo = set(members), list(members)
        free, guards = self.parts.free, self.parts.guards
        while todo:
            here = todo.pop()
            after = free[here]
            if guards and here in guards:
                after = after + [end for when, end in guards[here] if when in where]
            for end in after:
                if end not in seen:
                    seen.add(end)
                    todo.append(end)
        self.work += len(seen)
        if self.work > MOST_WORK:
            raise TooLarge(f"is too ambiguous: more than {MOST_WORK:,} steps to compile; repeat less, or allow less")
        return frozenset(seen)

    def state(self, targets: frozenset[int], at_start: bool = False) -> int:
        """Give the number of the state after a move to these parts."""
        found = -1 if at_start else self.closed.get(targets, -1)
        if found >= 0:
            return found
        closure = self.closure(targets, ("start",) if at_start else ())
        moves, guards = self.parts.moves, self.parts.guards
        core = frozenset(x for x in closure if moves[x] or x == self.end or x in guards)
        key = core if not at_start else core | {-1}  # the start is left for good where ^ stands
        number = self.seen.get(key, -1)
        if number < 0:
            number = self.seen[key] = len(self.final)
            if number >= MOST_STATES:
                raise TooLarge(f"needs more than the limit of {MOST_STATES:,} states; repeat less, or allow less")
            ends = self.end in core
            if not ends and guards:
                ends = self.end in self.closure(core, ("start", "end") if at_start else ("end",))
            self.final.append(ends)
            self.todo.append(core)
        if not at_start:
            self.closed[targets] = number
        return number

    def row(self, members: frozenset[int], width: int) -> np.ndarray:
        pairs = [pair for x in members for pair in self.parts.moves[x]]
        self.work += len(pairs)
        by_target: dict[int, int] = {}
        for which, target in pairs:
            by_target[target] = by_target.get(target, 0) | self.masks[which]
        left: list[tuple[int, list[int]]] = []  # bits of classes that lead to the same parts
        for target, mask in by_target.items():
            new: list[tuple[int, list[int]]] = []
            for bits, targets in left:
                both = bits & mask
                if both:
                    new.append((both, [*targets, target]))
                    if bits != both:
                        new.append((bits ^ both, targets))
                    mask &= ~both
                else:
                    new.append((bits, targets))
            if mask:
                new.append((mask, [target]))
            left = new
            self.work += len(left)
        row = np.full(width, DEAD, np.int32)
        for bits, targets in left:
            if bits not in self.index:
                self.index[bits] = np.array([i for i in range(width) if bits >> i & 1])
            row[self.index[bits]] = self.state(frozenset(targets))
        return row
