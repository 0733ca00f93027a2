"""The texts of JSON strings: what may be in one, as an automaton, and how it is written between quotes."""

import functools
import json

import numpy as np

from jaxinfer.decoding.constraints.grammar.combine import anything, both, minus
from jaxinfer.decoding.constraints.grammar.formats import machine_of_format
from jaxinfer.decoding.constraints.grammar.machine import DEAD, MOST_STATES, Machine, TooLarge, classes, trimmed
from jaxinfer.decoding.constraints.grammar.parts import words
from jaxinfer.decoding.constraints.grammar.pattern import machine_of

_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def quoted(text: str) -> str:
    """Write a string as JSON does."""
    return json.dumps(text, ensure_ascii=False)


@functools.lru_cache(512)
def contents(atoms: tuple[tuple, ...]) -> Machine:
    """Give the machine of the strings for which all of a few conditions hold.

    ("length", least, most), ("match", pattern, yes), ("format", name, yes), ("among", texts, yes). Raises InputError
    for a pattern that cannot be read, TooLarge for what outgrows the limits.
    """
    listed = among(atoms)
    if listed is not None:
        return words(listed)
    lengths = [atom[1:] for atom in atoms if atom[0] == "length"]
    found = length(
        max((least for least, _ in lengths), default=0),
        min((most for _, most in lengths if most is not None), default=None),
    )
    for kind, what, yes in (atom for atom in atoms if atom[0] in ("match", "format")):
        found = (both if yes else minus)(found, _machine(kind, what))
    others = [text for atom in atoms if atom[0] == "among" for text in atom[1]]
    return minus(found, words(others)) if others else found


def among(atoms: tuple[tuple, ...]) -> list[str] | None:
    """Give the strings for which all conditions hold, if they are listed."""
    lists = [atom[1] for atom in atoms if atom[0] == "among" and atom[2]]
    if not lists:
        return None
    kept = set(lists[0]).intersection(*lists[1:])
    kept = kept.difference(*(atom[1] for atom in atoms if atom[0] == "among" and not atom[2]))
    others = [atom for atom in atoms if atom[0] != "among"]
    return [text for text in lists[0] if text in kept and all(_holds(text, atom) for atom in others)]


def _machine(kind: str, what: str) -> Machine:
    return machine_of(what, "ecma", search=True) if kind == "match" else machine_of_format(what)


def _holds(text: str, atom: tuple) -> bool:
    kind, *rest = atom
    if kind == "length":
        return rest[0] <= len(text) and (rest[1] is None or len(text) <= rest[1])
    return _machine(kind, rest[0]).matches(text) == rest[1]


def length(least: int, most: int | None) -> Machine:
    """Give the texts of so many characters."""
    size = (least if most is None else most) + 1
    if size > MOST_STATES:
        raise TooLarge(f"needs more than the limit of {MOST_STATES:,} states; a smaller length would do with less")
    every = anything()
    table = np.full((size, every.next.shape[1]), DEAD, np.int32)
    table[:-1, 1:] = np.arange(1, size)[:, None]
    if most is None:
        table[-1, 1:] = size - 1
    final = np.arange(size) >= least
    return trimmed(Machine(every.starts, every.kind, table, final))


@functools.lru_cache(512)
def written(atoms: tuple[tuple, ...]) -> Machine:
    """Give the machine of how these strings are written: in quotes, escaped where JSON has it so, and only there.

    Only those control characters that have a short escape are written, unless a string is given as it is.
    """
    listed = among(atoms)
    return between_quotes(contents(atoms)) if listed is None else words(map(quoted, listed))


def between_quotes(inner: Machine) -> Machine:
    """Give the machine of how the texts of another are written as strings."""
    if not inner:
        return inner
    old = inner.sets
    letters = [*_SHORT, *(x for x in _SHORT.values() if x not in _SHORT)]
    raw = tuple((max(first, 0x20), last) for first, last in ((0, 0x10FFFF),))
    starts, kind, masks = classes([*old, *(((ord(x), ord(x)),) for x in letters), raw])
    column = {x: mask.bit_length() - 1 for x, mask in zip(letters, masks[len(old) : -1], strict=True)}
    size, width = len(inner.final), int(kind.max()) + 1
    table = np.full((2 * size + 2, width), DEAD, np.int32)  # the states, each after a backslash, the start, the end
    for k, mask in enumerate(masks[: len(old)]):
        for new in range(1, width):
            if mask >> new & 1 and masks[-1] >> new & 1 and new not in (column['"'], column["\\"]):
                table[:size, new] = inner.next[:, k]
    begin, end = 2 * size, 2 * size + 1
    table[:size, column["\\"]] = size + np.arange(size)
    table[:size, column['"']] = np.where(inner.final, end, DEAD)
    for x, letter in _SHORT.items():
        where = inner.kind[np.searchsorted(inner.starts, ord(x), "right") - 1]
        table[size : 2 * size, column[letter]] = inner.next[:, where]
    table[begin, column['"']] = 0
    order = np.concatenate([[begin], np.arange(begin), [end]])  # the start comes first
    number = np.append(np.argsort(order), DEAD).astype(np.int32)
    return trimmed(Machine(starts, kind, number[table[order]], order == end))
