"""Token embedding, which a tied head uses the other way round."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import ModelConfig
from jaxinfer.layers.linear import matmul
from jaxinfer.layers.stacked import parameter


class Embedding(nn.Module):
    """Tokens to vectors, and, if the head is tied to it, vectors to logits."""

    cfg: ModelConfig
    dtype: jnp.dtype

    def setup(self):
        cfg = self.cfg
        init = nn.initializers.normal(cfg.d_model**-0.5)
        shape, axes = (cfg.vocab_size, cfg.d_model), ("vocab", "embed")
        self.embedding = parameter(self, "embedding", init, shape, axes, self.dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens[B, T] -> [B, T, D]."""
        x = jnp.take(self.embedding, tokens, axis=0, mode="clip")
        return x * jnp.asarray(self.cfg.embed_scale, self.dtype)

    def attend(self, hidden: jax.Array) -> jax.Array:
        """hidden[B, T, D] -> logits float32[B, T, V] against the embedding's own rows."""
        return matmul(hidden, self.embedding, self.embedding.shape)
