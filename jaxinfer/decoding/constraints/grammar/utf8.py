"""From an automaton over characters to the one over the bytes of UTF-8."""

from bisect import bisect_right

import numpy as np

from jaxinfer.decoding.constraints.grammar.machine import DEAD, MOST_STATES, Machine, TooLarge

_LEADS = (  # first byte of the lead, how many bytes follow, the bits that it adds, the code points of that length
    *((lead, 1, (lead & 0x1F) << 6, 0x80, 0x7FF) for lead in range(0xC2, 0xE0)),
    *((lead, 2, (lead & 0x0F) << 12, 0x800, 0xFFFF) for lead in range(0xE0, 0xF0)),
    *((lead, 3, (lead & 0x07) << 18, 0x10000, 0x10FFFF) for lead in range(0xF0, 0xF5)),
)
Runs = tuple[tuple[int, int, int], ...]  # first and last code point, and the state that they lead to


def over_bytes(machine: Machine) -> tuple[np.ndarray, np.ndarray]:
    """Give the table i32[S, 256] and the final states bool[S] of a machine's texts in UTF-8. Raises TooLarge."""
    size = len(machine.final)
    table = np.full((size, 256), DEAD, np.int32)
    ascii_ = machine.kind[np.searchsorted(machine.starts, np.arange(128), "right") - 1]
    table[:, :128] = machine.next[:, ascii_]
    inner = _Inner(size)
    beyond = machine.starts > 127
    firsts = np.concatenate([[128], machine.starts[beyond]])
    kinds = np.concatenate(
        [machine.kind[np.searchsorted(machine.starts, 128, "right") - 1, None], machine.kind[beyond]]
    )
    lasts = [*(firsts[1:] - 1).tolist(), 0x10FFFF]
    firsts = firsts.tolist()
    for state in range(size):
        targets = machine.next[state, kinds]
        if (targets == DEAD).all():
            continue
        cuts = np.flatnonzero(np.append(True, targets[1:] != targets[:-1]))
        runs = []
        for begin, end in zip(cuts.tolist(), [*cuts[1:].tolist(), len(targets)], strict=True):
            if targets[begin] != DEAD:
                runs.append((firsts[begin], lasts[end - 1], int(targets[begin])))
        for lead, level, base, least, most in _LEADS:
            table[state, lead] = inner.of(level, base, _within(runs, max(base, least), min(base + 64**level - 1, most)))
    rows = np.full((len(inner.rows), 256), DEAD, np.int32)
    if len(rows):
        rows[:, 0x80:0xC0] = inner.rows
    return np.concatenate([table, rows]), np.append(machine.final, np.zeros(len(rows), bool))


def _within(runs, first: int, last: int) -> Runs:
    """Give the runs between two code points, cut there."""
    begin = max(bisect_right(runs, (first,)) - 1, 0)
    found = []
    for a, b, target in runs[begin:]:
        if a > last:
            break
        if b >= first:
            found.append((max(a, first), min(b, last), target))
    return tuple(found)


class _Inner:
    """The states within a character: what is still to come of it, the same ones shared."""

    def __init__(self, first: int):
        self.first = first  # the number of the first of them
        self.rows: list[list[int]] = []
        self.known: dict[tuple[int, Runs], int] = {}

    def of(self, level: int, base: int, runs: Runs) -> int:
        """Give the state before the last `level` bytes of the characters from `base` on."""
        if not runs:
            return DEAD
        if level == 0:
            return runs[0][2]
        key = (level, tuple((a - base, b - base, target) for a, b, target in runs))
        if key not in self.known:
            step = 64 ** (level - 1)
            row = [DEAD] * 64
            if len(runs) == 1 and key[1][0][:2] == (0, 64**level - 1):
                row = [self.of(level - 1, base, ((base, base + step - 1, runs[0][2]),))] * 64
            else:
                for a, b, _ in runs:
                    for place in range((a - base) // step, (b - base) // step + 1):
                        low = base + place * step
                        row[place] = self.of(level - 1, low, _within(runs, low, low + step - 1))
            if self.first + len(self.rows) >= MOST_STATES:
                raise TooLarge(f"needs more than the limit of {MOST_STATES:,} states; repeat less, or allow less")
            self.known[key] = self.first + len(self.rows)
            self.rows.append(row)
        return self.known[key]
