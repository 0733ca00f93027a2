"""Deterministic finite automata over characters, and the limits of their size.

What is built is counted while it is built (`parts`, `combine`, `utf8`), so that no pattern takes more memory or time
than the limits allow: a repeated repeat, exponentially many states, an alternation of a million texts.
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxinfer.decoding.constraints.grammar.chars import LAST, Ranges
from jaxinfer.errors import InputError

DEAD = -1
MOST_PARTS = 60_000  # of what a pattern is built of, once its repeats are written out
MOST_STATES = 16_000  # of a deterministic automaton
MOST_WORK = 2_000_000  # parts looked at while it is made deterministic: some seconds
_BOUNDS = (0, 0xD800, 0xE000, LAST + 1)  # halves of characters lie between the second and the third


class TooLarge(InputError):
    """An automaton has outgrown a limit."""


@dataclass(frozen=True, eq=False)
class Machine:
    """A deterministic automaton over characters. State 0 is the start; there are no states if no text matches."""

    starts: np.ndarray  # i64[I]: where each interval of code points begins
    kind: np.ndarray  # i32[I]: its class; class 0 never comes
    next: np.ndarray  # i32[S, K]: where a class leads from each state, DEAD: it may not come
    final: np.ndarray  # bool[S]: whether the text may end here

    def __bool__(self) -> bool:
        return len(self.final) > 0

    @cached_property
    def sets(self) -> list[Ranges]:
        """Give the characters of each class, half characters as none."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(self.next.shape[1])]
        ends = [*self.starts[1:].tolist(), LAST + 1]
        for first, after, kind in zip(self.starts.tolist(), ends, self.kind.tolist(), strict=True):
            if kind:
                found[kind].append((first, after - 1))
        return [tuple(ranges) for ranges in found]

    def after(self, state: int, text: str) -> int:
        """Give the state that a text leads to."""
        for x in text:
            if state == DEAD:
                break
            state = int(self.next[state, self.kind[bisect_right(self.starts, ord(x)) - 1]])
        return state

    def matches(self, text: str) -> bool:
        """Tell whether a whole text matches."""
        state = self.after(0, text) if self else DEAD
        return state != DEAD and bool(self.final[state])


def classes(sets: Sequence[Ranges]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Put characters that no set tells apart into a class: intervals, their classes, the classes of each set as bits.

    Class 0 is that of half characters.
    """
    toggles: dict[int, int] = dict.fromkeys(_BOUNDS, 0)
    for i, ranges in enumerate(sets):
        for first, last in ranges:
            for bound in (first, last + 1):
                toggles[bound] = toggles.get(bound, 0) ^ (1 << i)
    number: dict[int, int] = {}
    starts, kinds, member, masks = [], [], 0, [0] * len(sets)
    for bound in sorted(toggles)[:-1]:
        member ^= toggles[bound]
        key = -1 if 0xD800 <= bound < 0xE000 else member
        if key == -1:
            kind = 0
        elif key in number:
            kind = number[key]
        else:
            kind = number[key] = len(number) + 1
            left, i = key, 0
            while left:
                if left & 1:
                    masks[i] |= 1 << kind
                left, i = left >> 1, i + 1
        starts.append(bound)
        kinds.append(kind)
    return np.array(starts, np.int64), np.array(kinds, np.int32), masks


def trimmed(machine: Machine) -> Machine:
    """Leave out the states that are on no way from the start to an end; states that lead alike become one."""
    table, final = machine.next, machine.final
    kept = useful(table, final)
    number = np.full(len(table) + 1, DEAD, np.int32)
    number[:-1][kept] = np.arange(kept.sum())
    table, final = number[table[kept]], final[kept]
    if not (len(kept) and kept[0]):
        table, final = table[:0], final[:0]
    for _ in range(64):  # each round is right by itself: what still differs then stays apart
        rows, same = distinct(np.column_stack([table, final]).astype(np.int32))
        if len(rows) == len(table):
            break
        table, final = np.append(same, DEAD).astype(np.int32)[rows[:, :-1]], rows[:, -1].astype(bool)
    return dataclasses.replace(machine, next=table, final=final)


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the rows that differ, in the order in which they first come, and which of them each is, i32[rows]."""
    seen: dict[bytes, int] = {}
    which = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows], np.int64)
    _, first = np.unique(which, return_index=True)
    return rows[first], which


def useful(table: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Give bool[S]: whether a state is on a way from the first to one that is final. table: i32[S, C]."""
    size = len(table)
    where = np.nonzero(table != DEAD)
    edges = np.unique(where[0].astype(np.int64) * max(size, 1) + table[where])
    one, other = edges // max(size, 1), edges % max(size, 1)
    forward = _reached(one, other, np.arange(size) == 0)
    back = _reached(other, one, final)
    return forward & back


def _reached(source: np.ndarray, target: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Give bool[S]: what edges lead to from the first few."""
    order = np.argsort(source, kind="stable")
    source, target = source[order], target[order].tolist()
    begin = np.searchsorted(source, np.arange(len(first) + 1)).tolist()
    seen = first.copy()
    todo = np.flatnonzero(first).tolist()
    while todo:
        here = todo.pop()
        for after in target[begin[here] : begin[here + 1]]:
            if not seen[after]:
                seen[after] = True
                todo.append(after)
    return seen
