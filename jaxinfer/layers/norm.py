"""Normalization. Scales are the full multiplier, in float32 (Gemma's 1 + w is folded in when a checkpoint is read)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import NormKind
from jaxinfer.weights.layer_stack import layer_of, parameter


class Norm(nn.Module):
    """Normalization over the last axes, those named in `axes`, computed in float32.

    `rms` divides by the root mean square (Zhang and Sennrich 2019); `layer` takes the mean off first (Ba et al. 2016).
    """

    eps: float
    kind: NormKind = "rms"
    bias: bool = False
    axes: tuple[str, ...] = ("embed",)
    layers: int | None = None  # a stack of that many scales

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array | None = None) -> jax.Array:
        over = tuple(range(-len(self.axes), 0))
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=over, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=over, keepdims=True) + self.eps)
        y = y * self._vector("scale", nn.initializers.ones, x, layer)
        if self.bias:
            y = y + self._vector("bias", nn.initializers.zeros, x, layer)
        return y.astype(x.dtype)

    def _vector(self, name: str, init, x: jax.Array, layer: jax.Array | None) -> jax.Array:
        shape, axes = x.shape[-len(self.axes) :], self.axes
        if self.layers is None:
            return layer_of(parameter(self, name, init, shape, axes, jnp.float32))
        stack = parameter(self, name, init, (self.layers, *shape), ("layers", *axes), jnp.float32)
        return layer_of(stack, layer)
