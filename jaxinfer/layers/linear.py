"""The one place where activations meet weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.layers.stacked import parameter, with_layer


def matmul(x: jax.Array, kernel: Any, shape: tuple[int, ...], n_in: int = 1, layer: jax.Array | None = None):
    """x[..., *in] @ kernel[*in, *out] -> float32[..., *out]; `shape` is [*in, *out], `in` its first `n_in` axes.

    With `layer` i32[], the kernel is a stack [L, *in, *out] of which that one is used.
    """
    lead, inner, outer = x.shape[: x.ndim - n_in], shape[:n_in], shape[n_in:]
    rows, width = math.prod(lead), math.prod(inner)
    # Flat on both sides: a plain matrix product to the compiler. One row becomes a vector, so that nothing but the
    # product itself is left inside the branches of a `Separate` weight.
    flat = x.reshape(width) if rows == 1 else x.reshape(rows, width)

    def product(kernel: jax.Array) -> jax.Array:
        contract = (((flat.ndim - 1,), (0,)), ((), ()))
        return jax.lax.dot_general(flat, kernel.reshape(width, -1), contract, preferred_element_type=jnp.float32)

    y = product(kernel) if layer is None else with_layer(kernel, layer, product)
    return y.reshape(*lead, *outer)


class Linear(nn.Module):
    """A projection without bias. `shape` is [*in, *out]; `axes` names the logical axis of each dimension.

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
            return jax.random.normal(key, shape, dtype) * math.prod(self.shape[: self.n_in]) ** -0.5

        shape, axes = self.shape, self.axes
        if self.layers is not None:
            shape, axes = (self.layers, *shape), ("layers", *axes)
        kernel = parameter(self, "kernel", init, shape, axes, self.dtype)
        return matmul(x, kernel, self.shape, self.n_in, layer).astype(self.out_dtype or x.dtype)
