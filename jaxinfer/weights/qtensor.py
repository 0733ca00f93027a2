"""Weights in a format of `weights.formats`, where they stand: in the parameter tree, in place of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.weights import bfloat16_bits


@struct.dataclass
class QTensor:
    """A weight [..., *out, *in] as its format stores it. Each format extends this by its arrays.

    Axes in front are a stack of layers, or of experts in layers. Every array has them, so that indexing and reshaping
    by them need to know nothing of the format.
    """

    format: Any = struct.field(pytree_node=False)  # the `contract.WeightFormat` that reads it
    inputs: tuple[int, ...] = struct.field(pytree_node=False)  # the weight's last axes, those that are summed over

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight, [..., *out, *in]."""
        return tuple(jax.eval_shape(self.format.decode, self).shape)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in jax.tree.leaves(self))

    def axes(self, axes: tuple[str | None, ...]) -> "QTensor":
        """The logical axes of its arrays in their places, where the weight's own are `axes`."""
        return dataclasses.replace(self, **self.format.axes(self, axes))

    def arrays(self) -> dict[str, Any]:
        """Its arrays, by name."""
        fields = (field for field in dataclasses.fields(self) if field.metadata.get("pytree_node", True))
        return {field.name: getattr(self, field.name) for field in fields}


def is_quantized(weight: Any) -> bool:
    """Tell whether a node of a parameter tree is a QTensor."""
    return isinstance(weight, QTensor)


def dequantized(weight: Any) -> jax.Array:
    """The weight as an array, float32 if it is none already."""
    return weight.format.decode(weight) if is_quantized(weight) else weight


def take(table: Any, rows: jax.Array, **how: Any) -> jax.Array:
    """Rows of a table [V, D], as `jnp.take` along axis 0; only these are dequantized."""
    if isinstance(table, bfloat16_bits.WithBits):
        return bfloat16_bits.take(table, rows, **how)
    return table.format.take(table, rows, **how) if is_quantized(table) else jnp.take(table, rows, axis=0, **how)


def map_weights(use: Callable[[Any], Any], params: Any) -> Any:
    """The tree with use(leaf) in place of every array and every QTensor."""
    return jax.tree.map(use, params, is_leaf=is_quantized)


def to_plain(params: Any) -> Any:
    """The tree with a dict of arrays in place of each QTensor: what a file holds."""
    return map_weights(lambda w: w.format.to_plain(w) if is_quantized(w) else w, params)


def from_plain(plain: Any, like: Any) -> Any:
    """Go back from `to_plain`, given a tree with the QTensors in their places."""

    def rebuild(weight: Any, found: Any) -> Any:
        return weight.format.from_plain(weight, found) if is_quantized(weight) else found

    return jax.tree.map(rebuild, like, plain, is_leaf=is_quantized)
