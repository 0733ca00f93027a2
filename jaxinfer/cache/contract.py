"""The contract of a cache policy."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import Cache
from jaxinfer.config import LayerKind, ModelConfig
from jaxinfer.errors import InputError
from jaxinfer.host.defaults import default


class CachePolicy(ABC):
    """The tokens that are kept, their format, and those that a query sees: a frozen dataclass, static under jit.

    A policy lies in a file of its own. The cache is read-only inside forward: the one place where it changes is
    `commit`, which writes what was accepted. So a rejected draft, a rollback and a padded row are all the same thing:
    not committing. It declares those members with a default that are not as below, each as a class attribute, a field
    or a property, as suits it. B: rows, L: layers, K: key/value heads, T: fresh tokens, H: head width.
    """

    @default
    def capacity(self) -> int | None:
        """Count the slots of a row; None: as many as the generation at hand needs."""
        return None

    @default
    def exact(self) -> bool:
        """Tell whether its logits are those of all keys and values as computed."""
        return True

    @default
    def unbounded(self) -> tuple[str, ...]:
        """Name those of its fields that are whole numbers and may be larger than the model's context."""
        return ()

    @abstractmethod
    def init(self, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
        """Make an empty cache for `batch` rows of at most `capacity` tokens."""

    @abstractmethod
    def encode(self, x: jax.Array) -> Any:
        """Turn x[..., H] into storage format. Fresh keys and values pass through decode(encode(x)) too."""

    @abstractmethod
    def decode(self, stored: Any, dtype: jnp.dtype) -> jax.Array:
        """Turn storage format back into [..., H].

        Kernels read two formats without it: an array of floats is the numbers themselves, and `kernels.contract.Codes`
        are codes times scales.
        """

    @abstractmethod
    def visible(self, kind: LayerKind, q_pos: jax.Array, kv_pos: jax.Array) -> jax.Array:
        """Tell what a query at q_pos may see of kv_pos (-1: an empty slot): bool. The arrays broadcast."""

    @abstractmethod
    def commit(self, cache: Cache, fresh: dict[str, Any], take: jax.Array | None, n: jax.Array, stats: Any) -> Cache:
        """Append the first n[B] of the fresh tokens that take[B, E] names (None: the first n, in order).

        fresh: by layer kind, (k, v) in storage format, [L, B, K, T, ...]; of recurrent layers, what `store.settle`
        takes.
        """

    @default
    def gather(self) -> Callable[[Cache, jax.Array], Cache] | None:
        """Make row i what row rows[i] is, `gather(cache, rows)`, for i32[R] rows; None: `store.gather` copies slots.

        A policy whose aux is not [B, ...] has one of its own.
        """
        return None

    def whole(self, tokens: int) -> int:
        """Count those of so many tokens, with which all rows begin, that the rows share once one has read them."""
        return 0

    def check_room(self, cfg: ModelConfig, lengths: Any, ends: Any, copies: int = 1, common: int = 0) -> None:
        """Raise InputError, before anything is written, if prompts of lengths[B] may overrun before ends[B] tokens.

        copies: rows that go on from each prompt. common: tokens with which all begin.
        """
        return None


def check_capacity(policy: CachePolicy, slots: int, what: str) -> None:
    """Raise InputError unless a policy has room for so many tokens of a row: what needs them is named."""
    if policy.capacity is not None and slots > policy.capacity:
        raise InputError(f"policy capacity={policy.capacity} is too small: {what} {slots} slots")
