"""A model's parameters on a mesh, and what of them could not be split."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax

from jaxinfer.config import ModelConfig
from jaxinfer.network.head_groups import HeadGroups, obstacle, parts_of
from jaxinfer.network.transformer import param_axes
from jaxinfer.sharding.layouts import Sharding
from jaxinfer.weights.qtensor import is_quantized

PAD = "pad_heads splits them"
PACKED = "stay whole on each device: they lie packed in bytes"


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple)


def spread(
    cfg: ModelConfig, params: dict[str, Any], layout: Sharding
) -> tuple[ModelConfig, dict[str, Any], tuple[str, ...]]:
    """Lay parameters on a mesh, heads grouped as it takes them (`head_groups`): configuration, parameters, notes.

    One parameter after the other is grouped and laid out. The notes are one line each: how heads are grouped, and what
    stays whole on each device.
    """
    rules, parts = layout.rules, parts_of(layout)
    against = obstacle(cfg, params)
    groups = HeadGroups.of(cfg, parts, rules.pad_heads and against is None)
    notes = [f"{groups} for {_over(layout, 'heads', 'kv_heads')}"] if groups else []

    def place(axes: Any, weight: Any) -> Any:
        weight = weight if groups is None else groups.weight(weight, axes)
        axes = weight.axes(axes) if is_quantized(weight) else axes
        return jax.tree.map(partial(layout.place, at_rest=True), weight, axes)

    cfg = cfg if groups is None else groups.config(cfg)
    axes = param_axes(cfg)
    placed = jax.tree.map(place, axes, params, is_leaf=_is_axes)
    padded = HeadGroups.of(cfg, parts, pad=True)
    more = None if padded is None else against or PAD
    return cfg, placed, (*notes, *_whole(axes, placed, layout, more))


def bytes_by_device(*trees: Any) -> dict[jax.Device, int]:
    """Count what arrays take on each device of this process."""
    found: dict[jax.Device, int] = {}
    for array in jax.tree.leaves(trees):
        for shard in array.addressable_shards if isinstance(array, jax.Array) else ():
            found[shard.device] = found.get(shard.device, 0) + shard.data.nbytes
    return found


def _whole(axes: Any, params: Any, layout: Sharding, more: str | None) -> list[str]:
    """Say what the rules would split and the mesh does not divide, equal ones once. more: to say of heads besides."""
    found: dict[str, list[str]] = {}

    def look(path: Any, axes: Any, weight: Any) -> None:
        name = ".".join(str(entry.key) for entry in path).removesuffix(".kernel").removesuffix(".embedding")
        for line in dict.fromkeys(_lines(axes, weight, layout)):
            found.setdefault(line, []).append(name)

    jax.tree_util.tree_map_with_path(look, axes, params, is_leaf=_is_axes)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {line}"
        + (f"; {more}" if more and " heads " in line.replace("kv_heads", "heads") and PACKED not in line else "")
        for line, names in found.items()
    ]


def _lines(axes: Any, weight: Any, layout: Sharding) -> Iterator[str]:
    pairs: Iterable[Any] = [(axes, weight)]
    if is_quantized(weight):
        stored = weight.axes(axes).arrays()
        pairs = [(stored[name], array) for name, array in weight.arrays().items()]
        kept = {axis for one in stored.values() for axis in one}
        for axis, size in zip(axes, weight.shape, strict=True):
            if axis not in kept and (over := _over(layout, axis)):
                yield f"{size} {axis} over {over} {PACKED}"
    for names, array in pairs:
        spec = layout.rules.spec(names, array.shape, layout.mesh, at_rest=True)
        for axis, size, chosen in zip(names, array.shape, spec, strict=True):
            used = chosen if isinstance(chosen, tuple) else (chosen,)
            left = [one for one in layout.rules.targets(axis, at_rest=True) if one not in used and layout.size(one) > 1]
            if left:
                over = ",".join(f"{one}={layout.size(one)}" for one in left)
                yield f"{size} {axis} over {over} stay whole on each device"


def _over(layout: Sharding, *axes: str) -> str:
    """Name the axes of the mesh that split these, such as tensor=4."""
    targets = dict.fromkeys(one for axis in axes for one in layout.rules.targets(axis, at_rest=True))
    return ",".join(f"{one}={layout.size(one)}" for one in targets if layout.size(one) > 1)
