"""Quantized weights as the kernels of products read them: arrays, and the name of what they mean."""

import jax
from flax import struct


@struct.dataclass
class CodedWeight:
    """A stack of weights whose inputs lie on the last axis, w = scale * code, or scale * code + minimum by groups.

    codes i8[L, *out, in], scale f32[L, *out]; or two codes of 4 bits in a byte, codes u8[L, *out, in / 2], the low ones
    of the first half of the inputs and the high ones of the second, scale and minimum f32[L, *out, in / group].
    """

    format: str = struct.field(pytree_node=False)  # of `matmul.FORMATS`
    codes: jax.Array
    scale: jax.Array
    minimum: jax.Array | None = None

    @property
    def group(self) -> int:
        """Inputs that share a scale and a minimum, of codes of 4 bits."""
        return 2 * self.codes.shape[-1] // self.scale.shape[-1]
