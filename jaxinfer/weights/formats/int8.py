"""One symmetric scale an output, w = scale * code (LLM.int8, Dettmers et al. 2022, section 2)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.kernels import matmul
from jaxinfer.kernels.coded import CodedWeight
from jaxinfer.sharding import choices
from jaxinfer.weights import elementwise_products
from jaxinfer.weights.contract import Axes, WeightFormat, by_definition, in_layer, taken
from jaxinfer.weights.elementwise_products import LANES
from jaxinfer.weights.products import by_digits, dot, in_blocks
from jaxinfer.weights.qtensor import QTensor

ROWS = 4  # with more, products of several rows are faster than elementwise sums
DIGITS = 3
ROWS_BY_DIGITS = 2


@struct.dataclass
class Int8Weight(QTensor):
    """codes i8[..., *out, in], scale f32[..., *out].

    The inputs lie on one axis, however many axes the weight has there: an array's two last axes are tiled in a TPU's
    memory, and one that is tiled otherwise than a product wants it is copied before each.
    """

    codes: jax.Array
    scale: jax.Array


@dataclass(frozen=True)
class Int8(WeightFormat[Int8Weight]):
    """Codes from -127 to 127, rounded to nearest. activations: these are rounded to int8 too, by row (W8A8)."""

    activations: bool = False
    moves_inputs: ClassVar[bool] = True

    def encode(self, w: jax.Array, n_in: int = 1) -> Int8Weight:
        """Round w[..., *out, *in]. An output of zeros has scale 1."""
        outer, inputs = w.shape[: w.ndim - n_in], w.shape[w.ndim - n_in :]
        w = jnp.asarray(w, jnp.float32).reshape(*outer, -1)
        largest = jnp.max(jnp.abs(w), axis=-1)
        scale = jnp.where(largest > 0, largest / 127, 1.0)
        codes = jnp.clip(jnp.round(w / scale[..., None]), -127, 127).astype(jnp.int8)
        return Int8Weight(self, inputs, codes, scale)

    def decode(self, weight: Int8Weight) -> jax.Array:
        numbers = weight.codes.astype(jnp.float32) * weight.scale[..., None]
        return numbers.reshape(*weight.codes.shape[:-1], *weight.inputs)

    def axes(self, weight: Int8Weight, axes: Axes) -> dict[str, Axes]:
        """Split several inputs as the first of them is."""
        return {"codes": axes[: weight.codes.ndim], "scale": axes[: weight.scale.ndim]}

    def take_inputs(self, weight: Int8Weight, index: tuple[int, ...]) -> Int8Weight:
        width = math.prod(weight.inputs[1:])
        return Int8Weight(self, (len(index), *weight.inputs[1:]), taken(weight.codes, width, index, 0), weight.scale)

    def product(
        self, x: jax.Array, weight: Int8Weight, n_out: int, few: bool, layer: jax.Array | None = None
    ) -> jax.Array:
        """Multiply by a kernel, by elementwise sums, or in plain XLA; integers times integers by the last alone."""
        if not self.activations:
            row = matmul.choose(x, "int8", n_out)
            if row.name == "pallas":
                return matmul.by_kernel(row, x, CodedWeight("int8", weight.codes, weight.scale), layer)
            if row.name == "reference":
                return in_layer(partial(by_definition, x), weight, layer)
            if elementwise_products.fits(len(x), x.shape[1], ROWS):
                return by_sums(x.astype(jnp.float32), weight, n_out, layer)
        return in_layer(partial(self._plain, x, few=few), weight, layer)

    def _plain(self, x: jax.Array, weight: Int8Weight, few: bool) -> jax.Array:
        """Multiply in plain XLA.

        On a CPU one row or two are the sum of three int8 digits of falling scale, rows of one product of integers,
        which reads the codes as they are. W8A8 is the first of these digits alone.
        """
        rows, width = x.shape
        codes, scale = weight.codes.reshape(-1, width), weight.scale.reshape(-1)
        if self.activations:
            return by_digits(x.astype(jnp.float32), codes, 1) * scale
        if not choices.CONVERT_IN_BLOCKS.here():
            return dot(x, codes.astype(x.dtype)) * scale
        x = x.astype(jnp.float32)
        if rows <= ROWS_BY_DIGITS:
            return by_digits(x, codes, DIGITS) * scale
        return in_blocks(lambda c: dot(x, c.astype(jnp.float32), few=few), codes) * scale


def by_sums(x: jax.Array, weight: Int8Weight, n_out: int, layer: jax.Array | None) -> jax.Array:
    """x float32[rows, in] times the weight [*out, *in], or layer i32[] of a stack of them -> float32[rows, n_out]."""
    codes = elementwise_products.stack(weight.codes, n_out, layer)
    scale, which = elementwise_products.stack(weight.scale, n_out, layer)

    def term(j: int, start: jax.Array | int, count: int) -> jax.Array:
        return elementwise_products.part(codes, start, count, j * LANES, LANES).astype(jnp.float32)

    y = elementwise_products.product(x, n_out, term)
    return y * jax.lax.dynamic_index_in_dim(scale, which, keepdims=False)[:, 0]
