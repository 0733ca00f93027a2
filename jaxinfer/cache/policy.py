"""The contract of a cache policy."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import Cache
from jaxinfer.config import LayerKind, ModelConfig


@runtime_checkable
class CachePolicy(Protocol):
    """Which tokens are kept, in what format, and which of them a query sees.

    A policy is a frozen dataclass, static under jit, in a file of its own. The cache is read-only inside forward: the
    one place where it changes is `commit`, which writes what was accepted. So a rejected draft, a rollback and a padded
    row are all the same thing: not committing.

    A policy may also have `exact`, False if its logits are not those of all keys and values as computed;
    `gather(cache, rows)` where its aux is not [B, ...]; and where rows share what they hold, `whole(tokens)`, how many
    of the tokens that all rows begin with they share, and `check_room(cfg, lengths, ends, copies, common)`, which
    raises InputError before anything is written if it may not be enough.
    """

    @property
    def capacity(self) -> int | None:
        """Slots per row; None: as many as the generation at hand needs."""

    def init(self, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
        """An empty cache for `batch` rows of at most `capacity` tokens."""

    def encode(self, x: jax.Array) -> Any:
        """x[..., H] to storage format. Fresh keys and values pass through decode(encode(x)) too."""

    def decode(self, stored: Any, dtype: jnp.dtype) -> jax.Array:
        """Storage format back to [..., H].

        Kernels read two formats without it: an array of floats is the numbers themselves, and `kernels.contract.Codes`
        are codes times scales.
        """

    def visible(self, kind: LayerKind, q_pos: jax.Array, kv_pos: jax.Array) -> jax.Array:
        """bool: what a query at q_pos may see of kv_pos (-1: an empty slot). The arrays broadcast."""

    def commit(self, cache: Cache, fresh: dict[str, Any], take: jax.Array | None, n: jax.Array, stats: Any) -> Cache:
        """Append the first n[B] of the fresh tokens that take[B, E] names (None: the first n, in order).

        fresh: by layer kind, (k, v) in storage format, [L, B, K, T, ...]; of recurrent layers, what `store.settle`
        takes.
        """
