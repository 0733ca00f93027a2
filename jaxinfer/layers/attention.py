"""Self-attention over the committed cache and this step's fresh tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from jaxinfer.cache.store import Cache, Store, extent
from jaxinfer.config import LayerKind, ModelConfig
from jaxinfer.kernels.attention import Scoring, attend, fold_heads, unfold_heads
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.position import alibi_slopes, rotate
from jaxinfer.sharding.layouts import constrain, token_axis
from jaxinfer.weights.layer_stack import parameter


@struct.dataclass
class Step:
    """The arguments that all layers of one forward share."""

    tokens: jax.Array  # i32[B, T]
    positions: jax.Array  # i32[B, T]
    length: jax.Array  # i32[B, T]: of the text that each token is part of, as far as it is known
    live: jax.Array  # bool[B, T]: False for padding
    tree: jax.Array | None  # bool[B, T, T]: which fresh token sees which; None: each sees those before it, and itself
    cache: Cache
    extents: dict[str, jax.Array]  # for each store: slots in use, as `store.extent` counts them
    drafted: dict[str, Store] = struct.field(
        default_factory=dict
    )  # by layer kind: tokens ahead that may never be committed
    decoding: bool = struct.field(pytree_node=False, default=False)  # a step of the decode loop, not a prompt
    layers: bool = struct.field(pytree_node=False, default=False)  # what each layer leaves is kept

    @classmethod
    def of(
        cls,
        tokens: jax.Array,
        positions: jax.Array,
        n: jax.Array | None,
        tree: jax.Array | None,
        cache: Cache,
        decoding: bool,
        layers: bool = False,
    ) -> "Step":
        order = jnp.arange(tokens.shape[1])
        live = jnp.ones(tokens.shape, bool) if n is None else order < n[:, None]
        length = positions + 1 if cache.prompt is None else jnp.maximum(positions + 1, cache.prompt[:, None])
        extents = {name: extent(store) for name, store in cache.stores.items() if isinstance(store, Store)}
        return cls(tokens, positions, length, live, tree, cache, extents, decoding=decoding, layers=layers)


@struct.dataclass
class Place:
    """The place at which a layer finds what is its own."""

    layer: jax.Array  # i32[]: within the stacked weights of its segment
    slot: jax.Array  # i32[]: within the cache store of its kind


class Attention(nn.Module):
    """Multi-head, grouped-query and multi-query attention (Vaswani 2017; Ainslie 2023; Shazeer 2019)."""

    cfg: ModelConfig
    kind: LayerKind
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, place: Place, step: Step) -> tuple[jax.Array, tuple[Any, Any]]:
        """Map x[B, T, D] -> (out[B, T, D], fresh (k, v) in storage format, leaves [B, K, T, ...])."""
        cfg, kind, policy = self.cfg, self.kind, step.cache.policy
        d, n, k_heads, h = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        linear = partial(Linear, dtype=self.dtype, layers=self.layers)
        inward = partial(linear, bias=cfg.attention_bias)

        q = inward((n, h, d), ("heads", "head_dim", "embed"), name="q")(x, place.layer)
        k = inward((k_heads, h, d), ("kv_heads", "head_dim", "embed"), name="k")(x, place.layer)
        v = inward((k_heads, h, d), ("kv_heads", "head_dim", "embed"), name="v")(x, place.layer)
        if cfg.qk_norm:
            one, norm = cfg.qk_norm == "head", partial(Norm, cfg.norm_eps, layers=self.layers)
            q = norm(axes=("head_dim",) if one else ("heads", "head_dim"), name="q_norm")(q, place.layer)
            k = norm(axes=("head_dim",) if one else ("kv_heads", "head_dim"), name="k_norm")(k, place.layer)
        if kind.rope:
            with jax.named_scope("rope"):
                q, k = (rotate(y, step.positions, kind.rope, step.length) for y in (q, k))
        q = q * (cfg.query_scale or h**-0.5)
        q = constrain(fold_heads(q, k_heads), "batch", "kv_heads", token_axis(x.shape[1]), "head_dim")
        fresh = tuple(policy.encode(jnp.swapaxes(y, 1, 2)) for y in (k, v))

        # Fresh tokens are seen as they will be once committed: through the storage format.
        k, v = (policy.decode(y, q.dtype) for y in fresh)
        visible = partial(policy.visible, kind)
        store, extent = step.cache.stores[kind.name], step.extents[kind.name]
        scoring = Scoring(cfg.attention_softcap, _slopes(cfg), self._sinks(place))
        ahead = step.drafted.get(kind.name)
        parts = (q, k, v, step.tree, store, place.slot, step.positions, extent)
        out = attend(*parts, visible, policy.decode, scoring, ahead)
        out = unfold_heads(out.astype(x.dtype), x.shape[1])
        outward = linear((d, n, h), ("embed", "heads", "head_dim"), n_in=2, bias=cfg.output_bias, name="o")
        return outward(out, place.layer), fresh

    def _sinks(self, place: Place) -> jax.Array | None:
        if not self.cfg.sinks:
            return None
        shape, axes = (self.layers, self.cfg.n_heads), ("layers", "heads")
        stack = parameter(self, "sinks", nn.initializers.zeros, shape, axes, jnp.float32)
        return jax.lax.dynamic_index_in_dim(stack, place.layer, keepdims=False)


def _slopes(cfg: ModelConfig) -> np.ndarray | None:
    return None if cfg.alibi is None else alibi_slopes(cfg.n_heads) * np.float32(cfg.alibi)
