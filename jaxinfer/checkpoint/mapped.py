"""Files that are read by being mapped: boxes are copied out of their arrays, counted, and the pages given back.

What is mapped counts as memory of the process until its pages are given back, so a file that is larger than the memory
could be read to its end, and yet look as if it lay in memory whole.
"""

import contextlib
import math
import mmap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Bounds = tuple[tuple[int, int], ...]  # of a box: start and stop on each axis

RESIDENT = 1 << 26  # bytes of a file that may stay mapped after they are copied


@dataclass
class Count:
    """Bytes that were copied out of files: those that were asked for, not the pages that they lie in."""

    bytes: int = 0


_LOCK = threading.Lock()
_COUNTS: list[Count] = []


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Count what is read from files of weights meanwhile, in all threads."""
    count = Count()
    with _LOCK:
        _COUNTS.append(count)
    try:
        yield count
    finally:
        with _LOCK:
            _COUNTS[:] = [other for other in _COUNTS if other is not count]


def told(n_bytes: int) -> None:
    """Add bytes that were read to all counts that are open."""
    with _LOCK:
        for count in _COUNTS:
            count.bytes += n_bytes


class Mapped:
    """A file, mapped for reading."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self._resident = 0

    @classmethod
    def of(cls, file: Path) -> "Mapped":
        """Map a file that is not empty. Raises OSError."""
        with file.open("rb") as opened:
            return cls(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))

    def box(self, start: int, dtype: Any, shape: tuple[int, ...], bounds: Bounds) -> np.ndarray:
        """Copy a box out of the array of that dtype and shape whose first byte is at `start`."""
        whole = np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape)
        view = whole[tuple(slice(*bound) for bound in bounds)]
        copy = np.array(view)
        told(copy.nbytes)
        if copy.size:
            steps = zip(view.shape, view.strides, strict=True)
            self._give_back(sum((n - 1) * step for n, step in steps) + whole.itemsize)
        return copy

    def _give_back(self, span: int) -> None:
        """Give the mapped pages back once they are many; the system keeps them cached as long as it likes."""
        self._resident += span
        if self._resident >= RESIDENT and hasattr(self.data, "madvise"):
            self._resident = 0
            self.data.madvise(mmap.MADV_DONTNEED)
