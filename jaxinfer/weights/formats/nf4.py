"""NormalFloat in 4 bits with double quantization (QLoRA, Dettmers et al. 2023, section 3).

A weight is scale * CODEBOOK[code], where the scale is the largest magnitude in a block of 64 inputs. The 16 numbers of
the codebook are quantiles of a normal distribution, with a zero among them (appendix E). The scales of a matrix are
rounded too, in blocks of 256, after their mean is taken off, which centers them. The paper's 8 bits are floats there;
here they are integers, whose error is the same for all.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.weights.contract import Axes, WeightFormat, taken
from jaxinfer.weights.qtensor import QTensor

CODEBOOK = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
ZERO = 7  # the code of zero
BETWEEN = (CODEBOOK[1:] + CODEBOOK[:-1]) / 2  # where the nearest number changes
BLOCK = 64  # inputs that share a scale
SCALES = 256  # scales that share a step


@struct.dataclass
class NF4Weight(QTensor):
    """Codes and twice quantized scales; P: all inputs in whole blocks of 64.

    codes u8[..., *out, P / 2], the low nibbles the first half of the inputs and the high ones the second; scale
    i8[..., *out, P / 64]; step f32[..., ceil(scales of the matrix / 256)]; mean f32[...].
    """

    codes: jax.Array
    scale: jax.Array
    step: jax.Array
    mean: jax.Array


@struct.dataclass
class Blocks(QTensor):
    """The same as `NF4Weight`, with its scales as numbers, f32[..., *out, P / 64], or of smaller blocks."""

    codes: jax.Array
    scale: jax.Array


@dataclass(frozen=True)
class NF4(WeightFormat[Any]):
    """NormalFloat codes in 4 bits, scales in 8 bits a block of 64: 4.13 bits a weight, more where blocks are padded."""

    embeddings: ClassVar[str | None] = "int8"
    moves_inputs: ClassVar[bool] = True

    def encode(self, w: jax.Array, n_in: int = 1) -> NF4Weight:
        outer, inputs = w.shape[: w.ndim - n_in], w.shape[w.ndim - n_in :]
        w = jnp.asarray(w, jnp.float32).reshape(*outer, -1)
        w = jnp.pad(w, (*((0, 0),) * len(outer), (0, -w.shape[-1] % BLOCK)))
        blocks = w.reshape(*outer, -1, BLOCK)
        largest = jnp.max(jnp.abs(blocks), axis=-1)
        scaled = blocks / jnp.where(largest > 0, largest, 1.0)[..., None]
        codes = jnp.searchsorted(jnp.asarray(BETWEEN), scaled, method="compare_all").astype(jnp.uint8).reshape(w.shape)
        low, high = jnp.split(codes, 2, axis=-1)
        mean = jnp.mean(largest)
        apart = (largest - mean).reshape(-1)
        in_steps = jnp.pad(apart, (0, -apart.size % SCALES)).reshape(-1, SCALES)
        furthest = jnp.max(jnp.abs(in_steps), axis=-1)
        step = jnp.where(furthest > 0, furthest / 127, 1.0)
        rounded = jnp.clip(jnp.round(in_steps / step[:, None]), -127, 127).astype(jnp.int8)
        scale = rounded.reshape(-1)[: apart.size].reshape(largest.shape)
        return NF4Weight(self, inputs, low | (high << 4), scale, step, mean)

    def by_output(self, weight: NF4Weight | Blocks) -> Blocks:
        """Make scales numbers before outputs are cut out: a step belongs to the scales of several outputs at once."""
        if isinstance(weight, Blocks):
            return weight
        shape = weight.scale.shape[weight.mean.ndim :]
        step = jnp.repeat(weight.step, SCALES, axis=-1)[..., : math.prod(shape)].reshape(*weight.mean.shape, *shape)
        mean = jnp.expand_dims(weight.mean, tuple(range(-len(shape), 0)))
        return Blocks(self, weight.inputs, weight.codes, weight.scale.astype(jnp.float32) * step + mean)

    def decode(self, weight: NF4Weight | Blocks) -> jax.Array:
        blocks = self.by_output(weight)
        outer, width = blocks.codes.shape[:-1], math.prod(blocks.inputs)
        codes = jnp.concatenate([blocks.codes & 15, blocks.codes >> 4], axis=-1)
        numbers = jnp.asarray(CODEBOOK)[codes.astype(jnp.int32)].reshape(*blocks.scale.shape, -1)
        numbers = numbers * blocks.scale[..., None]
        return numbers.reshape(*outer, -1)[..., :width].reshape(*outer, *blocks.inputs)

    def take_inputs(self, weight: NF4Weight | Blocks, index: tuple[int, ...]) -> Blocks:
        """Move codes and scales. A block that reaches over two heads becomes several with its scale."""
        blocks, width = self.by_output(weight), math.prod(weight.inputs[1:])
        before = 2 * blocks.codes.shape[-1] // blocks.scale.shape[-1]
        block = math.gcd(before, width)
        codes = jnp.concatenate([blocks.codes & 15, blocks.codes >> 4], axis=-1)
        low, high = jnp.split(taken(codes, width, index, ZERO, 2 * block), 2, axis=-1)
        scale = taken(jnp.repeat(blocks.scale, before // block, axis=-1), width // block, index, 0.0, 2)
        return Blocks(self, (len(index), *weight.inputs[1:]), low | (high << 4), scale)

    def from_plain(self, like: NF4Weight, arrays: dict[str, Any]) -> NF4Weight | Blocks:
        return super().from_plain(like, arrays) if "step" in arrays else Blocks(self, like.inputs, **arrays)

    def axes(self, weight: NF4Weight | Blocks, axes: Axes) -> dict[str, Axes]:
        """Leave packed inputs whole, and steps."""
        packed = (*axes[: weight.codes.ndim - 1], None)
        if isinstance(weight, Blocks):
            return {"codes": packed, "scale": packed}
        stack = axes[: weight.mean.ndim]
        return {"codes": packed, "scale": packed, "step": (*stack, None), "mean": stack}
