"""Slots over the devices of a mesh axis: which device holds which slot, and what it does with its own.

Slot s of a store lies on device s modulo C of the C devices that share the slots, as the device's own slot s // C. A
text fills its slots in order, so whatever part of the capacity is in use, and whatever window of it a layer sees,
devices hold equal shares of that, to within one slot; in contiguous ranges the first devices would do all the work of a
short text, and one or two that of a window. It also makes the exchange of a prompt's tokens regular (striped attention,
Brandon et al. 2023, stripes queries for the same reason). Reading costs nothing more: `Store.pos` says what a slot
holds, in any order. A device reads whole blocks of its own, so a store has a whole number of them for each
(`store.round_up`). The blocks of a pool are split within: a device holds each block's slots that are its own, and the
tables of pages are the same on all.

What is here runs in `shard_map` over the whole mesh: each device sees its part of a store as a store. Programs whose
mesh splits no slots never get here.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxinfer.sharding import layouts
from jaxinfer.sharding.layouts import Sharding

Entry = str | tuple[str, ...] | None  # of a PartitionSpec: the mesh axes of a dimension


def names_of(entry: Entry) -> tuple[str, ...]:
    """List the mesh axes of a dimension."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def devices_of(layout: Sharding | None) -> int:
    """Count the devices that share the slots of a row by these rules; 1 without a mesh."""
    if layout is None:
        return 1
    return math.prod(layout.size(name) for name in dict.fromkeys(layout.rules.targets("slots")))


