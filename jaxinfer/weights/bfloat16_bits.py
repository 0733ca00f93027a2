"""Weights in bfloat16 for a CPU, and beside each its bits: the same memory as whole numbers.

XLA on a CPU slices, gathers and converts an array of bfloat16 by way of a copy of all of it in float32. The bits it
slices as they are, and what is sliced becomes float32 by a shift.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class WithBits:
    """A weight bfloat16[...], and its bits u16[...] in the same memory."""

    weight: Any  # an array, or `layer_stack.LayerViews`
    bits: jax.Array

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes


def bits_of(weight: jax.Array) -> jax.Array | None:
    """The bits of a bfloat16 array on one CPU device, or None where they would be a copy."""
    bits = jax.device_put(np.asarray(weight).view(np.uint16))
    return bits if bits.unsafe_buffer_pointer() == weight.unsafe_buffer_pointer() else None


def take(table: WithBits, rows: jax.Array, **how: Any) -> jax.Array:
    """Rows of a table [V, D], as `jnp.take` along axis 0, in bfloat16."""
    return jax.lax.bitcast_convert_type(jnp.take(table.bits, rows, axis=0, **how), jnp.bfloat16)


def without_bits(tree: Any) -> Any:
    """The tree with the weight in place of each WithBits."""

    def is_bits(x: Any) -> bool:
        return isinstance(x, WithBits)

    return jax.tree.map(lambda x: x.weight if is_bits(x) else x, tree, is_leaf=is_bits)
