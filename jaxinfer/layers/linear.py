"""The one place where activations meet weights."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.sharding import choices, layouts
from jaxinfer.weights import elementwise_products
from jaxinfer.weights.bfloat16_bits import WithBits
from jaxinfer.weights.layer_stack import layer_of, parameter, with_layer
from jaxinfer.weights.qtensor import is_quantized
from jaxinfer.weights.resting import Resting

FEW_ROWS = 64
CORES = os.cpu_count() or 1


def matmul(
    x: jax.Array, kernel: Any, shape: tuple[int, ...], n_in: int = 1, layer: jax.Array | None = None
) -> jax.Array:
    """x[..., *in] times kernel[*out, *in] -> float32[..., *out]; `shape` is [*out, *in], `in` its last `n_in` axes.

    With `layer` i32[], the kernel is a stack [L, *out, *in] of which that one is used.
    """
    lead, outer, inner = x.shape[: x.ndim - n_in], shape[:-n_in], shape[-n_in:]
    if len(lead) == 2 and layouts.token_axis(lead[1]):  # which could not be split as part of one long axis of rows
        return jax.vmap(lambda one: matmul(one, kernel, shape, n_in, layer))(x)
    rows, n_out, width = math.prod(lead), math.prod(outer), math.prod(inner)
    if isinstance(kernel, Resting):
        kernel, layer = kernel.layer(layer), None
    if is_quantized(kernel):
        y = kernel.format.product(x.reshape(rows, width), kernel, n_out, rows <= FEW_ROWS, layer)
        return y.reshape(*lead, *outer)
    if isinstance(kernel, WithBits):
        if elementwise_products.fits(rows, width, elementwise_products.BFLOAT16_ROWS):
            x = x.reshape(rows, width).astype(jnp.float32)
            return elementwise_products.bfloat16(x, kernel.bits, n_out, layer).reshape(*lead, *outer)
        kernel = kernel.weight
    product, finish = _formulation(x.reshape(rows, width), n_out)
    y = product(kernel) if layer is None else with_layer(kernel, layer, product)
    return finish(y).reshape(*lead, *outer)


def _formulation(x: jax.Array, n_out: int) -> tuple[Callable[[Any], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Choose how x[rows, in] meets a weight [n_out, in]: the product, and what brings its result into [rows, n_out].

    The product runs inside the branches of `LayerViews`, where nothing else should: all that can be done before or
    after it is. What is best on a CPU was measured (docs/cpu.md):

    - one row: a batch of matrix-vector products, one for each core, because the compiler leaves small ones to one core;
    - a few rows: the weights on the left. The compiler packs the right operand anew in every call, which had better be
      the small one. The barrier keeps it from undoing the exchange. Five rows cost more than eight, nine more than
      sixteen, so above four there are always whole eights;
    - many rows: as it is written.
    """
    rows, width = x.shape

    def dot(a: jax.Array, b: jax.Array, contract: tuple, batch: tuple = ((), ())) -> jax.Array:
        return jax.lax.dot_general(a, b, (contract, batch), preferred_element_type=jnp.float32)

    if not choices.WEIGHT_ON_THE_LEFT.here() or rows > FEW_ROWS:
        return lambda w: dot(x, w.reshape(n_out, width), ((1,), (1,))), lambda y: y
    if rows > 1:
        more = -rows % 8 if rows > 4 else 0
        whole = jnp.pad(x, ((0, more), (0, 0)))
        return (
            lambda w: dot(w.reshape(n_out, width), whole, ((1,), (1,))),
            lambda y: jax.lax.optimization_barrier(y).T[:rows],
        )
    parts = math.gcd(n_out, CORES)
    each = jnp.broadcast_to(x, (parts, width))
    return lambda w: dot(w.reshape(parts, -1, width), each, ((2,), (1,)), ((0,), (0,))), lambda y: y.reshape(1, n_out)


class Linear(nn.Module):
    """A projection. `shape` is [*out, *in]; `axes` names the logical axis of each dimension; a bias is [*out].

    With `layers`, the parameters are stacks of that many, and the call says which one. The result has x's dtype, or
    `out_dtype` if one is given.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    n_in: int = 1
    dtype: jnp.dtype = jnp.float32
    out_dtype: jnp.dtype | None = None
    layers: int | None = None
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array | None = None) -> jax.Array:
        def init(key, shape, dtype):
            return jax.random.normal(key, shape, dtype) * math.prod(self.shape[-self.n_in :]) ** -0.5

        stack = () if self.layers is None else (self.layers,)
        stacked = () if self.layers is None else ("layers",)
        kernel = parameter(self, "kernel", init, (*stack, *self.shape), (*stacked, *self.axes), self.dtype)
        y = matmul(x, kernel, self.shape, self.n_in, layer)
        if self.bias:
            shape, axes = (*stack, *self.shape[: -self.n_in]), (*stacked, *self.axes[: -self.n_in])
            bias = parameter(self, "bias", nn.initializers.zeros, shape, axes, self.dtype)
            y = y + layer_of(bias, layer)
        return y.astype(self.out_dtype or x.dtype)
