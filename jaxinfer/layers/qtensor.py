"""Quantized weights: what they hold, how arrays become them and they become arrays again. Pure functions of arrays.

A QTensor stands in the parameter tree where the array stood. Leading axes may be a stack of layers, or of experts in
layers: every array in it has them, so that indexing, stacking and sharding by them need to know nothing of its format.

- `Int8`: one symmetric scale an output, w = scale * code (LLM.int8, Dettmers et al. 2022, section 2).
- `Int4`: groups along the inputs, each with a scale and a minimum, w = scale * code + minimum (as GGUF's Q4_1). A
  byte holds two codes: the low nibbles are the first half of the inputs, the high nibbles the second half, so that
  unpacking is two cheap operations without a shuffle.

Both round to the nearest code, and hold the inputs on one axis, however many axes the weight has there: an array's two
last axes are tiled in a TPU's memory, and one that is tiled otherwise than a product wants it is copied before each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.layers import bits

GROUPS = (32, 64, 128)


@struct.dataclass
class Int8:
    """codes i8[..., *out, in], scale f32[..., *out]."""

    codes: jax.Array
    scale: jax.Array
    inputs: tuple[int, ...] = struct.field(pytree_node=False)  # what the last axis stands for
    activations: bool = struct.field(pytree_node=False, default=False)  # activations are rounded to int8 too: W8A8

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], *self.inputs)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes

    @property
    def format(self) -> str:
        return "w8a8" if self.activations else "int8"

    def axes(self, axes: tuple[str | None, ...]) -> "Int8":
        """The logical axes of its arrays, where the weight's own are `axes`."""
        codes, scale = axes[: self.codes.ndim], axes[: self.scale.ndim]  # several inputs are split as the first is
        return Int8(codes, scale, self.inputs, self.activations)  # type: ignore[arg-type]

    def dequantize(self) -> jax.Array:
        """float32[..., *out, *in]."""
        return (self.codes.astype(jnp.float32) * self.scale[..., None]).reshape(self.shape)


@struct.dataclass
class Int4:
    """codes u8[..., *out, P / 2], scale and minimum f32[..., *out, P / group]; P: all inputs, in whole groups."""

    codes: jax.Array
    scale: jax.Array
    minimum: jax.Array
    inputs: tuple[int, ...] = struct.field(pytree_node=False)  # what the padded axis stands for

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], *self.inputs)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + self.minimum.nbytes

    @property
    def group(self) -> int:
        return 2 * self.codes.shape[-1] // self.scale.shape[-1]

    @property
    def format(self) -> str:
        return "int4" if self.group == 32 else f"int4-{self.group}"

    def axes(self, axes: tuple[str | None, ...]) -> "Int4":
        """The logical axes of its arrays, where the weight's own are `axes`: packed inputs are not split."""
        packed = (*axes[: self.codes.ndim - 1], None)
        return Int4(packed, packed, packed, self.inputs)  # type: ignore[arg-type]

    def halves(self) -> tuple[jax.Array, jax.Array]:
        """float32[..., *out, P / 2]: the first half of the padded inputs, and the second."""
        groups = self.scale.shape[-1] // 2

        def half(codes: jax.Array, at: slice) -> jax.Array:
            grouped = codes.astype(jnp.float32).reshape(*codes.shape[:-1], groups, -1)
            return (grouped * self.scale[..., at, None] + self.minimum[..., at, None]).reshape(codes.shape)

        return half(self.codes & 15, slice(groups)), half(self.codes >> 4, slice(groups, None))

    def dequantize(self) -> jax.Array:
        """float32[..., *out, *in]."""
        whole = jnp.concatenate(self.halves(), axis=-1)
        width = 1
        for size in self.inputs:
            width *= size
        return whole[..., :width].reshape(self.shape)


QTensor = Int8 | Int4


def is_quantized(weight: Any) -> bool:
    """Whether a node of a parameter tree is a QTensor."""
    return isinstance(weight, QTensor)


def quantize_int8(w: jax.Array, n_in: int = 1, activations: bool = False) -> Int8:
    """w[..., *out, *in] with `n_in` input axes, codes from -127 to 127. An output of zeros has scale 1."""
    outer, inputs = w.shape[: w.ndim - n_in], w.shape[w.ndim - n_in :]
    w = jnp.asarray(w, jnp.float32).reshape(*outer, -1)
    largest = jnp.max(jnp.abs(w), axis=-1)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    codes = jnp.clip(jnp.round(w / scale[..., None]), -127, 127).astype(jnp.int8)
    return Int8(codes, scale, inputs, activations)


def quantize_int4(w: jax.Array, group: int = 32, n_in: int = 1) -> Int4:
    """w[..., *out, *in], codes from 0 to 15 between the least and the largest weight of a group.

    Inputs that are no whole number of pairs of groups are padded; what pads a group is within its range.
    """
    w = jnp.asarray(w, jnp.float32)
    outer, inputs = w.shape[: w.ndim - n_in], w.shape[w.ndim - n_in :]
    w = w.reshape(*outer, -1)
    w = jnp.pad(w, (*((0, 0),) * len(outer), (0, -w.shape[-1] % (2 * group))), mode="edge")
    grouped = w.reshape(*outer, -1, group)
    least = jnp.min(grouped, axis=-1)
    spread = jnp.max(grouped, axis=-1) - least
    scale = jnp.where(spread > 0, spread / 15, 1.0)
    codes = jnp.clip(jnp.round((grouped - least[..., None]) / scale[..., None]), 0, 15).astype(jnp.uint8)
    low, high = jnp.split(codes.reshape(w.shape), 2, axis=-1)
    return Int4(low | (high << 4), scale, least, inputs)


def dequantized(weight: Any) -> jax.Array:
    """The weight as an array, if it is none already."""
    return weight.dequantize() if is_quantized(weight) else weight


def take(table: Any, rows: jax.Array, **how: Any) -> jax.Array:
    """Rows of a table [V, D], as `jnp.take` along axis 0; only these are dequantized."""
    if isinstance(table, bits.Bits):
        return bits.take(table, rows, **how)
    return dequantized(jax.tree.map(lambda x: jnp.take(x, rows, axis=0, **how), table))


def map_weights(use: Callable[[Any], Any], params: Any) -> Any:
    """The tree with use(leaf) in place of every array and every QTensor."""
    return jax.tree.map(use, params, is_leaf=is_quantized)


def format_of(params: Any) -> str | None:
    """The format of a model's quantized kernels, by its name in `transform.quantize.FORMATS`; None for arrays."""
    weights = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantized)[0]
    found = {path[0].key != "embed": weight.format for path, weight in weights if is_quantized(weight)}
    return found.get(True, found.get(False))


def to_plain(params: Any) -> Any:
    """The tree with a dict of arrays in place of each QTensor: what a file holds."""

    def plain(weight: Any) -> Any:
        if not is_quantized(weight):
            return weight
        names = ("codes", "scale") if isinstance(weight, Int8) else ("codes", "scale", "minimum")
        return {name: getattr(weight, name) for name in names}

    return map_weights(plain, params)


def from_plain(plain: Any, like: Any) -> Any:
    """The way back from `to_plain`, given a tree with the QTensors in their places."""

    def rebuild(weight: Any, found: Any) -> Any:
        return weight.replace(**found) if is_quantized(weight) else found

    return jax.tree.map(rebuild, like, plain, is_leaf=is_quantized)
