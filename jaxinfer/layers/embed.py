"""Token embedding, which a tied head uses the other way round."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import ModelConfig
from jaxinfer.layers.linear import matmul
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.position import sinusoids
from jaxinfer.weights.layer_stack import parameter
from jaxinfer.weights.resting import rows_of


class Embedding(nn.Module):
    """Tokens to vectors, and, if the head is tied to it, vectors to logits."""

    cfg: ModelConfig
    dtype: jnp.dtype

    def setup(self):
        cfg = self.cfg
        init = nn.initializers.normal(cfg.d_model**-0.5)
        shape, axes = (cfg.vocab_size, cfg.d_model), ("vocab", "embed")
        self.embedding = parameter(self, "embedding", init, shape, axes, self.dtype)
        if cfg.absolute_positions == "learned":
            shape, axes = (cfg.max_positions, cfg.d_model), ("positions", "embed")
            self.positions = parameter(self, "positions", init, shape, axes, self.dtype)
        if cfg.embed_norm:
            self.norm = Norm(cfg.norm_eps, cfg.norm, cfg.norm_bias)

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """tokens, positions i32[B, T] -> [B, T, D]."""
        cfg = self.cfg
        x = rows_of(self.embedding, tokens).astype(self.dtype) * jnp.asarray(cfg.embed_scale, self.dtype)
        if cfg.absolute_positions == "learned":
            x = x + rows_of(self.positions, positions)
        elif cfg.absolute_positions == "sinusoidal":
            x = x + sinusoids(positions, cfg.d_model).astype(x.dtype)
        return self.norm(x) if cfg.embed_norm else x

    def attend(self, hidden: jax.Array) -> jax.Array:
        """hidden[B, T, D] -> logits float32[B, T, V] against the embedding's own rows."""
        return matmul(hidden, self.embedding, (self.cfg.vocab_size, self.cfg.d_model))
