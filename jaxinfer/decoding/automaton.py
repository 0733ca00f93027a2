"""From a regular expression to a finite automaton over tokens (Willard & Louf 2023), on the host, before decoding.

outlines-core compiles the expression to an automaton over bytes; running every token through it from every state gives
the one over tokens. Tokens that lead alike from every state share a class, so that the table on the device is states x
classes and not states x vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxinfer.errors import InputError

DEAD = -1  # where a byte or token leads that may not come
_END = "\U0010ffff"  # stands for the end of a text: no character, but UTF-8


class Automaton(NamedTuple):
    """States from 0, the start; what a class of bytes or tokens leads to from each."""

    next: np.ndarray  # i32[S, C]: DEAD where the class may not come
    final: np.ndarray  # bool[S]: whether the text may end here


def over_bytes(pattern: str, what: str) -> Automaton:
    """The automaton of a regular expression over the 256 bytes, which the whole text has to match, in UTF-8.

    Raises InputError, which names `what` the pattern is, if it cannot be compiled or matches no text, and where
    outlines-core is not installed.
    """
    try:
        from outlines_core import Index, Vocabulary
    except ImportError:
        raise InputError('outlines-core is needed for a constraint: pip install "jaxinfer[constrain]"') from None
    eos = 256
    letters = Vocabulary(eos, {bytes([byte]): [byte] for byte in range(eos)})
    # An Index misses a token that goes on from where the text might end (outlines-core 0.2.14: "." behind "3" in
    # "3.14"). With an end mark behind it a text is whole there and nowhere else.
    marked = f"(?:{pattern}){_END}"
    try:
        if marked.count(")") > 1:
            _check_syntax(Index, Vocabulary(eos, {b"a": [0]}), pattern)  # brackets that only fit those around them
        index = Index(marked, letters)
    except ValueError as error:
        message = " ".join(str(error).split())
        if "incompatible with the regex" in message:
            raise InputError(f"{what}: it, or a branch of it, matches no text; ^ and $ are to be left out") from None
        hint = "the syntax is Rust's, without look-around, references and word boundaries"
        if "anchored" in message:
            hint = "the whole text is matched anyway: leave out ^ and $"
        raise InputError(f"{what}: {message}; {hint}") from None
    transitions, start = index.get_transitions(), index.get_initial_state()
    reached = {state for row in transitions.values() for state in row.values()}
    number = {state: i for i, state in enumerate(sorted({*transitions, *reached}, key=lambda state: state != start))}
    table = np.full((len(number) + 1, eos), DEAD, np.int32)  # the last row is that of DEAD
    for state, row in transitions.items():
        for byte, after in row.items():
            if byte != eos:
                table[number[state], byte] = number[after]
    whole = np.zeros(len(table), bool)
    whole[[number[state] for state in index.get_final_states()]] = True
    behind = np.arange(len(table))
    for byte in _END.encode():
        behind = table[behind, byte]
    return _trim(Automaton(table[:-1], whole[behind][:-1]))


def _check_syntax(index, vocabulary, pattern: str) -> None:
    """Raises ValueError for what is no pattern by itself."""
    try:
        index(pattern, vocabulary)
    except ValueError as error:
        if "incompatible with the regex" not in str(error):
            raise


def over_tokens(
    automaton: Automaton, vocabulary: Sequence[bytes], strips_first_space: bool = False
) -> tuple[Automaton, np.ndarray]:
    """The automaton over tokens, of the states from which the text can be ended, and the class i32[V] of each token.

    A token without text, such as a special one, never comes. strips_first_space: the text is what the tokens say
    without a space at its very beginning. The result has no states if no text can be written with this vocabulary.
    """
    table = np.concatenate([automaton.next, np.full((1, 256), DEAD, np.int32)])  # the last row is that of DEAD
    final, columns, column = automaton.final, *run(table, vocabulary)
    columns = columns[:, :-1]
    if strips_first_space:  # a first state that is left by the token less its space, and never comes again
        firsts, first = run(table, [token.removeprefix(b" ") for token in vocabulary])
        pairs, column = np.unique(np.stack([first, column]), axis=1, return_inverse=True)
        columns = np.concatenate([firsts[pairs[0], :1], np.where(columns >= 0, columns + 1, DEAD)[pairs[1]]], axis=1)
        columns[:, 0] = np.where(columns[:, 0] >= 0, columns[:, 0] + 1, DEAD)
        final = np.concatenate([final[:1], final])
    never = np.full((1, len(final)), DEAD, np.int32)
    columns = np.concatenate([never, columns])
    column = np.where(np.array([len(token) > 0 for token in vocabulary]), column.reshape(-1) + 1, 0)
    table, final = _trim(Automaton(columns.T, final))
    if not len(table):
        return Automaton(table, final), np.zeros(len(vocabulary), np.int32)
    classes, of = distinct(table.T)  # the first is that of what never comes
    return Automaton(classes.T, final), of[column].astype(np.int32)


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
        here, again = distinct(grown)
        found.append(here)
        at[live] = offset + again[which]
        goes_on = np.any(here >= 0, axis=1)[at[live] - offset]  # what is dead everywhere stays so
        live = live[goes_on & (length[live] > place + 1)]
    columns, same = distinct(np.concatenate(found))
    return columns, same[at]


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that differ, in the order in which they first come, and which of them each is, i32[rows]."""
    seen: dict[bytes, int] = {}
    which = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows], np.int64)
    _, first = np.unique(which, return_index=True)
    return rows[first], which


def _trim(automaton: Automaton) -> Automaton:
    """The states that are on a way from the start to an end, numbered anew; none if there is no such way."""
    table, final = automaton
    source = np.broadcast_to(np.arange(len(table))[:, None], table.shape)
    edges = np.unique(np.stack([source[table >= 0], table[table >= 0]]), axis=1)
    ends = _reached(zip(edges[1].tolist(), edges[0].tolist(), strict=True), np.flatnonzero(final).tolist())
    starts = _reached(zip(*edges.tolist(), strict=True), [0])
    kept = np.array(sorted(ends & starts), np.int64)
    if 0 not in ends:
        kept = kept[:0]
    number = np.full(len(table) + 1, DEAD, np.int32)  # the last: of DEAD
    number[kept] = np.arange(len(kept))
    return Automaton(number[table[kept]], final[kept])


def _reached(edges: Iterable[tuple[int, int]], first: list[int]) -> set[int]:
    """All that can be reached along edges from the first few."""
    behind = defaultdict(list)
    for one, other in edges:
        behind[one].append(other)
    seen, todo = set(first), list(first)
    while todo:
        new = [state for state in behind[todo.pop()] if state not in seen]
        seen.update(new)
        todo.extend(new)
    return seen
