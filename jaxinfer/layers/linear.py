"""The one place where activations meet weights."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.layers.stacked import parameter, with_layer


def matmul(x: jax.Array, kernel: jax.Array, n_in: int = 1) -> jax.Array:
    """x[..., *in] @ kernel[*in, *out] -> float32[..., *out], contracting the last `n_in` axes of x.

    Both sides are flattened to two dimensions, so that every product is a plain matrix product to the compiler.
    """
    lead, inner, outer = x.shape[: x.ndim - n_in], kernel.shape[:n_in], kernel.shape[n_in:]
    y = jax.lax.dot_general(
        x.reshape(math.prod(lead), math.prod(inner)),
        kernel.reshape(math.prod(inner), math.prod(outer)),
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
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

        def product(kernel):
            return matmul(x, kernel, self.n_in).astype(self.out_dtype or x.dtype)

        if self.layers is None:
            return product(parameter(self, "kernel", init, self.shape, self.axes, self.dtype))
        shape, axes = (self.layers, *self.shape), ("layers", *self.axes)
        return with_layer(parameter(self, "kernel", init, shape, axes, self.dtype), layer, product)
