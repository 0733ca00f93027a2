"""Keep every token."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.cache.contract import CachePolicy
from jaxinfer.cache.store import Cache, States, as_numbers, as_stored, causal, empty_store, round_up, settle, write
from jaxinfer.config import LayerKind, ModelConfig
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed


@dataclass(frozen=True)
class Dense(CachePolicy):
    """Every token keeps its keys and values, in every layer; the slot of a token is its position."""

    capacity: int | None = None

    def __post_init__(self) -> None:
        check_capacity(self)

    def init(self, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
        slots = round_up(capacity)
        stores = {kind.name: empty_store(cfg, kind, batch, slots, dtype, self.encode) for kind in cfg.kinds}
        return Cache(stores, length=jnp.zeros(batch, jnp.int32), aux=None, policy=self)

    def encode(self, x: jax.Array) -> jax.Array:
        return as_stored(x)

    def decode(self, stored: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return as_numbers(stored, dtype)

    def visible(self, kind: LayerKind, q_pos: jax.Array, kv_pos: jax.Array) -> jax.Array:
        return causal(kind, q_pos, kv_pos)

    def commit(self, cache: Cache, fresh: dict[str, Any], take: jax.Array | None, n: jax.Array, stats: Any) -> Cache:
        return append(cache, fresh, take, n)


def check_capacity(policy: Any) -> None:
    """Raise InputError unless the fields of a policy are of their types, and `capacity` holds a token."""
    typed(policy)
    if policy.capacity is not None and policy.capacity < 1:
        raise InputError(f"capacity={policy.capacity} must be at least 1 slot, or left out")


def append(cache: Cache, fresh: dict[str, Any], take: jax.Array | None, n: jax.Array) -> Cache:
    """Write each row's next n tokens at slot = position modulo the store's size: a list, or a ring once it is full.

    Layers that carry a state keep the one after the last of them.
    """

    def into(store, new):
        if isinstance(store, States):
            return settle(store, new, take, n)
        width = jax.tree.leaves(new)[0].shape[3] if take is None else take.shape[1]
        slots = store.pos.shape[1]
        order = jnp.arange(width)
        pos = cache.length[:, None] + order
        # Only the last of the tokens that would meet in one slot of a ring is written: scatter order is undefined.
        written = (order < n[:, None]) & (order >= n[:, None] - slots)
        return write(store, new, take, pos, jnp.where(written, pos % slots, slots), in_turn=True)

    stores = {name: into(store, fresh[name]) for name, store in cache.stores.items()}
    return dataclasses.replace(cache, stores=stores, length=cache.length + n)
