"""Feed-forward layers."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import ModelConfig
from jaxinfer.layers.linear import Linear
from jaxinfer.sharding.layouts import constrain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # squared ReLU (Primer, So et al. 2021)
}


SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702


def gated(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """Compute act(gate) * up; `swiglu_clamped` bounds both and adds one to `up` (gpt-oss, 2025, section 2.2)."""
    if activation == "swiglu_clamped":
        gate, up = jnp.minimum(gate, SWIGLU_LIMIT), jnp.clip(up, -SWIGLU_LIMIT, SWIGLU_LIMIT)
        return gate * jax.nn.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
    return ACTIVATIONS[activation](gate) * up


class MLP(nn.Module):
    """down(act(gate x) * up x) if gated: SwiGLU with silu, GeGLU with gelu (Shazeer 2020, "GLU Variants").

    down(act(up x)) if not.
    """

    cfg: ModelConfig
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array) -> jax.Array:
        """Map x[B, T, D] -> [B, T, D]; layer i32[] within the stack."""
        cfg = self.cfg
        d, f = cfg.d_model, cfg.d_ff
        linear = partial(Linear, dtype=self.dtype, layers=self.layers, bias=cfg.mlp_bias)
        up = partial(linear((f, d), ("mlp", "embed"), name="up"), x, layer)
        if cfg.gated:
            gate = linear((f, d), ("mlp", "embed"), name="gate")(x, layer)
            hidden = gated(cfg.activation, gate, up())
        else:
            hidden = ACTIVATIONS[cfg.activation](up())
        return linear((d, f), ("embed", "mlp"), name="down")(constrain(hidden, "batch", "tokens", "mlp"), layer)
