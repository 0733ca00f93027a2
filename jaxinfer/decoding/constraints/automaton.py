"""From an automaton over bytes to one over tokens (Willard & Louf 2023), on the host, before decoding.

Every token is run through the automaton from every state. Tokens that lead alike from every state share a class, so
that the table on the device is states x classes and not states x vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxinfer.decoding.constraints.grammar.machine import DEAD, Machine, TooLarge, distinct, useful
from jaxinfer.decoding.constraints.grammar.utf8 import over_bytes

MOST_ENTRIES = 1 << 26  # of the tables that are made on the way: 256 MiB
MOST_TABLE = 1 << 24  # of the one that goes to the device: 64 MiB


class Automaton(NamedTuple):
    """States from 0, the start; what a class of bytes or tokens leads to from each."""

    next: np.ndarray  # i32[S, C]: DEAD where the class may not come
    final: np.ndarray  # bool[S]: whether the text may end here


def of_machine(machine: Machine) -> Automaton:
    """Give the automaton over the 256 bytes that the texts of a machine are in UTF-8. Raises TooLarge."""
    return _trim(Automaton(*over_bytes(machine)))


def over_tokens(automaton: Automaton, vocabulary: Sequence[bytes]) -> tuple[Automaton, np.ndarray]:
    """Give the automaton over tokens, of the states that can lead to an end, and the class i32[V] of each token.

    A token without text, such as a special one, never comes. The result has no states if no text can be written with
    this vocabulary. Raises TooLarge where the tables would take too much memory.
    """
    table = np.concatenate([automaton.next, np.full((1, 256), DEAD, np.int32)])  # the last row is that of DEAD
    final, (columns, column) = automaton.final, run(table, vocabulary)
    never = np.full((1, len(final)), DEAD, np.int32)
    columns = np.concatenate([never, columns[:, :-1]])
    column = np.where(np.array([len(token) > 0 for token in vocabulary]), column.reshape(-1) + 1, 0)
    table, final = _trim(Automaton(columns.T, final))
    if not len(table):
        return Automaton(table, final), np.zeros(len(vocabulary), np.int32)
    classes, of = distinct(table.T)  # the first is that of what never comes
    if classes.size > MOST_TABLE:
        raise _too_large(len(final))
    return Automaton(classes.T, final), of[column].astype(np.int32)


def _too_large(states: int) -> TooLarge:
    return TooLarge(
        f"its {states:,} states under this vocabulary need a larger table than the limit of {MOST_TABLE:,} entries; "
        "repeat less, or allow less"
    )


def run(table: np.ndarray, tokens: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Run each token from each state of i32[S, 256], whose last row is DEAD.

    What they do to the states, of which many do the same: columns i32[E, S], and which of them is each token's, i32[V].
    Byte by byte, for all tokens at once: what a beginning does to the states is one of few functions, and only those
    that differ are carried on.
    """
    kinds, kind = distinct(table.T)  # of bytes
    length = np.array([len(token) for token in tokens], np.int64)
    kind = kind[np.frombuffer(b"".join(tokens), np.uint8)]
    begin = np.cumsum(length) - length
    here = np.arange(len(table), dtype=np.int32)[None]
    here[0, -1] = DEAD
    found, offset, at = [here], 0, np.zeros(len(tokens), np.int64)
    live = np.flatnonzero(length > 0)
    for place in range(int(length.max(initial=0))):
        pairs, which = np.unique((at[live] - offset) * len(kinds) + kind[begin[live] + place], return_inverse=True)
        grown = kinds[(pairs % len(kinds))[:, None], here[pairs // len(kinds)]]
        offset += len(here)
        if (offset + len(grown)) * len(table) > MOST_ENTRIES:
            raise _too_large(len(table) - 1)
        here, again = distinct(grown)
        found.append(here)
        at[live] = offset + again[which]
        goes_on = np.any(here >= 0, axis=1)[at[live] - offset]  # what is dead everywhere stays so
        live = live[goes_on & (length[live] > place + 1)]
    columns, same = distinct(np.concatenate(found))
    return columns, same[at]


def _trim(automaton: Automaton) -> Automaton:
    """Keep the states that are on a way from the start to an end, numbered anew; none if there is no such way."""
    table, final = automaton
    kept = np.flatnonzero(useful(table, final))
    if not len(kept) or kept[0]:
        kept = kept[:0]
    number = np.full(len(table) + 1, DEAD, np.int32)  # the last: of DEAD
    number[kept] = np.arange(len(kept))
    return Automaton(number[table[kept]], final[kept])
