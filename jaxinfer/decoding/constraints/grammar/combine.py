"""Automata of what two others have in common, or what one has and another has not."""

from collections.abc import Callable

import numpy as np

from jaxinfer.decoding.constraints.grammar.chars import ANY
from jaxinfer.decoding.constraints.grammar.machine import DEAD, MOST_STATES, Machine, TooLarge, classes, trimmed


def product(one: Machine, other: Machine, keep: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Machine:
    """Give the machine of the texts for which `keep` of whether they match one and the other, bool[...], is true.

    `keep` is false for what matches neither. Raises TooLarge.
    """
    starts = np.union1d(one.starts, other.starts)
    pair = np.stack([m.kind[np.searchsorted(m.starts, starts, "right") - 1] for m in (one, other)])
    pairs, kind = np.unique(pair, axis=1, return_inverse=True)  # the first is that of half characters
    tables = [_with_sink(m)[:, kinds] for m, kinds in zip((one, other), pairs, strict=True)]
    finals = [np.append(m.final, False) for m in (one, other)]
    sinks, width = [len(m.final) for m in (one, other)], len(finals[1])
    dead = sinks[0] * width + sinks[1]
    first = 0 if one and other else (0 if one else sinks[0]) * width + (0 if other else sinks[1])
    number = np.full((sinks[0] + 1) * width, DEAD, np.int32)
    number[first], found, rows, here = 0, 1, [], np.array([first], np.int64)
    order = [here]
    while len(here):
        codes = tables[0][here // width].astype(np.int64) * width + tables[1][here % width]
        rows.append(codes)
        new = np.unique(codes)
        here = new[(number[new] == DEAD) & (new != dead)]
        number[here] = np.arange(found, found + len(here))
        found += len(here)
        order.append(here)
        if found > MOST_STATES:
            raise TooLarge(f"needs more than the limit of {MOST_STATES:,} states; repeat less, or allow less")
    number[dead] = DEAD
    codes = np.concatenate(order)
    final = keep(finals[0][codes // width], finals[1][codes % width])
    return trimmed(Machine(starts, kind.reshape(-1).astype(np.int32), number[np.concatenate(rows)], final))


def _with_sink(machine: Machine) -> np.ndarray:
    """Give i32[S + 1, K]: the table whose dead ends are a state, the last."""
    sink = len(machine.final)
    table = np.concatenate([machine.next, np.full((1, machine.next.shape[1]), DEAD, np.int32)])
    return np.where(table == DEAD, sink, table)


def both(one: Machine, other: Machine) -> Machine:
    """Give the machine of the texts that match both."""
    return product(one, other, np.logical_and)


def minus(one: Machine, other: Machine) -> Machine:
    """Give the machine of the texts that match the first and not the second."""
    return product(one, other, lambda a, b: a & ~b)


def anything() -> Machine:
    """Give the machine of every text."""
    starts, kind, _ = classes([ANY])
    return Machine(starts, kind, np.array([[DEAD, 0]], np.int32), np.ones(1, bool))
