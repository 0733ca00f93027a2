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
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # squared ReLU (Primer, So et al. 2021)
}


class MLP(nn.Module):
    """down(act(gate x) * up x) if gated: SwiGLU with silu, GeGLU with gelu (Shazeer 2020, "GLU Variants").

    down(act(up x)) if not.
    """

    cfg: ModelConfig
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array) -> jax.Array:
        """x[B, T, D], layer i32[] within the stack -> [B, T, D]."""
        cfg = self.cfg
        d, f = cfg.d_model, cfg.d_ff
        linear = partial(Linear, dtype=self.dtype, layers=self.layers, bias=cfg.mlp_bias)
        act = ACTIVATIONS[cfg.activation]
        if cfg.gated:
            gate = linear((f, d), ("mlp", "embed"), name="gate")(x, layer)
            hidden = act(gate) * linear((f, d), ("mlp", "embed"), name="up")(x, layer)
        else:
            hidden = act(linear((f, d), ("mlp", "embed"), name="up")(x, layer))
        return linear((d, f), ("embed", "mlp"), name="down")(constrain(hidden, "batch", "tokens", "mlp"), layer)
