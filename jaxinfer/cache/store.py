"""The parts of every cache policy: stores of slots, and the functions that fill and bound them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.cache import split
from jaxinfer.config import LayerKind, ModelConfig
from jaxinfer.errors import InputError
from jaxinfer.sharding import choices, layouts

BLOCK = 128
"""Slots come in blocks of this many: attention reads whole blocks, and a store holds a whole number of them."""

STORE_AXES = ("layers", "batch", "kv_heads", "slots", "head_dim")
"""Logical axes of a store's keys and values. K-major, so that what one head reads is contiguous."""


@struct.dataclass
class Store:
    """The slots of all layers of one kind. `k` and `v` are pytrees of arrays [L, B, K, S, ...] in storage format.

    With `pages` they are pools of blocks [L, P, K, block, ...] that the rows share, and slot s of a row lies in block
    pages[row, s // block]. Behind the last slot in use that is any block.
    """

    k: Any
    v: Any
    pos: jax.Array  # i32[B, S]: the position of the token in a slot, -1 if the slot is empty
    pages: jax.Array | None = None  # i32[B, S / block]


@struct.dataclass
class States:
    """The states of recurrent layers of one kind: a pytree of arrays [L, B, ...], as of each row's last token."""

    state: Any


@struct.dataclass
class Cache:
    """The committed tokens of every row. Forward reads it; only `policy.commit` writes it."""

    stores: dict[str, Any]  # by the name of the layer kind: Store, or States
    length: jax.Array  # i32[B]: tokens committed so far, whether they still have a slot or not
    aux: Any  # a policy's own state, for example attention mass
    policy: Any = struct.field(pytree_node=False)
    prompt: jax.Array | None = None  # i32[B]: tokens of the prompt, where rotary frequencies follow the length


def round_up(n: int, multiple: int | None = None) -> int:
    """Give the smallest multiple that is at least n; None: of a block for each device that shares a row's slots."""
    multiple = BLOCK * split.devices_of(layouts.active()) if multiple is None else multiple
    return -(-n // multiple) * multiple


def empty_store(
    cfg: ModelConfig,
    kind: LayerKind,
    batch: int,
    slots: int,
    dtype: jnp.dtype,
    encode: Callable[[jax.Array], Any] = lambda x: x,
) -> Store | States:
    """Make a store without tokens: zeros, because 0 x NaN from an unused slot would reach the output.

    encode: a policy's, from numbers of `dtype` to its storage format.
    """
    if kind.mixer:
        shapes = kind.mixer.carried(cfg)
        return States({name: jnp.zeros((cfg.count(kind), batch, *shape)) for name, shape in shapes.items()})
    heads, *widths = cfg.stored
    numbers = [jax.ShapeDtypeStruct((cfg.count(kind), batch, heads, slots, width), dtype) for width in widths]
    k, v = (jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(encode, x)) for x in numbers)
    return Store(k, v, pos=jnp.full((batch, slots), -1, jnp.int32))


def as_stored(x: jax.Array) -> jax.Array:
    """Numbers as they are; on a CPU bfloat16 as its bits, u16, for the reasons of `weights.bfloat16_bits`."""
    bits = x.dtype == jnp.bfloat16 and choices.BFLOAT16_AS_BITS.here()
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if bits else x


