"""The space that a plan looks through: meshes of each slice, batches and microbatches, as arrays."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jaxinfer.analysis.hardware.interconnect import Links
from jaxinfer.analysis.planning.goal import Goal
from jaxinfer.analysis.planning.slices import Family, Slice
from jaxinfer.analysis.roofline.meshes import axes_of, stacked
from jaxinfer.analysis.roofline.setting import AXES
from jaxinfer.config import ModelConfig

LARGEST_BATCH = 4096
ROUNDS = (1, 2)  # microbatches a stage of a pipeline that are tried, beside one in all

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Space:
    """Points: a slice, a mesh on it, a batch and how it goes through a pipeline. Arrays have an entry a point."""

    slices: tuple[Slice, ...]
    slice_of: np.ndarray  # i[P], which of `slices`
    chips: np.ndarray  # f[P]
    sizes: Mapping[str, np.ndarray]  # by axis: f[P]
    batch: np.ndarray  # f[P]
    microbatches: np.ndarray  # f[P]
    links: Mapping[str, Links]

    def __len__(self) -> int:
        return len(self.batch)

    def mesh(self, point: int) -> dict[str, int]:
        """Give the axes of a point's mesh that have several devices, the outermost first."""
        sizes = {axis: int(self.sizes[axis][point]) for axis in AXES}
        return {axis: size for axis, size in sizes.items() if size > 1} or {"data": 1}


def space(config: ModelConfig, machines: Family, goal: Goal) -> Space:
    """Give all points that the model and the goal allow; there may be none."""
    points, links = [], []
    device = machines.hardware
    for number, slice_ in enumerate(machines.slices):
        for sizes in meshes(config, goal, machines.chips(slice_) * machines.cores):
            by = axes_of(device, machines.layout(slice_), sizes)
            for batch, parts in loads(goal, sizes):
                points.append((number, machines.chips(slice_), batch, parts, *(sizes[axis] for axis in AXES)))
                links.append(by)
    columns = np.array(points, float).reshape(len(points), 4 + len(AXES)).T
    sizes_of = dict(zip(AXES, columns[4:], strict=True))
    of_slice = columns[0].astype(int)
    return Space(machines.slices, of_slice, columns[1], sizes_of, columns[2], columns[3], stacked(links))


def meshes(config: ModelConfig, goal: Goal, devices: int) -> Iterator[dict[str, int]]:
    """Give every way to write so many devices as a mesh whose axes the model divides into."""
    found: dict[str, int] = dict.fromkeys(AXES, 1)

    def rest(left: int, axes: tuple[str, ...]) -> Iterator[dict[str, int]]:
        if not axes:
            if left == 1:
                yield dict(found)
            return
        for size in range(1, left + 1):
            if left % size == 0 and allows(config, goal, axes[0], size):
                found[axes[0]] = size
                yield from rest(left // size, axes[1:])

    yield from rest(devices, AXES)


def allows(config: ModelConfig, goal: Goal, axis: str, size: int) -> bool:
    """Tell whether the model can be split over so many devices of an axis without a remainder.

    KV heads fewer than the tensor axis are held by groups of devices, so that one number has to divide the other.
    """
    if size == 1:
        return True
    kinds, experts = config.kinds, [kind.moe.experts for kind in config.kinds if kind.moe]
    if axis == "tensor":
        stored = config.stored[0]
        widths = [config.n_heads, config.vocab_size, config.d_ff or size]
        widths += [kind.moe.d_ff for kind in kinds if kind.moe]
        widths += [getattr(kind.mixer, "width", config.n_heads) for kind in kinds if kind.mixer]
        return all(width % size == 0 for width in widths) and (stored % size == 0 or size % stored == 0)
    if axis == "fsdp":
        return config.d_model % size == 0
    if axis == "pipeline":
        return all(segment.repeats % size == 0 for segment in config.segments)
    if axis == "expert":
        return bool(experts) and all(count % size == 0 for count in experts)
    if axis == "context":
        return goal.slots % size == goal.prompt % size == 0 and not any(kind.mixer for kind in kinds)
    return True


def loads(goal: Goal, sizes: Sizes) -> Iterator[tuple[int, int]]:
    """Give the batches that a mesh divides, each with the microbatches that are tried."""
    groups = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    batches = (goal.batch,) if goal.batch else (2**i for i in range(LARGEST_BATCH.bit_length()))
    stages = sizes["pipeline"]
    tried = sorted({1, *(stages * times for times in ROUNDS)}) if stages > 1 else (1,)
    for batch in batches:
        if batch % groups == 0:
            yield from ((batch, parts) for parts in tried if batch // groups % parts == 0)
