"""Feed-forward layers."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import ModelConfig
from jaxinfer.layers.linear import Linear
from jaxinfer.sharding.rules import constrain

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


class GatedMLP(nn.Module):
    """down(act(gate x) * up x): SwiGLU with silu, GeGLU with gelu (Shazeer 2020, "GLU Variants")."""

    cfg: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d, f = self.cfg.d_model, self.cfg.d_ff
        gate = Linear((d, f), ("embed", "mlp"), dtype=self.dtype, name="gate")(x)
        up = Linear((d, f), ("embed", "mlp"), dtype=self.dtype, name="up")(x)
        hidden = constrain(ACTIVATIONS[self.cfg.activation](gate) * up, "batch", "tokens", "mlp")
        return Linear((f, d), ("mlp", "embed"), dtype=self.dtype, name="down")(hidden)
