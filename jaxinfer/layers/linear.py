"""The one place where activations meet weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.layers.stacked import parameter, with_layer
from jaxinfer.sharding.rules import platform


FEW_ROWS = 64


def matmul(x: jax.Array, kernel: Any, shape: tuple[int, ...], n_in: int = 1, layer: jax.Array | None = None):
    """x[..., *in] times kernel[*out, *in] -> float32[..., *out]; `shape` is [*out, *in], `in` its last `n_in` axes.

    With `layer` i32[], the kernel is a stack [L, *out, *in] of which that one is used.
    """
    lead, outer, inner = x.shape[: x.ndim - n_in], shape[:-n_in], shape[-n_in:]
    rows, width = math.prod(lead), math.prod(inner)
    # Flat on both sides: a plain matrix product to the compiler. One row becomes a vector, so that nothing but the
    # product itself is left inside the branches of a `Separate` weight.
    flat = x.reshape(width) if rows == 1 else x.reshape(rows, width)

    def product(kernel: jax.Array) -> jax.Array:
        return project(flat, kernel.reshape(-1, width))

    y = product(kernel) if layer is None else with_layer(kernel, layer, product)
    return y.reshape(*lead, *outer)


def project(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x[in] or x[rows, in] times weight[out, in] -> float32[out] or [rows, out].

    On a CPU a few rows go on the right-hand side. There the compiler packs the right operand anew in every call: best
    if that is the small one. (Twice as fast at 8 rows; the barrier keeps it from undoing the exchange.)
    """
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    if x.ndim == 2 and x.shape[0] <= FEW_ROWS and platform() == "cpu":
        y = jax.lax.dot_general(weight, x, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return jax.lax.optimization_barrier(y).T
    return jax.lax.dot_general(x, weight, contract, preferred_element_type=jnp.float32)


class Linear(nn.Module):
    """A projection without bias. `shape` is [*out, *in]; `axes` names the logical axis of each dimension.

    With `layers`, the kernel is a stack of that many, and the call says which one. The result has x's dtype, or
    `out_dtype` if one is given.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    n_in: int = 1
    dtype: jnp.dtype = jnp.float32
    out_dtype: jnp.dtype | None = None
    layers: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array | None = None) -> jax.Array:
        def init(key, shape, dtype):
            return jax.random.normal(key, shape, dtype) * math.prod(self.shape[-self.n_in :]) ** -0.5

        shape, axes = self.shape, self.axes
        if self.layers is not None:
            shape, axes = (self.layers, *shape), ("layers", *axes)
        kernel = parameter(self, "kernel", init, shape, axes, self.dtype)
        return matmul(x, kernel, self.shape, self.n_in, layer).astype(self.out_dtype or x.dtype)
