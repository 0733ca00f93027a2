"""Keys and values in 8 bits."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxinfer.cache.codes import Codes, dequantize, quantize
from jaxinfer.cache.contract import CachePolicy
from jaxinfer.cache.dense import append, check_capacity
from jaxinfer.cache.store import Cache, causal, empty_store, round_up
from jaxinfer.config import LayerKind, ModelConfig
from jaxinfer.errors import InputError, nearest
from jaxinfer.sharding import choices

Format = Literal["int8", "fp8"]
DTYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}


@dataclass(frozen=True)
class Quantized(CachePolicy):
    """Keys and values in 8 bits, with a scale for each token and head; local layers keep their window only.

    format: int8, or fp8 (float8_e4m3fn, Micikevicius et al. 2022), both rounded to nearest under the largest magnitude
    of the token's own vector. So a token's codes depend on nothing but that vector: those of a draft are those that it
    has once committed, and nothing is ever quantized again.
    """

    capacity: int | None = None
    format: Format = "int8"
    exact: ClassVar[bool] = False  # not the logits of a cache that stores what was computed

    def __post_init__(self) -> None:
        check_capacity(self)
        check_format(self.format)

    def init(self, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
        stores = {}
        for kind in cfg.kinds:
            slots = round_up(min(capacity, kind.window or capacity))
            stores[kind.name] = empty_store(cfg, kind, batch, slots, dtype, self.encode)
        return Cache(stores, length=jnp.zeros(batch, jnp.int32), aux=None, policy=self)

    def encode(self, x: jax.Array) -> Codes:
        return encode(x, self.format)

    def decode(self, stored: Codes, dtype: jnp.dtype) -> jax.Array:
        return dequantize(stored, dtype)

    def visible(self, kind: LayerKind, q_pos: jax.Array, kv_pos: jax.Array) -> jax.Array:
        return causal(kind, q_pos, kv_pos)

    def commit(self, cache: Cache, fresh: dict[str, Any], take: jax.Array | None, n: jax.Array, stats: Any) -> Cache:
        return append(cache, fresh, take, n)


def encode(x: jax.Array, name: Format) -> Codes:
    """Round x[..., H] to a format of 8 bits. On a CPU fp8 is kept as bits: XLA is slow at arrays of that type."""
    stored = quantize(x, DTYPES[name])
    if name == "fp8" and choices.FLOAT8_AS_BITS.here():
        return Codes(jax.lax.bitcast_convert_type(stored.codes, jnp.uint8), stored.scale)
    return stored


def check_format(name: Any) -> None:
    """Raise InputError unless `name` is a format of 8 bits."""
    if name not in DTYPES:
        raise InputError(f"format={name!r} must be {' or '.join(map(repr, DTYPES))}{nearest(str(name), DTYPES)}")
