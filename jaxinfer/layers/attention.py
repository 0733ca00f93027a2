"""Self-attention over the committed cache and this step's fresh tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxinfer.cache.store import Cache, extent
from jaxinfer.config import LayerKind, ModelConfig
from jaxinfer.kernels.attention import cached_partial, fold_heads, fresh_partial, merge, unfold_heads
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.norm import RMSNorm
from jaxinfer.layers.position import rotate
from jaxinfer.sharding.rules import constrain


@struct.dataclass
class Step:
    """What every layer of one forward shares."""

    positions: jax.Array  # i32[B, T]
    tree: jax.Array | None  # bool[B, T, T]: which fresh token sees which; None: each sees those before it, and itself
    cache: Cache
    extents: dict[str, jax.Array]  # i32[] for each store: slots in use

    @classmethod
    def of(cls, positions: jax.Array, tree: jax.Array | None, cache: Cache) -> "Step":
        return cls(positions, tree, cache, {name: extent(store) for name, store in cache.stores.items()})


class Attention(nn.Module):
    """Multi-head, grouped-query and multi-query attention (Vaswani 2017; Shazeer 2019; Ainslie 2023) with RoPE."""

    cfg: ModelConfig
    kind: LayerKind
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, step: Step) -> tuple[jax.Array, tuple[Any, Any]]:
        """x[B, T, D], layer i32[] within its kind's store -> (out[B, T, D], fresh (k, v)[B, K, T, H] as stored)."""
        cfg, kind, policy = self.cfg, self.kind, step.cache.policy
        d, n, k_heads, h = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim

        def project(name, heads, axis):
            return Linear((d, heads, h), ("embed", axis, "head_dim"), dtype=self.dtype, name=name)(x)

        q, k, v = project("q", n, "heads"), project("k", k_heads, "kv_heads"), project("v", k_heads, "kv_heads")
        if cfg.qk_norm:
            q = RMSNorm(cfg.norm_eps, "head_dim", name="q_norm")(q)
            k = RMSNorm(cfg.norm_eps, "head_dim", name="k_norm")(k)
        q = rotate(q, step.positions, kind.rope) * (cfg.query_scale or h**-0.5)
        k = rotate(k, step.positions, kind.rope)
        q = constrain(fold_heads(q, k_heads), "batch", "kv_heads", None, "head_dim")
        fresh = tuple(policy.encode(jnp.swapaxes(y, 1, 2)) for y in (k, v))

        def visible(q_pos, kv_pos):
            return policy.visible(kind, q_pos, kv_pos)

        # Fresh tokens are seen as they will be once committed: through the storage format.
        k, v = (policy.decode(y, q.dtype) for y in fresh)
        mask = visible(step.positions[:, :, None], step.positions[:, None, :]) & chain_or(step.tree, x.shape[1])
        new = fresh_partial(q, k, v, mask)
        store, extent = step.cache.stores[kind.name], step.extents[kind.name]
        old = cached_partial(q, store, layer, step.positions, extent, visible, policy.decode)
        out = unfold_heads(merge(old, new).astype(x.dtype), x.shape[1])
        return Linear((n, h, d), ("heads", "head_dim", "embed"), n_in=2, dtype=self.dtype, name="o")(out), fresh


def chain_or(tree: jax.Array | None, width: int) -> jax.Array:
    """The tree mask, or that of a chain: bool[B or 1, T, T]."""
    return jnp.tril(jnp.ones((1, width, width), bool)) if tree is None else tree
