"""Local layers keep their window only."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.cache.contract import CachePolicy
from jaxinfer.cache.dense import append, check_capacity
from jaxinfer.cache.store import Cache, as_numbers, as_stored, causal, empty_store, round_up
from jaxinfer.config import LayerKind, ModelConfig


@dataclass(frozen=True)
class Window(CachePolicy):
    """Layers with a sliding window keep a ring of that many tokens; the others keep every token. Exact.

    A query sees its window's last `window` tokens, itself among them, and the fresh tokens of a step are not in the
    cache: a ring of `window` slots is always enough, however wide the step (Mistral 7B, Jiang et al. 2023, section 2:
    rolling buffer cache).
    """

    capacity: int | None = None

    def __post_init__(self) -> None:
        check_capacity(self)

    def init(self, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
        slots = {kind: round_up(min(capacity, kind.window or capacity)) for kind in cfg.kinds}
        stores = {k.name: empty_store(cfg, k, batch, size, dtype, self.encode) for k, size in slots.items()}
        return Cache(stores, length=jnp.zeros(batch, jnp.int32), aux=None, policy=self)

    def encode(self, x: jax.Array) -> jax.Array:
        return as_stored(x)

    def decode(self, stored: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return as_numbers(stored, dtype)

    def visible(self, kind: LayerKind, q_pos: jax.Array, kv_pos: jax.Array) -> jax.Array:
        return causal(kind, q_pos, kv_pos)

    def commit(self, cache: Cache, fresh: dict[str, Any], take: jax.Array | None, n: jax.Array, stats: Any) -> Cache:
        return append(cache, fresh, take, n)