def as_numbers(stored: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Give the numbers again, in `dtype`."""
    if stored.dtype == jnp.uint16:
        stored = jax.lax.bitcast_convert_type(stored, jnp.bfloat16)
    return stored.astype(dtype)


def causal(kind: LayerKind, q_pos: jax.Array, kv_pos: jax.Array) -> jax.Array:
    """Apply causality and the layer's own window: what a query at q_pos may see of kv_pos (arrays that broadcast)."""
    seen = (kv_pos >= 0) & (kv_pos <= q_pos)
    return seen if kind.window is None else seen & (kv_pos > q_pos - kind.window)


def extent(store: Store) -> jax.Array:
    """Count the slots from the first to the last one in use, in any row, i32[]. Attention looks no further.

    Where devices share the slots, that is a number for each of them, of its own slots and rows: i32[devices].
    """
    shared = split.split_of(store)
    return _extent(store.pos) if shared is None else split.last_in_use(shared, store, _extent)


def _extent(pos: jax.Array) -> jax.Array:
    slots = jnp.arange(1, pos.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(pos >= 0, slots, 0))


def settle(store: States, fresh: Any, take: jax.Array | None, n: jax.Array) -> States:
    """Give the states after each row's n-th new token; where n is 0, those that were.

    fresh: leaves [L, B, T, ...], the state after every token, or [L, B, 1, ...], after the last one that counts.
    take: i32[B, E], which of the T are new; None: all, in order.
    """
    last = jnp.maximum(n - 1, 0)
    if take is not None:
        last = jnp.take_along_axis(take, last[:, None], axis=1)[:, 0]

    def pick(old: jax.Array, new: jax.Array) -> jax.Array:
        index = jnp.minimum(last, new.shape[2] - 1).reshape(1, -1, 1, *(1,) * (new.ndim - 3))
        chosen = jnp.take_along_axis(new, index, axis=2)[:, :, 0]
        return jnp.where((n > 0).reshape(1, -1, *(1,) * (old.ndim - 2)), chosen, old)

    return States(jax.tree.map(pick, store.state, fresh))


def rollback(cache: Cache, length: jax.Array) -> Cache:
    """Give the cache as it was when each row had its first length[B] tokens, or fewer.

    For caches that overwrite nothing: no rings, no pages, no states, no history in `aux`.
    """
    keep = jnp.minimum(cache.length, length)
    stores = {
        name: dataclasses.replace(store, pos=jnp.where(store.pos < keep[:, None], store.pos, -1))
        for name, store in cache.stores.items()
    }
    return dataclasses.replace(cache, stores=stores, length=keep)


def gather(cache: Cache, rows: jax.Array) -> Cache:
    """Give a cache whose row i is a copy of row rows[i] (i32[R], any R): a prompt that several rows continue.

    A policy whose `aux` is not a pytree of arrays [B, ...] has a method `gather(cache, rows)` of its own. Raises
    InputError where it is missing.
    """
    if cache.policy.gather is not None:
        return cache.policy.gather(cache, rows)
    if any(x.shape[:1] != cache.length.shape for x in jax.tree.leaves(cache.aux)):
        raise InputError(f"policy {type(cache.policy).__name__} cannot copy a row to another, as beams do: take Dense")

    def move(store: Store | States) -> Store | States:
        if isinstance(store, States):
            return move_states(store, rows)
        layered = partial(jax.tree.map, lambda x: take_rows(x, rows, axis=1))
        return Store(layered(store.k), layered(store.v), take_rows(store.pos, rows))

    stores = {name: move(store) for name, store in cache.stores.items()}
    length, aux, prompt = jax.tree.map(lambda x: take_rows(x, rows), (cache.length, cache.aux, cache.prompt))
    return dataclasses.replace(cache, stores=stores, length=length, aux=aux, prompt=prompt)


def reorder(cache: Cache, rows: jax.Array) -> Cache:
    """Do as `gather`, with as many rows as there are, in place, block of slots by block: beams go on from others.

    No slot after the last one in use is read or written, and the scratch it takes is one block.
    """
    if cache.policy.gather is not None:
        return cache.policy.gather(cache, rows)

    def move(store: Store) -> Store:
        shared = split.split_of(store)
        if shared is not None:
            return split.reorder(shared, store, rows, BLOCK)

        def one_block(i, x):
            block = jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis=3)
            return jax.lax.dynamic_update_slice_in_dim(x, take_rows(block, rows, axis=1), i * BLOCK, axis=3)

        blocks = -(-extent(store) // BLOCK)
        k, v = jax.lax.fori_loop(0, blocks, lambda i, kv: jax.tree.map(partial(one_block, i), kv), (store.k, store.v))
        return Store(k, v, take_rows(store.pos, rows))

    slots = {name: move(store) for name, store in cache.stores.items() if isinstance(store, Store)}
    rest = {name: store for name, store in cache.stores.items() if name not in slots}
    moved = gather(dataclasses.replace(cache, stores=rest), rows)
    return dataclasses.replace(moved, stores={**moved.stores, **slots})


def take_rows(x: jax.Array, rows: jax.Array, axis: int = 0) -> jax.Array:
    """Take rows i32[R] of an array."""
    return jnp.take(x, rows, axis=axis, mode="clip")


def move_states(store: States, rows: jax.Array) -> States:
    """Give states whose row i is that of row rows[i]."""
    return States(jax.tree.map(lambda x: take_rows(x, rows, axis=1), store.state))


def write(
    store: Store,
    fresh: tuple[Any, Any],
    take: jax.Array | None,
    pos: jax.Array,
    slot: jax.Array,
    in_turn: bool = False,
) -> Store:
    """Put fresh tokens into slots, in place when the cache is donated.

    fresh: (k, v), pytrees of [L, B, K, T, ...] in storage format. take: i32[B, E], which of the T go in; None: all, in
    order. pos, slot: i32[B, E]; a slot outside the store drops its token. in_turn: the position of a token and its slot
    are the same number modulo the store's size, and positions follow each other.
    """
    shared = split.split_of(store)
    if shared is not None:
        return split.write(shared, _written, store, fresh, take, pos, slot, in_turn)
    return _written(store, fresh, take, pos, slot)


def _written(store: Store, fresh: Any, take: jax.Array | None, pos: jax.Array, slot: jax.Array) -> Store:
    rows = jnp.arange(slot.shape[0])[:, None]
    block, offset = rows, slot
    if store.pages is not None:
        size = store.pos.shape[1] // store.pages.shape[1]
        nowhere = jnp.iinfo(jnp.int32).max
        block, offset = store.pages.at[rows, slot // size].get(mode="fill", fill_value=nowhere), slot % size

    def put(buffer, new):
        if take is not None:
            index = take.reshape(1, take.shape[0], 1, take.shape[1], *(1,) * (new.ndim - 4))
            new = jnp.take_along_axis(new, index, axis=3)
        if choices.INDEX_BY_INDEX.here():
            layers, heads = (jnp.arange(new.shape[at]).reshape(-1, *(1,) * (3 - at)) for at in (0, 2))
            return buffer.at[layers, block[:, None], heads, offset[:, None]].set(new, mode="drop")
        # Advanced indices around a slice put their axes in front: the update is [B, E, L, K, ...].
        return buffer.at[:, block, :, offset].set(jnp.moveaxis(new, (1, 3), (0, 1)), mode="drop")

    return dataclasses.replace(
        store,
        k=jax.tree.map(put, store.k, fresh[0]),
        v=jax.tree.map(put, store.v, fresh[1]),
        pos=store.pos.at[rows, slot].set(pos, mode="drop"),
    )
