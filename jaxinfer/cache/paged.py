"""Blocks of one pool instead of slots of one's own: rows share what they have in common."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.cache.codes import dequantize
from jaxinfer.cache.contract import CachePolicy
from jaxinfer.cache.dense import append, check_capacity
from jaxinfer.cache.quantized import Format, check_format, encode
from jaxinfer.cache.store import (
    BLOCK,
    Cache,
    States,
    Store,
    as_numbers,
    as_stored,
    causal,
    empty_store,
    move_states,
    round_up,
    take_rows,
)
from jaxinfer.config import LayerKind, ModelConfig
from jaxinfer.errors import InputError

SMALLEST = 16


@struct.dataclass
class Pool:
    """The holders of the P blocks of a store, and the blocks that are free."""

    holders: jax.Array  # i32[P]: rows whose table names the block
    free: jax.Array  # i32[P]: a stack, of which the first n_free are free blocks
    n_free: jax.Array  # i32[]

    @classmethod
    def of(cls, holders: jax.Array) -> "Pool":
        size = holders.shape[0]
        free = jnp.nonzero(holders == 0, size=size, fill_value=size)[0].astype(jnp.int32)
        return cls(holders, free, jnp.sum(holders == 0, dtype=jnp.int32))


@dataclass(frozen=True)
class Paged(CachePolicy):
    """Every token, in blocks from a pool that rows share; local layers keep their window only. Exact without a format.

    A row takes a block when its text reaches it, so less than one block a row is reserved in vain. Rows with the same
    beginning, the prompts of a call or the beams of a search, hold the same blocks; who writes into a block that others
    hold writes into a copy (PagedAttention, Kwon et al. 2023, sections 4.3 and 4.4). There is one pool for each kind of
    layer.

    block: tokens of a block, a power of two of at least 16 (kernels: 128 on TPU, 64 on GPU, else plain XLA runs). pool:
    blocks of a pool; None: as many as all rows can need. format: of the storage, "int8" or "fp8"; None: as computed.
    """

    capacity: int | None = None
    block: int = 128
    pool: int | None = None
    format: Format | None = None
    unbounded: ClassVar[tuple[str, ...]] = ("pool",)  # no more of it is taken than all rows can need

    def __post_init__(self) -> None:
        check_capacity(self)
        if self.block < SMALLEST or self.block & (self.block - 1):
            raise InputError(f"block={self.block} must be a power of two, {SMALLEST} or above")
        if self.pool is not None and self.pool < 1:
            raise InputError(f"pool={self.pool} must be at least 1 block, or left out")
        if self.format is not None:
            check_format(self.format)

    @property
    def exact(self) -> bool:
        return self.format is None

    def init(self, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
        stores: dict[str, Any] = {}
        pools = {}
        for kind in cfg.kinds:
            slots = self._slots(kind, capacity)
            size = self._size(batch, slots)
            if kind.mixer:
                stores[kind.name] = empty_store(cfg, kind, batch, slots, dtype)
                continue
            blocks: Any = empty_store(cfg, kind, size, self.block, dtype, self.encode)
            pages = jnp.zeros((batch, slots // self.block), jnp.int32)
            stores[kind.name] = Store(blocks.k, blocks.v, jnp.full((batch, slots), -1, jnp.int32), pages)
            pools[kind.name] = Pool.of(jnp.zeros(size, jnp.int32))
        return Cache(stores, length=jnp.zeros(batch, jnp.int32), aux=pools, policy=self)

    def _slots(self, kind: LayerKind, capacity: int) -> int:
        return round_up(min(capacity, kind.window or capacity), max(self.block, BLOCK))

    def _size(self, batch: int, slots: int) -> int:
        """Count the blocks of a pool for so many rows."""
        most = batch * (slots // self.block)
        return most if self.pool is None else min(self.pool, most)

    def encode(self, x: jax.Array) -> Any:
        return as_stored(x) if self.format is None else encode(x, self.format)

    def decode(self, stored: Any, dtype: jnp.dtype) -> jax.Array:
        return as_numbers(stored, dtype) if self.format is None else dequantize(stored, dtype)

    def visible(self, kind: LayerKind, q_pos: jax.Array, kv_pos: jax.Array) -> jax.Array:
        return causal(kind, q_pos, kv_pos)

    def commit(self, cache: Cache, fresh: dict[str, Any], take: jax.Array | None, n: jax.Array, stats: Any) -> Cache:
        stores, pools = dict(cache.stores), {}
        for name, pool in cache.aux.items():
            width = jax.tree.leaves(fresh[name])[0].shape[3] if take is None else take.shape[1]
            stores[name], pools[name] = reserve(stores[name], pool, cache.length, n, width)
        return append(dataclasses.replace(cache, stores=stores, aux=pools), fresh, take, n)

    def gather(self, cache: Cache, rows: jax.Array) -> Cache:
        """Gather as `store.gather`: rows that are taken twice share their blocks; those that no row holds are free."""
        length, prompt = jax.tree.map(lambda x: take_rows(x, rows), (cache.length, cache.prompt))
        stores: dict[str, Any] = {}
        pools = {}
        for name, store in cache.stores.items():
            if isinstance(store, States):
                stores[name] = move_states(store, rows)
                continue
            size = max(self._size(len(rows), store.pos.shape[1]), cache.aux[name].holders.shape[0])
            stores[name] = _moved(store, rows, size)
            used = jnp.arange(store.pages.shape[1]) < _blocks_of(stores[name], length)[:, None]
            held = jnp.where(used, stores[name].pages, size)
            pools[name] = Pool.of(jnp.zeros(size, jnp.int32).at[held].add(1, mode="drop"))
        return dataclasses.replace(cache, stores=stores, length=length, prompt=prompt, aux=pools)

    def whole(self, tokens: int) -> int:
        """Count the tokens in whole blocks, which rows share, of so many that they have in common."""
        return tokens // self.block * self.block

    def check_room(self, cfg: ModelConfig, lengths: Any, ends: Any, copies: int = 1, common: int = 0) -> None:
        """Raise InputError if rows whose prompts have lengths[B] tokens may overrun the pool before ends[B] tokens.

        The newest token has no slot. copies: rows that go on from each prompt. common: tokens with which all begin.
        """
        if self.pool is None:
            return
        lengths, last = np.asarray(lengths) - 1, np.asarray(ends) - 1
        for kind in cfg.kinds:
            if kind.mixer:
                continue
            slots = self._slots(kind, int(last.max()))
            blocks = -(-np.minimum(last, slots) // self.block)
            # A ring comes back to its first blocks, and then they are shared no more.
            alike, begin = (0, 0) if last.max() > slots else (lengths // self.block, common // self.block)
            own = alike * (copies > 1)
            need = int(np.sum(own + copies * (blocks - own))) - (len(lengths) - 1) * begin
            if need > self.pool:
                raise InputError(
                    f"policy pool={self.pool} blocks of {self.block} tokens is too small: these prompts and their new "
                    f"tokens may need {need}; raise pool to that, or leave it out"
                )


def blocks_in_use(cache: Cache) -> dict[str, int]:
    """Count, by layer kind, the blocks of the pool that rows hold."""
    return {name: int(pool.holders.shape[0] - pool.n_free) for name, pool in cache.aux.items()}


def reserve(store: Store, pool: Pool, length: jax.Array, n: jax.Array, width: int) -> tuple[Store, Pool]:
    """Make each row the only holder of the blocks that its next n[B] of at most `width` tokens go into.

    It takes blocks that it has not reached before from the free ones. A block that others hold too is copied; if all of
    them are about to write, the first of them keeps it. With a free block for each that can be needed (`check_room`)
    none is missing; a token without a block would be dropped.
    """
    table = _table(store)
    batch, per_row = table.shape
    size, slots = pool.holders.shape[0], store.pos.shape[1]
    block = slots // per_row
    start = jnp.maximum(length, length + n - slots)  # of tokens that meet in a slot of a ring only the last is written
    # A row that comes all round its ring ends in the block that it began with.
    reach = start[:, None] // block + jnp.arange(min(per_row, (width + block - 2) // block + 1), dtype=jnp.int32)
    touched = (n[:, None] > 0) & (reach * block < (length + n)[:, None])
    place = reach % per_row
    rows = jnp.broadcast_to(jnp.arange(batch, dtype=jnp.int32)[:, None], place.shape)
    held = jnp.take_along_axis(table, place, axis=1)

    rewrites = touched & (place < _blocks_of(store, length)[:, None])
    at = jnp.where(rewrites, held, size)
    writers = jnp.zeros(size, jnp.int32).at[at].add(1, mode="drop")
    first = jnp.full(size, batch, jnp.int32).at[at].min(rows, mode="drop")
    keeps = (writers[held] == pool.holders[held]) & (first[held] == rows)
    copies = rewrites & ~keeps
    wanted = copies | (touched & ~rewrites)

    rank = jnp.cumsum(wanted.reshape(-1), dtype=jnp.int32).reshape(wanted.shape)
    taken = jnp.where(wanted & (rank <= pool.n_free), pool.free[jnp.maximum(pool.n_free - rank, 0)], size)
    holders = pool.holders.at[jnp.where(copies, held, size)].add(-1, mode="drop").at[taken].add(1, mode="drop")
    n_free = jnp.maximum(pool.n_free - rank[-1, -1], 0)
    pages = table.at[rows, jnp.where(wanted, place, per_row)].set(taken, mode="drop")
    k, v = _copied((store.k, store.v), held, taken, copies & (taken < size))
    return dataclasses.replace(store, k=k, v=v, pages=pages), Pool(holders, pool.free, n_free)


def _copied(pools: Any, source: jax.Array, target: jax.Array, wanted: jax.Array) -> Any:
    """Give the pools with the contents of source blocks in target blocks too, where wanted: one by one, in place."""
    source, target, wanted = (x.reshape(-1) for x in (source, target, wanted))
    order = jnp.nonzero(wanted, size=wanted.shape[0], fill_value=0)[0]

    def one(i, pools):
        def move(x):
            block = jax.lax.dynamic_slice_in_dim(x, source[order[i]], 1, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(x, block, target[order[i]], axis=1)

        return jax.tree.map(move, pools)

    return jax.lax.fori_loop(0, jnp.sum(wanted, dtype=jnp.int32), one, pools)


def _table(store: Store) -> jax.Array:
    assert store.pages is not None
    return store.pages


def _blocks_of(store: Store, length: jax.Array) -> jax.Array:
    """Give i32[B]: how many blocks rows of length[B] tokens hold: the first of their table."""
    slots = store.pos.shape[1]
    block = slots // _table(store).shape[1]
    return (jnp.minimum(length, slots) + block - 1) // block


def _moved(store: Store, rows: jax.Array, size: int) -> Store:
    """Give a store whose row i has the blocks of row rows[i], in pools of `size` blocks: as many as now, or more."""

    def grown(x: jax.Array) -> jax.Array:
        more = size - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2))) if more else x

    k, v = jax.tree.map(grown, (store.k, store.v))
    return Store(k, v, take_rows(store.pos, rows), take_rows(_table(store), rows))
