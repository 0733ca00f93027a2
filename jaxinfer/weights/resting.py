"""Fully sharded weights: each lies split over more devices than compute with it, and is gathered when its layer runs.

ZeRO-3 (Rajbhandari et al. 2020, section 5) and FSDP (Zhao et al. 2023), for inference. `Rules.at_rest` says over which
mesh axes a weight is split besides. A layer is first taken out of its stack and then gathered, so that no more than one
lies whole; activations are never summed over those axes in its place, because each device has rows of its own.
"""

import dataclasses
from typing import Any

import jax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.sharding import layouts
from jaxinfer.weights.qtensor import is_quantized, take


@struct.dataclass
class Resting:
    """A weight, or a stack of them, as it lies.

    The layouts are those of its arrays, in the order of their leaves, and of axes counted from the last one: a stack of
    experts in layers may be reshaped into one stack.
    """

    weight: Any  # an array, or a QTensor
    rest: tuple[PartitionSpec, ...] = struct.field(pytree_node=False)  # as it lies
    use: tuple[PartitionSpec, ...] = struct.field(pytree_node=False)  # as it is computed with

    def layer(self, index: jax.Array | None = None) -> Any:
        """Take one layer of the stack, or all of what is no stack, and gather it."""
        leaves, tree = jax.tree.flatten(self.weight)
        if index is not None:
            leaves = [jax.lax.dynamic_index_in_dim(x, index, keepdims=False) for x in leaves]
        return jax.tree.unflatten(tree, [_gathered(*each) for each in zip(leaves, self.rest, self.use, strict=True)])

    def __getitem__(self, index: Any) -> Any:
        """Take that part of each array, and gather it."""
        return dataclasses.replace(self, weight=jax.tree.map(lambda x: x[index], self.weight)).layer()


def resting(weight: Any, axes: tuple[str | None, ...]) -> Any:
    """Give the weight as `Resting`, where the program being traced is for a mesh on which it lies otherwise than used.

    axes: its logical axes. On any other mesh, and on none, it is given as it is.
    """
    layout = layouts.active()
    if layout is None or not layout.rules.at_rest or isinstance(weight, Resting):
        return weight
    named = jax.tree.leaves(weight.axes(axes) if is_quantized(weight) else axes, is_leaf=lambda x: type(x) is tuple)
    sized = list(zip(named, jax.tree.leaves(weight), strict=True))
    rest = tuple(layout.rules.spec(names, x.shape, layout.mesh, at_rest=True) for names, x in sized)
    use = tuple(layout.rules.spec(names, x.shape, layout.mesh) for names, x in sized)
    return weight if rest == use else Resting(weight, rest, use)


def _gathered(x: jax.Array, rest: PartitionSpec, use: PartitionSpec) -> jax.Array:
    """Bring an array into the layout in which it is used. Layouts may begin with axes that it no longer has."""
    layout = layouts.active()
    assert layout is not None
    lying, wanted = (tuple(spec)[len(tuple(spec)) - x.ndim :] for spec in (rest, use))
    if lying == wanted:
        return x
    if layout.manual:
        for axis, (names, kept) in enumerate(zip(lying, wanted, strict=True)):
            for name in reversed([name for name in mesh_axes(names) if name not in mesh_axes(kept)]):
                x = jax.lax.all_gather(x, name, axis=axis, tiled=True)
        return x
    # The layout in which it lies is said too: else the compiler may gather the stack before it takes the layer.
    for spec in (lying, wanted):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*spec)))
    return x


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """List the mesh axes of one entry of a `PartitionSpec`."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def rows_of(table: Any, rows: jax.Array) -> jax.Array:
    """Take rows i32[B, T] of a table [V, D]: [B, T, D].

    Where the columns of the table lie on several devices, each gives its columns of all rows, and these are exchanged:
    that is less than the table.
    """
    if not isinstance(table, Resting):
        return take(table, rows, mode="clip")
    layout = layouts.active()
    assert layout is not None

    def axes_of(specs: tuple[PartitionSpec, ...]) -> set[str]:
        return {name for spec in specs for entry in tuple(spec) for name in mesh_axes(entry)}

    others = layout.rules.without(*axes_of(table.rest) - axes_of(table.use))
    by_row = others.spec(("batch", "tokens"), rows.shape, layout.mesh)
    rows = jax.lax.with_sharding_constraint(rows, NamedSharding(layout.mesh, by_row))
    found = take(table.weight, rows, mode="clip")
    columns = layout.rules.spec(("embed",), found.shape[-1:], layout.mesh, at_rest=True)
    return jax.lax.with_sharding_constraint(found, NamedSharding(layout.mesh, PartitionSpec(*by_row, *columns)))
