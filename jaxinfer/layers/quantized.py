"""Products with quantized weights: weight-only int8 and int4, and int8 times int8. Chosen statically from the shape.

A few rows may be multiplied by a kernel (`kernels/matmul.py`). The rest of this file is plain XLA.

On a CPU, XLA makes a converted copy of the weights before a product with them, so what counts is how large that copy
is, or that there is none:

- a few rows: elementwise code that converts in registers (`layers/lanes.py`), where the shape allows it.
- int8, one row or two elsewhere: activations as the sum of three int8 digits of falling scale. The digits are rows of
  one product of integers, which reads the codes as they are. What three digits leave of an activation is below 2^-23 of
  the largest in its row.
- W8A8: the first of these digits alone.
- int8 for more rows, and int4: converted to float32, no more than `BLOCK` outputs at a time.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.kernels import matmul
from jaxinfer.layers import lanes
from jaxinfer.layers.qtensor import Int4, Int8, QTensor
from jaxinfer.layers.stacked import with_layer
from jaxinfer.sharding.rules import platform

BLOCK = 4096  # outputs that are converted at once: a head as a whole would be a copy of 100 MB and more
DIGITS = 3
ROWS_BY_DIGITS = 2


def quantized_product(
    x: jax.Array, weight: QTensor, n_out: int, few: bool, layer: jax.Array | None = None
) -> jax.Array:
    """x[rows, in] times a QTensor [*out, *in] -> float32[rows, out], by the formulation that `kernels.matmul` chooses.

    With `layer` i32[], the weight is a stack of which that one is used. `few`: as many rows as a decode step has.
    """
    row = matmul.choose(x, weight, n_out)
    if row.name == "pallas":
        return matmul.by_kernel(row, x, weight, layer)
    if row.name == "xla" and (y := _by_lanes(x, weight, n_out, layer)) is not None:
        return y
    use = partial(matmul.definition, x) if row.name == "reference" else partial(_plain, x, few=few)
    return use(weight) if layer is None else with_layer(weight, layer, use)


def _by_lanes(x: jax.Array, weight: QTensor, n_out: int, layer: jax.Array | None) -> jax.Array | None:
    """The product, where `lanes` takes it."""
    rows, width = x.shape
    padded = width if isinstance(weight, Int8) else 2 * weight.codes.shape[-1]
    if not lanes.fits(rows, padded, weight.format.partition("-")[0]):
        return None
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, padded - width)))
    return lanes.int8(x, weight, n_out, layer) if isinstance(weight, Int8) else lanes.int4(x, weight, n_out, layer)


def _plain(x: jax.Array, weight: QTensor, few: bool) -> jax.Array:
    """A product in plain XLA."""
    rows, width = x.shape
    if isinstance(weight, Int8):
        codes, scale = weight.codes.reshape(-1, width), weight.scale.reshape(-1)
        if weight.activations:
            return _by_digits(x.astype(jnp.float32), codes, 1) * scale
        if platform() != "cpu":
            return _dot(x, codes.astype(x.dtype)) * scale
        x = x.astype(jnp.float32)
        if rows <= ROWS_BY_DIGITS:
            return _by_digits(x, codes, DIGITS) * scale
        return _in_blocks(lambda c: _dot(x, c.astype(jnp.float32), few=few), codes) * scale
    flat = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), weight)
    half = flat.codes.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, 2 * half - width)))
    if platform() == "cpu":
        x = x.astype(jnp.float32)

    def product(part: Int4) -> jax.Array:
        low, high = (y.astype(x.dtype) for y in part.halves())
        return _dot(x[:, :half], low, few=few) + _dot(x[:, half:], high, few=few)

    return _in_blocks(product, flat) if platform() == "cpu" else product(flat)


def _dot(x: jax.Array, w: jax.Array, out: Any = jnp.float32, few: bool = False) -> jax.Array:
    if few and len(x) > 1 and platform() == "cpu":  # the weight on the left: see `linear`
        return jax.lax.optimization_barrier(_dot(w, x, out)).T
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


def _by_digits(x: jax.Array, codes: jax.Array, count: int) -> jax.Array:
    """x float32[rows, in] times codes i8[out, in], in integers -> float32[rows, out]."""
    parts, scales = digits(x, count)
    flat = parts.reshape(-1, x.shape[-1])
    if len(flat) == 1:  # the library of products takes two rows or more
        flat = jnp.concatenate([flat, flat])
    sums = _dot(flat, codes, jnp.int32, few=len(flat) <= 64)[: count * len(x)]
    return jnp.sum(sums.reshape(count, len(x), -1).astype(jnp.float32) * scales, axis=0)


def _in_blocks(product: Callable[[Any], jax.Array], weight: Any) -> jax.Array:
    """product(weight) -> [rows, out], `BLOCK` rows of a weight [out, ...] at a time."""
    n_out = jax.tree.leaves(weight)[0].shape[0]
    if n_out <= 2 * BLOCK:
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
