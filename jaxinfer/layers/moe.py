"""Mixtures of experts in place of the MLP."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import ModelConfig, MoE
from jaxinfer.layers import routing
from jaxinfer.layers.linear import Linear, matmul
from jaxinfer.layers.mlp import ACTIVATIONS, MLP
from jaxinfer.layers.stacked import parameter


class Experts(nn.Module):
    """A router, experts, and perhaps an expert that all tokens share. Weights are stacks [layers, experts, out, in]."""

    cfg: ModelConfig
    moe: MoE
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array) -> jax.Array:
        """x[B, T, D], layer i32[] within the stack -> [B, T, D]."""
        cfg, moe = self.cfg, self.moe
        d, f = cfg.d_model, moe.d_ff
        linear = partial(Linear, dtype=self.dtype, layers=self.layers)
        logits = linear((moe.experts, d), ("experts", "embed"), out_dtype=jnp.float32, name="router")(x, layer)
        gate = self._stack("gate", (f, d), ("mlp", "embed"))
        up = self._stack("up", (f, d), ("mlp", "embed"))
        down = self._stack("down", (d, f), ("embed", "mlp"))
        act = ACTIVATIONS[cfg.activation]

        def ffn(rows: jax.Array, e: jax.Array) -> jax.Array:
            index = layer * moe.experts + e

            def product(y, stack, shape):
                return matmul(y, stack.reshape(-1, *shape), shape, layer=index).astype(rows.dtype)

            return product(act(product(rows, gate, (f, d))) * product(rows, up, (f, d)), down, (d, f))

        tokens = x.reshape(-1, d)
        gates, experts = routing.route(logits.reshape(-1, moe.experts), moe)
        if moe.dispatch == "capacity":
            size = routing.capacity(tokens.shape[0], moe)
            out, _ = routing.with_capacity(tokens, gates, experts, ffn, moe.experts, size)
        else:
            out = getattr(routing, moe.dispatch)(tokens, gates, experts, ffn, moe.experts)
        out = out.astype(x.dtype).reshape(x.shape)
        if moe.shared_d_ff is None:
            return out
        shared = MLP(cfg.replace(d_ff=moe.shared_d_ff), self.layers, self.dtype, name="shared")(x, layer)
        if moe.shared_gate:
            shared = shared * jax.nn.sigmoid(linear((1, d), ("one", "embed"), name="shared_gate")(x, layer))
        return out + shared

    def _stack(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
        def init(key, shape, dtype):
            return jax.random.normal(key, shape, dtype) * math.sqrt(1 / shape[-1])

        full = (self.layers, self.moe.experts, *shape)
        return parameter(self, name, init, full, ("layers", "experts", *axes), self.dtype)
