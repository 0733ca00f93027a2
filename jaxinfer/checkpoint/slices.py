"""The part of an array that each device of a mesh holds, by arithmetic alone: the mesh need not be there.

`NamedSharding` says the same of devices that JAX knows. This says it of any position in a mesh too, such as one of the
64 that a process of a larger machine would have.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import PartitionSpec

from jaxinfer.checkpoint.mapped import Bounds


def bounds_at(position: int, spec: PartitionSpec, shape: Sequence[int], mesh: Mapping[str, int]) -> Bounds:
    """Return what the device at a position holds of an array: start and stop on each of its axes.

    position: in the mesh, flattened. mesh: the sizes of its axes by name, the outermost first. Several mesh axes on one
    axis of the array split it in their order, the first into the largest parts.
    """
    coordinates = {}
    for name in reversed(list(mesh)):
        position, coordinates[name] = divmod(position, mesh[name])
    bounds = []
    for size, entry in itertools.zip_longest(shape, spec):
        names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        place = 0
        for name in names:
            place = place * mesh[name] + coordinates[name]
        each = size // math.prod(mesh[name] for name in names)
        bounds.append((place * each, (place + 1) * each))
    return tuple(bounds)


def grouped(bounds: Mapping[int, Any]) -> dict[Any, list[int]]:
    """Return the positions that have the same bounds, by these: what is read once, and held by all of them."""
    groups = defaultdict(list)
    for position, own in bounds.items():
        groups[own].append(position)
    return dict(groups)


def around(boxes: Sequence[Bounds]) -> Bounds:
    """Return the smallest box that holds all of these."""
    return tuple((min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*boxes, strict=True))


def tiles(box: Bounds, axes: int, most: int) -> Iterator[Bounds]:
    """Cut a box along its first `axes` axes into boxes of at most `most` elements, or of one step of these axes."""
    inner = math.prod(stop - start for start, stop in box[axes:])
    steps: list[int] = []
    for start, stop in reversed(box[:axes]):
        step = min(max(1, most // max(1, inner)), stop - start)
        inner *= step
        steps.insert(0, max(1, step))
    starts = [range(start, stop, step) for (start, stop), step in zip(box, steps, strict=False)]
    for corner in itertools.product(*starts):
        cut = tuple((a, min(a + step, bound[1])) for a, step, bound in zip(corner, steps, box, strict=False))
        yield (*cut, *box[axes:])


def overlap(one: Bounds, other: Bounds) -> Bounds | None:
    """Return what two boxes share; None if that is nothing."""
    found = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return found if all(start < stop for start, stop in found) else None


def within(box: Bounds, outer: Bounds) -> tuple[slice, ...]:
    """Return where a box lies in an array that holds `outer`."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, outer, strict=True))
