"""Groups along the inputs, each with a scale and a minimum, w = scale * code + minimum (as GGUF's Q4_1)."""

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
from jaxinfer.weights.products import dot, in_blocks
from jaxinfer.weights.qtensor import QTensor

ROWS = 3  # with more, products of several rows are faster than elementwise sums


@struct.dataclass
class Int4Weight(QTensor):
    """codes u8[..., *out, P / 2], scale and minimum f32[..., *out, P / group]; P: all inputs, in pairs of groups.

    A byte holds two codes: the low nibbles are the first half of the inputs, the high nibbles the second half, so that
    unpacking is two cheap operations without a shuffle.
    """

    codes: jax.Array
    scale: jax.Array
    minimum: jax.Array

    @property
    def group(self) -> int:
        return 2 * self.codes.shape[-1] // self.scale.shape[-1]

    def halves(self) -> tuple[jax.Array, jax.Array]:
        """float32[..., *out, P / 2]: the first half of the padded inputs, and the second."""
        groups = self.scale.shape[-1] // 2

        def half(codes: jax.Array, at: slice) -> jax.Array:
            grouped = codes.astype(jnp.float32).reshape(*codes.shape[:-1], groups, -1)
            return (grouped * self.scale[..., at, None] + self.minimum[..., at, None]).reshape(codes.shape)

        return half(self.codes & 15, slice(groups)), half(self.codes >> 4, slice(groups, None))


@dataclass(frozen=True)
class Int4(WeightFormat[Int4Weight]):
    """Codes from 0 to 15 between the least and the largest weight of a group, rounded to nearest.

    Inputs that are no whole number of pairs of groups are padded; what pads a group is within its range.
    """

    group: int = 32
    # In int4 the embedding alone would cost SmolLM2 0.075 nats a token, and all that follows it nothing.
    embeddings: ClassVar[str | None] = "int8"
    moves_inputs: ClassVar[bool] = True

    def encode(self, w: jax.Array, n_in: int = 1) -> Int4Weight:
        """Round w[..., *out, *in]. A group of one number has scale 1."""
        w = jnp.asarray(w, jnp.float32)
        outer, inputs = w.shape[: w.ndim - n_in], w.shape[w.ndim - n_in :]
        w = w.reshape(*outer, -1)
        w = jnp.pad(w, (*((0, 0),) * len(outer), (0, -w.shape[-1] % (2 * self.group))), mode="edge")
        grouped = w.reshape(*outer, -1, self.group)
        least = jnp.min(grouped, axis=-1)
        spread = jnp.max(grouped, axis=-1) - least
        scale = jnp.where(spread > 0, spread / 15, 1.0)
        codes = jnp.clip(jnp.round((grouped - least[..., None]) / scale[..., None]), 0, 15).astype(jnp.uint8)
        low, high = jnp.split(codes.reshape(w.shape), 2, axis=-1)
        return Int4Weight(self, inputs, low | (high << 4), scale, least)

    def decode(self, weight: Int4Weight) -> jax.Array:
        whole = jnp.concatenate(weight.halves(), axis=-1)
        return whole[..., : math.prod(weight.inputs)].reshape(*weight.codes.shape[:-1], *weight.inputs)

    def axes(self, weight: Int4Weight, axes: Axes) -> dict[str, Axes]:
        """Leave packed inputs whole."""
        packed = (*axes[: weight.codes.ndim - 1], None)
        return {"codes": packed, "scale": packed, "minimum": packed}

    def take_inputs(self, weight: Int4Weight, index: tuple[int, ...]) -> Int4Weight:
        """Move codes and groups. A group that reaches over two heads becomes several with its scale and minimum."""
        width = math.prod(weight.inputs[1:])
        group = math.gcd(weight.group, width)

        def of_groups(a: jax.Array, fill: float) -> jax.Array:
            return taken(jnp.repeat(a, weight.group // group, axis=-1), width // group, index, fill, 2)

        codes = jnp.concatenate([weight.codes & 15, weight.codes >> 4], axis=-1)
        low, high = jnp.split(taken(codes, width, index, 0, 2 * group), 2, axis=-1)
        inputs = (len(index), *weight.inputs[1:])
        scale, minimum = of_groups(weight.scale, 1.0), of_groups(weight.minimum, 0.0)
        return Int4Weight(Int4(group), inputs, low | (high << 4), scale, minimum)

    def product(
        self, x: jax.Array, weight: Int4Weight, n_out: int, few: bool, layer: jax.Array | None = None
    ) -> jax.Array:
        """Multiply by a kernel, by elementwise sums, or in plain XLA."""
        name = "int4" if self.group == 32 else f"int4-{self.group}"  # as kernels call it
        row = matmul.choose(x, name, n_out)
        if row.name == "pallas":
            coded = CodedWeight(name, weight.codes, weight.scale, weight.minimum)
            return matmul.by_kernel(row, x, coded, layer)
        if row.name == "reference":
            return in_layer(partial(by_definition, x), weight, layer)
        rows, padded = len(x), 2 * weight.codes.shape[-1]
        if weight.group % LANES == 0 and elementwise_products.fits(rows, padded, ROWS):
            x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, padded - x.shape[1])))
            return by_sums(x, weight, n_out, layer)
        return in_layer(partial(_plain, x, few=few), weight, layer)


def _plain(x: jax.Array, weight: Int4Weight, few: bool) -> jax.Array:
    """Multiply in plain XLA, half by half of the inputs."""
    flat = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), weight)
    half = flat.codes.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, 2 * half - x.shape[1])))
    in_parts = choices.CONVERT_IN_BLOCKS.here()
    if in_parts:
        x = x.astype(jnp.float32)

    def product(part: Int4Weight) -> jax.Array:
        low, high = (y.astype(x.dtype) for y in part.halves())
        return dot(x[:, :half], low, few=few) + dot(x[:, half:], high, few=few)

    return in_blocks(product, flat) if in_parts else product(flat)


def by_sums(x: jax.Array, weight: Int4Weight, n_out: int, layer: jax.Array | None) -> jax.Array:
    """x float32[rows, P] times the weight [*out, P], or layer i32[] of a stack of them -> float32[rows, n_out]."""
    arrays = weight.codes, weight.scale, weight.minimum
    codes, scale, minimum = (elementwise_products.stack(a, n_out, layer) for a in arrays)
    half, group = weight.codes.shape[-1], weight.group
    x = x.reshape(len(x), 2, -1, LANES).swapaxes(1, 2)  # a term of each half in turn: both are in the same bytes

    def term(j: int, start: jax.Array | int, count: int) -> jax.Array:
        part = elementwise_products.part
        at, high = j // 2 * LANES, j % 2
        both = part(codes, start, count, at, LANES).astype(jnp.int32)  # widened once for both
        step, least = (part(a, start, count, (at + high * half) // group, 1) for a in (scale, minimum))
        return (both >> 4 if high else both & 15).astype(jnp.float32) * step + least

    return elementwise_products.product(x.reshape(len(x), -1), n_out, term)
