"""Floats in 8 bits, e4m3 (FP8 formats for deep learning, Micikevicius et al. 2022), with a scale for each output."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.kernels import matmul
from jaxinfer.sharding import choices
from jaxinfer.weights import elementwise_products
from jaxinfer.weights.contract import Axes, WeightFormat, taken
from jaxinfer.weights.elementwise_products import LANES
from jaxinfer.weights.qtensor import QTensor

LARGEST = 448.0  # of e4m3
ROWS = 2  # with more, products of several rows are faster than elementwise sums


@struct.dataclass
class FP8Weight(QTensor):
    """codes u8[..., *out, in], the bits of float8_e4m3fn; scale f32[..., *out].

    They are bits on every platform, so that a folder that one has written is what another reads.
    """

    codes: jax.Array
    scale: jax.Array


@dataclass(frozen=True)
class FP8(WeightFormat[FP8Weight]):
    """Codes in float8 (e4m3), rounded to nearest under the largest magnitude of an output."""

    moves_inputs: ClassVar[bool] = True

    def encode(self, w: jax.Array, n_in: int = 1) -> FP8Weight:
        """Round w[..., *out, *in]. An output of zeros has scale 1."""
        outer, inputs = w.shape[: w.ndim - n_in], w.shape[w.ndim - n_in :]
        w = jnp.asarray(w, jnp.float32).reshape(*outer, -1)
        largest = jnp.max(jnp.abs(w), axis=-1)
        scale = jnp.where(largest > 0, largest / LARGEST, 1.0)
        codes = jnp.clip(w / scale[..., None], -LARGEST, LARGEST).astype(jnp.float8_e4m3fn)
        return FP8Weight(self, inputs, jax.lax.bitcast_convert_type(codes, jnp.uint8), scale)

    def decode(self, weight: FP8Weight) -> jax.Array:
        whole = numbers(weight.codes) * weight.scale[..., None]
        return whole.reshape(*weight.codes.shape[:-1], *weight.inputs)

    def axes(self, weight: FP8Weight, axes: Axes) -> dict[str, Axes]:
        """Split several inputs as the first of them is."""
        return {"codes": axes[: weight.codes.ndim], "scale": axes[: weight.scale.ndim]}

    def take_inputs(self, weight: FP8Weight, index: tuple[int, ...]) -> FP8Weight:
        width = math.prod(weight.inputs[1:])
        return FP8Weight(self, (len(index), *weight.inputs[1:]), taken(weight.codes, width, index, 0), weight.scale)

    def product(
        self, x: jax.Array, weight: FP8Weight, n_out: int, few: bool, layer: jax.Array | None = None
    ) -> jax.Array:
        """Multiply a few rows by elementwise sums where that is best, and the rest with the numbers."""
        row = matmul.choose(x, repr(self), n_out)
        if row.name == "reference" or not elementwise_products.fits(len(x), x.shape[1], ROWS):
            return super().product(x, weight, n_out, few, layer)
        codes = elementwise_products.stack(weight.codes, n_out, layer)
        scale, which = elementwise_products.stack(weight.scale, n_out, layer)

        def term(j: int, start: jax.Array | int, count: int) -> jax.Array:
            return numbers(elementwise_products.part(codes, start, count, j * LANES, LANES))

        y = elementwise_products.product(x.astype(jnp.float32), n_out, term)
        return y * jax.lax.dynamic_index_in_dim(scale, which, keepdims=False)[:, 0]


def numbers(bits: jax.Array) -> jax.Array:
    """Decode the bits of float8_e4m3fn, to float32; none of them is NaN."""
    if not choices.FLOAT8_AS_BITS.here():
        return jax.lax.bitcast_convert_type(bits, jnp.float8_e4m3fn).astype(jnp.float32)
    wide = bits.astype(jnp.uint32)
    magnitude, sign = (wide & 0x7F) << 20, (wide & 0x80) << 24  # exponent and mantissa where float32 has them
    normal = jax.lax.bitcast_convert_type((magnitude + (120 << 23)) | sign, jnp.float32)  # biases of 127 and 7
    small = (wide & 7).astype(jnp.int32).astype(jnp.float32) * jnp.where(sign > 0, -(2.0**-9), 2.0**-9)
    return jnp.where(magnitude < 1 << 23, small, normal)