@dataclass(frozen=True)
class Split:
    """The layout of a store whose slots are split, as mesh axes of its dimensions."""

    layout: Sharding
    slots: tuple[str, ...]
    rows: Entry
    heads: Entry
    layers: Entry = None  # of stages, while none of them runs

    @property
    def parts(self) -> int:
        """Count the devices that share the slots of a row."""
        return math.prod(self.layout.size(name) for name in self.slots)

    def own(self) -> jax.Array:
        """Give the number of this device among those, i32[], inside of `run`."""
        return jax.lax.axis_index(self.slots)

    def of_store(self, store: Any) -> Any:
        """Give the layouts of a store's arrays. Pools of blocks are the same for all rows."""
        pooled = store.pages is not None
        stacked = PartitionSpec(self.layers, None if pooled else self.rows, self.heads, self.slots)
        keys, values = (jax.tree.map(lambda _: stacked, x) for x in (store.k, store.v))
        pages = PartitionSpec(self.rows) if pooled else None
        return store.replace(k=keys, v=values, pos=PartitionSpec(self.rows, self.slots), pages=pages)

    def whole(self, store: Any) -> Any:
        """Give the layouts of a store whose slots every device holds."""
        stacked = PartitionSpec(None, self.rows, self.heads)
        keys, values = (jax.tree.map(lambda _: stacked, x) for x in (store.k, store.v))
        return store.replace(k=keys, v=values, pos=PartitionSpec(self.rows), pages=None)

    def tokens(self, count: int) -> bool:
        """Tell whether the tokens of such a step are split over the same devices: those of a prompt are."""
        return names_of(self.layout.of(("tokens",), (count,)).spec[0]) == self.slots

    def run(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Make a function that runs on each device's parts of its arguments.

        Within another `shard_map`, such as that of stages, it splits over the mesh axes which that one leaves.
        """
        around = jax.sharding.get_abstract_mesh()
        mesh = self.layout.mesh if around.empty else around
        names = {*mesh.axis_names} - {*around.manual_axes}
        options: Any = {"axis_names": names, "check_vma": False}
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options)


def split_of(store: Any, layout: Sharding | None = None) -> Split | None:
    """Tell how the slots of a store are split in the program being traced, or by a layout; None: they are not.

    They are not where the mesh does not divide them, or the slots of a block: then each device holds them all.
    """
    layout = layouts.active() if layout is None else layout
    if devices_of(layout) == 1:
        return None
    assert layout is not None
    slots = store.pos.shape[1] if store.pages is None else store.pos.shape[1] // store.pages.shape[1]
    axes = names_of(layout.of(("slots",), (slots,)).spec[0])
    if math.prod(layout.size(name) for name in axes) == 1:
        return None
    stacked = jax.tree.leaves(store.k)[0].shape
    sizes = stacked[0], store.pos.shape[0], stacked[2]
    layers, rows, heads = layout.of(("layers", "batch", "kv_heads"), sizes).spec
    return Split(layout, axes, rows, heads, layers)


def last_in_use(split: Split, store: Any, extent: Callable[[Any], jax.Array]) -> jax.Array:
    """Give each device's own `extent`, slots from its first to its last in use in any of its rows: i32[devices]."""
    devices = (*names_of(split.rows), *split.slots)
    found = split.run(
        lambda pos: extent(pos).reshape(1), PartitionSpec(split.rows, split.slots), PartitionSpec(devices)
    )
    return found(store.pos)


Written = Callable[[Any, Any, jax.Array | None, jax.Array, jax.Array], Any]
"""(store, fresh, take, pos, slot) -> store: `store.write` on one device."""


def write(
    split: Split,
    written: Written,
    store: Any,
    fresh: Any,
    take: jax.Array | None,
    pos: jax.Array,
    slot: jax.Array,
    in_turn: bool,
) -> Any:
    """Write as `store.write` does: each device those tokens whose slots are its own.

    Tokens of a decode step are on every device, and nothing moves. Those of a prompt are split over the devices by
    place: where consecutive tokens go to consecutive slots (`in_turn`), each device sends every other one the tokens
    that are its, one all-to-all of 1 / C of the chunk; else the chunk is gathered.
    """
    if store.pages is not None:
        split = dataclasses.replace(split, rows=None)  # a pool is the same on all devices, so all write all rows
    rows, devices = split.rows, split.parts
    width = jax.tree.leaves(fresh)[0].shape[3]
    exchange = in_turn and take is None and split.tokens(width)
    by_token = PartitionSpec(split.layers, rows, split.heads, split.slots if exchange else None)
    of_fresh = jax.tree.map(lambda _: by_token, fresh)

    def local(store, fresh, take, pos, slot):
        here, end = split.own(), store.pos.shape[1]
        if exchange:
            fresh, pos, slot = _exchanged(split, fresh, pos, slot, end * devices)
        mine = (slot % devices == here) & (slot < end * devices)
        return written(store, fresh, take, pos, jnp.where(mine, slot // devices, end))

    by_row = PartitionSpec(rows)
    of_store = split.of_store(store)
    in_specs = (of_store, of_fresh, None if take is None else by_row, by_row, by_row)
    return split.run(local, in_specs, of_store)(store, fresh, take, pos, slot)


def _exchanged(
    split: Split, fresh: Any, pos: jax.Array, slot: jax.Array, slots: int
) -> tuple[Any, jax.Array, jax.Array]:
    """Send tokens to the devices that hold their slots: fresh leaves [L, B, K, T / C, ...] become those of others.

    Returns them with their positions and slots, i32[B, n] of pos, slot i32[B, T]. Every device sends the same number to
    every one; what is too many has no slot.
    """
    devices, here = split.parts, split.own()
    count = pos.shape[1] // devices  # tokens that a device has
    each = -(-count // devices)
    first = pos[:, 0]  # a slot and its position are the same number modulo the devices

    def places(source: jax.Array, target: jax.Array) -> jax.Array:
        """Number the tokens of one device that another one holds: i32[B, ..., each]."""
        ahead = (target - first.reshape(-1, *(1,) * target.ndim) - source * count) % devices
        return ahead[..., None] + devices * jnp.arange(each, dtype=jnp.int32)

    everyone = jnp.arange(devices, dtype=jnp.int32)
    going = places(here, everyone).reshape(pos.shape[0], -1)  # i32[B, C * each]

    def send(x):
        index = jnp.minimum(going, count - 1).reshape(1, going.shape[0], 1, going.shape[1], *(1,) * (x.ndim - 4))
        chosen = jnp.take_along_axis(x, index, axis=3).reshape(*x.shape[:3], devices, each, *x.shape[4:])
        moved = jax.lax.all_to_all(chosen, split.slots, split_axis=3, concat_axis=3)
        return moved.reshape(*x.shape[:3], devices * each, *x.shape[4:])

    coming = places(everyone, here + jnp.zeros_like(everyone))  # i32[B, C, each]: of each source
    there = coming < count
    token = jnp.where(there, coming + (everyone * count)[:, None], 0).reshape(pos.shape[0], -1)
    of_token = [jnp.take_along_axis(x, token, axis=1) for x in (pos, slot)]
    dropped = jnp.where(there.reshape(token.shape), of_token[1], slots)
    return jax.tree.map(lambda x: send(x) if x.size else _empty(x, devices * each), fresh), of_token[0], dropped


def _empty(x: jax.Array, tokens: int) -> jax.Array:
    """Give an array without numbers, such as the values of latent attention are, for so many tokens."""
    return jnp.zeros((*x.shape[:3], tokens, *x.shape[4:]), x.dtype)


def reorder(split: Split, store: Any, rows: jax.Array, block: int) -> Any:
    """Give a store, not of pools, whose row i is what row rows[i] is: block by block, in place, each device its slots.

    Rows of other devices are gathered over the axes of rows, a block at a time.
    """
    over_rows = names_of(split.rows)

    def taken(x, rows, axis):
        whole = jax.lax.all_gather(x, over_rows, axis=axis, tiled=True) if over_rows else x
        return jnp.take(whole, rows, axis=axis, mode="clip")

    def local(store, rows):
        slots = jnp.arange(1, store.pos.shape[1] + 1, dtype=jnp.int32)
        used = jnp.max(jnp.where(store.pos >= 0, slots, 0))
        used = jax.lax.pmax(used, over_rows) if over_rows else used
        size = math.gcd(block, store.pos.shape[1])

        def one_block(i, x):
            part = jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=3)
            return jax.lax.dynamic_update_slice_in_dim(x, taken(part, rows, 1), i * size, axis=3)

        def step(i, kv):
            return jax.tree.map(lambda x: one_block(i, x), kv)

        k, v = jax.lax.fori_loop(0, (used + size - 1) // size, step, (store.k, store.v))
        return store.replace(k=k, v=v, pos=taken(store.pos, rows, 0))

    of_store = split.of_store(store)
    return split.run(local, (of_store, PartitionSpec(split.rows)), of_store)(store, rows)
