"""Products in plain XLA that weight formats share: matrix products, converted block by block, or of integers.

On a CPU, XLA makes a converted copy of the weights before a product with them, so what counts is how large that copy
is, or that there is none: see `elementwise_products` for a few rows. The rest converts no more than `BLOCK` outputs at
a time, or makes the activations integers instead of the weights floats.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.sharding import choices, layouts

BLOCK = 4096  # outputs that are converted at once: a head as a whole would be a copy of 100 MB and more


def dot(x: jax.Array, w: jax.Array, out: Any = jnp.float32, few: bool = False) -> jax.Array:
    """x[rows, in] times w[outputs, in] -> out[rows, outputs]. few: as many rows as a decode step has."""
    if few and len(x) > 1 and choices.WEIGHT_ON_THE_LEFT.here():  # see `layers.linear`
        return jax.lax.optimization_barrier(dot(w, x, out)).T
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=out)


def digits(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """x float32[rows, in] -> digits i8[count, rows, in] and scales f32[count, rows, 1], whose products add up to x.

    Each digit is the nearest to what those before it have left, which is at most half of their step.
    """
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    scale = jnp.where(scale > 0, scale, 1.0)
    found, scales = [], []
    for _ in range(count):
        digit = jnp.clip(jnp.round(x / scale), -127, 127)
        found.append(digit.astype(jnp.int8))
        scales.append(scale)
        x, scale = x - digit * scale, scale / 254
    return jnp.stack(found), jnp.stack(scales)


def by_digits(x: jax.Array, codes: jax.Array, count: int) -> jax.Array:
    """x float32[rows, in] times codes i8[out, in], in integers -> float32[rows, out].

    What three digits leave of an activation is below 2^-23 of the largest in its row.
    """
    parts, scales = digits(x, count)
    flat = parts.reshape(-1, x.shape[-1])
    if len(flat) == 1:  # the library of products takes two rows or more
        flat = jnp.concatenate([flat, flat])
    sums = dot(flat, codes, jnp.int32, few=len(flat) <= 64)[: count * len(x)]
    return jnp.sum(sums.reshape(count, len(x), -1).astype(jnp.float32) * scales, axis=0)


def in_blocks(product: Callable[[Any], jax.Array], weight: Any) -> jax.Array:
    """product(weight) -> [rows, out], `BLOCK` rows of a weight [out, ...] at a time.

    On a mesh, all at once: its rows may lie on several devices, and a block of them would be gathered.
    """
    n_out = jax.tree.leaves(weight)[0].shape[0]
    if n_out <= 2 * BLOCK or layouts.active() is not None:
        return product(weight)

    def block(start: jax.Array) -> jax.Array:
        return product(jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, BLOCK), weight))

    whole = n_out // BLOCK
    y = jnp.moveaxis(jax.lax.map(block, jnp.arange(whole) * BLOCK), 0, 1)
    y = y.reshape(y.shape[0], math.prod(y.shape[1:]))
    if whole * BLOCK < n_out:
        tail = product(jax.tree.map(lambda a: a[whole * BLOCK :], weight))
        y = jnp.concatenate([y, tail], axis=1)
    return y
