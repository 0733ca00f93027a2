"""Parameters that are read shard by shard: each process reads what its devices hold, and no more lies in its memory.

Beside what is placed, the host holds one shard of one parameter. Weights that are rounded are read in tiles, from which
codes are cut: of a format that rounds each output by itself (`WeightFormat.by_rows`) the outputs that the shard holds,
with all their inputs; of another one matrix after the other.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.checkpoint.assemble import aligned, flatten, largest_first, unflatten
from jaxinfer.checkpoint.mapped import Bounds
from jaxinfer.checkpoint.slices import around, bounds_at, grouped, overlap, tiles, within
from jaxinfer.errors import InputError, shown
from jaxinfer.sharding import MeshShape, Sharding
from jaxinfer.weights.qtensor import is_quantized
from jaxinfer.weights.quantize import Rounding, encoded, rounding_of

TILE = 1 << 25  # numbers that are rounded at once

Axes = tuple[str | None, ...]
Progress = Callable[[int, int], None]  # bytes that were placed of those of all parameters
Pieces = Iterator[tuple[str, np.ndarray, list[int]]]  # name of an array, what is held of it, at which positions


class Source(Protocol):
    """Parameters by path that can be read in part."""

    leaves: dict[str, Any]

    def read(self, path: str, index: Bounds | None = None) -> np.ndarray:
        """Read a part of a parameter; None: all of it."""

    def warn(self) -> None:
        """Warn of numbers that were read and are none."""


class Target:
    """Some positions of a mesh, to which shards go as numpy arrays. The mesh need not be there."""

    turns = 0, 1  # the number of this process, and how many read the same source together

    def __init__(self, layout: Sharding | MeshShape, positions: Sequence[int]):
        """Take a layout, or a mesh with the rules of its axes. Raises InputError for positions that it has not."""
        mesh: Any = layout.mesh if isinstance(layout, Sharding) else layout
        self.shape, self.rules = dict(mesh.shape), layout.rules  # the sizes of the mesh's axes by name
        self.positions = list(positions)
        for position in self.positions:
            if not isinstance(position, int | np.integer) or not 0 <= position < mesh.size:
                raise InputError(f"device {shown(position)}: the mesh has the devices 0 to {mesh.size - 1}")

    def spec(self, axes: Axes, shape: tuple[int, ...]) -> Any:
        """Return how a parameter lies at rest."""
        return self.rules.spec(axes, shape, self, at_rest=True)

    def bounds(self, spec: Any, shape: tuple[int, ...]) -> dict[int, Bounds]:
        """Return what each of the positions holds."""
        return {position: bounds_at(position, spec, shape, self.shape) for position in self.positions}

    def put(self, array: np.ndarray, position: int) -> Any:
        """Take a shard to its position."""
        return array

    def join(self, pieces: dict[int, Any], spec: Any, shape: tuple[int, ...]) -> Any:
        """Make one leaf of the tree of shards by position."""
        return MappingProxyType(pieces)  # which is no node of the tree


class OnMesh(Target):
    """The devices of a mesh that belong to this process, which make global arrays with those of other processes."""

    def __init__(self, layout: Sharding):
        devices = list(layout.mesh.devices.flat)
        here = NamedSharding(layout.mesh, PartitionSpec()).addressable_devices
        super().__init__(layout, [position for position, device in enumerate(devices) if device in here])
        self.devices, self.on = devices, layout.mesh
        self.turns = jax.process_index(), jax.process_count()

    def put(self, array: np.ndarray, position: int) -> jax.Array:
        return jax.block_until_ready(jax.device_put(array, self.devices[position]))

    def join(self, pieces: dict[int, Any], spec: Any, shape: tuple[int, ...]) -> jax.Array:
        sharding = NamedSharding(self.on, spec)
        return jax.make_array_from_single_device_arrays(shape, sharding, [pieces[p] for p in self.positions])


def fill(
    source: Source, axes: dict[str, Axes], target: Target, weights: str | None, progress: Progress | None = None
) -> dict:
    """Return the parameter tree with what the target holds of each leaf, rounded to the format `weights` if any.

    axes: the logical axes of each parameter, by path.
    """
    leaves, filled = source.leaves, {}
    total, done = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()), 0
    for path in largest_first(leaves):
        leaf = leaves[path]
        rounding = None if weights is None else rounding_of(path, weights)
        if rounding is None:
            like, own = {"": leaf}, {"": axes[path]}
        else:
            rounded = jax.eval_shape(lambda leaf, how=rounding: encoded(leaf, *how), leaf)
            like, own = rounded.arrays(), rounded.axes(axes[path]).arrays()
        specs = {name: target.spec(own[name], array.shape) for name, array in like.items()}
        bounds = {name: target.bounds(specs[name], array.shape) for name, array in like.items()}
        pieces = (
            _plain(source, path, bounds[""]) if rounding is None else _rounded(source, path, rounding, like, bounds)
        )
        found: dict[str, dict[int, Any]] = defaultdict(dict)
        for name, array, positions in pieces:
            for position in positions:
                found[name][position] = target.put(array, position)
            del array
        made = {name: target.join(found[name], specs[name], array.shape) for name, array in like.items()}
        filled[path] = made[""] if rounding is None else rounding.format.from_plain(rounded, made)
        done += leaf.size * leaf.dtype.itemsize
        if progress:
            progress(done, total)
    source.warn()
    return unflatten(filled)


def _plain(source: Source, path: str, bounds: dict[int, Bounds]) -> Pieces:
    for box, positions in grouped(bounds).items():
        yield "", source.read(path, box), positions


def _rounded(
    source: Source, path: str, rounding: Rounding, like: dict[str, Any], bounds: dict[str, dict[int, Bounds]]
) -> Pieces:
    """Read the weights that shards are rounded from, in tiles, and cut the shards out of what they are rounded to."""
    shape = source.leaves[path].shape
    outer = len(shape) - rounding.n_in
    tiled = outer if rounding.format.by_rows else rounding.stacked

    def needed(position: int) -> Bounds:
        own = around([bounds[name][position][:tiled] for name in like])
        return (*own, *((0, n) for n in shape[tiled:]))

    for box, positions in grouped({position: needed(position) for position in next(iter(bounds.values()))}).items():
        shards = {
            (name, own): (aligned(tuple(b - a for a, b in own), like[name].dtype), where)
            for name in like
            for own, where in grouped({position: bounds[name][position] for position in positions}).items()
        }
        for tile in tiles(box, tiled, TILE):
            made = encoded(jax.device_put(source.read(path, tile)), *rounding).arrays()
            for name, array in made.items():
                whole = (*tile[:tiled], *((0, n) for n in array.shape[tiled:]))
                host = np.asarray(array)
                for (other, own), (shard, _) in shards.items():
                    shared = overlap(own, whole) if other == name else None
                    if shared is not None:
                        shard[within(shared, own)] = host[within(shared, whole)]
        for (name, _), (shard, where) in shards.items():
            yield name, shard, where


def axes_of(tree: dict, axes: dict) -> dict[str, Axes]:
    """Return the logical axes of the arrays of a tree by path, those of quantized weights below their names.

    Of a weight whose format has a way of its own to put it in a file, all axes are whole.
    """
    flat: dict[str, Axes] = {}
    own = flatten(axes)
    for path, leaf in flatten(tree).items():
        if not is_quantized(leaf):
            flat[path] = own[path]
            continue
        arrays, plain = leaf.axes(own[path]).arrays(), leaf.format.to_plain(leaf)
        same = plain.keys() == arrays.keys() and all(plain[name] is x for name, x in leaf.arrays().items())
        for name, array in plain.items():
            flat[f"{path}/{name}"] = arrays[name] if same else (None,) * array.ndim
    return flat
