"""The links between devices: how fast a collective over one axis of a mesh is, given where the axis lies.

A torus links each chip with two neighbours in each of its dimensions (Jouppi et al. 2023, arXiv 2304.01433); a switch
links every device with every other at the full rate of its links (NVLink). A mesh is laid on the devices in their
order, its last axis on neighbours.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FIELDS = ("dimensions", "wraps", "domain", "hop", "start", "network")
"""The fields of an `Interconnect`, in order."""


@dataclass(frozen=True)
class Interconnect:
    """The constants of the links between devices of one kind, beside the rate of a device's own links."""

    dimensions: int  # of the torus; 0: a switch
    wraps: int  # a dimension of this length, or a multiple, is a ring, others are lines; in 3 dimensions all or none
    domain: int  # devices that the links reach; beyond them is the network
    hop: float  # seconds that the smallest message takes to a neighbour
    start: float  # seconds that a collective takes besides
    network: float | None  # bytes/s of a device, in one direction, to those outside of its domain


@dataclass(frozen=True)
class Links:
    """An axis of a mesh as collectives see it: bytes/s by pattern, and the seconds of a collective of no bytes.

    A rate is what the bytes that a device sends of its own are divided by; on a torus others pass through it as well.
    """

    reduce: float  # all-reduce, all-gather, reduce-scatter
    exchange: float  # all-to-all
    neighbour: float  # a send to the next device
    size: float
    hops: float  # to go once through the axis
    distance: float  # hops to the next device of the axis
    hop: float
    start: float


def links(link: float, between: Interconnect, slice_: Sequence[int], stride: int, size: int) -> Links:
    """Give the links of an axis of `size` devices that lie `stride` apart in a slice of these dimensions.

    link: bytes/s of a device over all its links, in one direction. With W for one of them, on a torus:

    - In a dimension in which the axis extends over e devices, `gap` apart, as many interleaved groups share a link. A
      ring has two links a device, a line one: 2 W / gap or W / gap, and the dimensions add up.
    - In an all-to-all every device sends b bytes. In a ring of e devices they go e / 4 links far on average, over 2 W:
      e b / (8 W). In a line half of the bytes of each half cross the middle: e b / (4 W). The slowest dimension counts.
      Of b bytes (n - 1) / n are for others, and so the rate is that much of b over the time.
    - Hops through a ring of e are e / 2, through a line e - 1, times the gap.
    """
    if size == 1:
        return Links(math.inf, math.inf, math.inf, 1, 0, 0, 0, 0)
    if stride * size > between.domain:
        rate = between.network or link
        return Links(rate, rate, rate, size, size - 1, 1, between.hop, between.start)
    if not between.dimensions:
        return Links(link, link, link, size, size - 1, 1, between.hop, between.start)
    one = link / (2 * between.dimensions)
    parts = list(_extents(slice_, stride, size, between))
    reduce = sum((2 if ring else 1) * one / gap for _, gap, ring in parts)
    exchange = min((8 if ring else 4) * one / (extent * gap) for extent, gap, ring in parts) * (size - 1) / size
    hops = sum(gap * (extent / 2 if ring else extent - 1) for extent, gap, ring in parts)
    distance = parts[0][1]
    return Links(reduce, exchange, one / distance, size, hops, distance, between.hop, between.start)


def _extents(
    slice_: Sequence[int], stride: int, size: int, between: Interconnect
) -> Iterator[tuple[float, float, bool]]:
    """Give how far an axis extends in each dimension of a torus, its gap there, and whether it is a whole ring.

    Slices of three dimensions are rings where they are made of whole cubes (Jouppi et al. 2023, section 2).
    """
    before = 1
    cubes = between.dimensions < 3 or all(length % between.wraps == 0 for length in slice_[: between.dimensions])
    for length in reversed(slice_):
        low, high = max(stride, before), min(stride * size, before * length)
        if high > low:
            extent = high / low
            yield extent, low / before, cubes and extent == length and length % between.wraps == 0
        before *= length
