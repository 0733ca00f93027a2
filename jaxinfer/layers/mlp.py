"""Feed-forward layers."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import ModelConfig
from jaxinfer.layers.linear import Linear
from jaxinfer.sharding.rules import constrain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class GatedMLP(nn.Module):
    """down(act(gate x) * up x): SwiGLU with silu, GeGLU with gelu (Shazeer 2020, "GLU Variants")."""

    cfg: ModelConfig
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array) -> jax.Array:
        """x[B, T, D], layer i32[] within the stack -> [B, T, D]."""
        d, f = self.cfg.d_model, self.cfg.d_ff
        linear = partial(Linear, dtype=self.dtype, layers=self.layers)
        gate = linear((f, d), ("mlp", "embed"), name="gate")(x, layer)
        up = linear((f, d), ("mlp", "embed"), name="up")(x, layer)
        hidden = constrain(ACTIVATIONS[self.cfg.activation](gate) * up, "batch", "tokens", "mlp")
        return linear((d, f), ("embed", "mlp"), name="down")(hidden, layer)
