"""Normalization. Scales are the full multiplier, in float32 (Gemma's 1 + w is folded in when a checkpoint is read)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.layers.stacked import parameter


class RMSNorm(nn.Module):
    """Root mean square layer normalization (Zhang and Sennrich 2019) over the last axis, computed in float32."""

    eps: float
    axis: str = "embed"
    layers: int | None = None  # a stack of that many scales

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array | None = None) -> jax.Array:
        shape: tuple[int, ...] = (x.shape[-1],)
        axes: tuple[str, ...] = (self.axis,)
        if self.layers is not None:
            shape, axes = (self.layers, *shape), ("layers", *axes)
        scale = parameter(self, "scale", nn.initializers.ones, shape, axes, jnp.float32)
        if self.layers is not None:
            scale = jax.lax.dynamic_index_in_dim(scale, layer, keepdims=False)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)
