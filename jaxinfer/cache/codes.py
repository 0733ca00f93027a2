"""Vectors in 8 bits with a scale each: the storage that policies write and kernels read."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

E4M3 = np.arange(256, dtype=np.uint8).view(jnp.dtype("float8_e4m3fn")).astype(np.float32)  # what the bits stand for


@struct.dataclass
class Codes:
    """Keys or values in 8 bits: codes[..., S, H] times scale[..., S]. The kernels read this format as it is."""

    codes: jax.Array  # int8 or float8_e4m3fn [..., S, H]; uint8: the bits of the latter, for plain XLA on a CPU
    scale: jax.Array  # float32[..., S]: one for each token and head


def quantize(x: jax.Array, dtype: Any) -> Codes:
    """Round x[..., S, H] to 8-bit codes with a scale for each of the last axis' vectors, symmetric, to nearest."""
    dtype = jnp.dtype(dtype)
    integer = jnp.issubdtype(dtype, jnp.integer)
    largest = float(jnp.iinfo(dtype).max if integer else jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    top = jnp.max(jnp.abs(x), axis=-1, initial=0.0)  # latent attention stores values of width 0
    scale = jnp.where(top > 0, top / largest, 1.0)
    scaled = x / scale[..., None]
    return Codes((jnp.round(scaled) if integer else scaled).astype(dtype), scale)


def dequantize(stored: Codes, dtype: Any) -> jax.Array:
    """Undo `quantize`: [..., S, H]."""
    codes = stored.codes
    numbers = jnp.asarray(E4M3)[codes.astype(jnp.int32)] if codes.dtype == jnp.uint8 else codes.astype(jnp.float32)
    return (numbers * stored.scale[..., None]).astype(dtype)


def through(stored: Any, layer: jax.Array, pages: jax.Array) -> Any:
    """Give what blocks i32[B, n] of one layer's pools [L, P, K, block, ...] hold: leaves [B, K, n * block, ...]."""

    def read(pool):
        found = jnp.moveaxis(pool[layer, pages], 1, 2)
        return found.reshape(*found.shape[:2], -1, *found.shape[4:])

    return jax.tree.map(read, stored)
