"""Multi-head latent attention: one short vector a token in the cache, from which heads make their keys and values."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import LayerKind, ModelConfig
from jaxinfer.kernels.attention import Scoring, attend, fold_heads, unfold_heads
from jaxinfer.layers.attention import Place, Step
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.position import rotate
from jaxinfer.sharding.layouts import constrain, token_axis
from jaxinfer.weights.layer_stack import parameter, with_layer


class LatentAttention(nn.Module):
    """Attention over latents (DeepSeek-V2, 2024, section 2.1 and appendix C), with the expansions absorbed.

    A head's key is W_k c for the latent c, so its score q . W_k c is (W_k^T q) . c: queries move to the latents, not
    latents to the keys, and the same for values after the softmax. What runs is multi-query attention with one
    key/value head of kv_rank + rope_dim, whose values are the first kv_rank columns of its keys.
    """

    cfg: ModelConfig
    kind: LayerKind
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, place: Place, step: Step) -> tuple[jax.Array, tuple[Any, Any]]:
        """Map x[B, T, D] -> (out[B, T, D], fresh (latents, nothing) in storage format, leaves [B, 1, T, ...])."""
        cfg, kind, mla, policy = self.cfg, self.kind, self.cfg.mla, step.cache.policy
        assert mla is not None
        d, n, h = cfg.d_model, cfg.n_heads, cfg.head_dim
        linear = partial(Linear, dtype=self.dtype, layers=self.layers)
        norm = partial(Norm, cfg.norm_eps, layers=self.layers, axes=("latent",))

        latent = linear((mla.kv_rank, d), ("latent", "embed"), bias=cfg.attention_bias, name="kv_down")(x, place.layer)
        latent = norm(name="kv_norm")(latent, place.layer)[:, :, None]
        k_turning = linear((1, mla.rope_dim, d), ("one", "head_dim", "embed"), bias=cfg.attention_bias, name="k_rope")
        turning = k_turning(x, place.layer)
        if mla.q_rank:
            down = linear((mla.q_rank, d), ("latent", "embed"), bias=cfg.attention_bias, name="q_down")
            queries_of = norm(name="q_norm")(down(x, place.layer), place.layer)
            q = linear((n, h, mla.q_rank), ("heads", "head_dim", "latent"), name="q_up")(queries_of, place.layer)
        else:
            q = linear((n, h, d), ("heads", "head_dim", "embed"), name="q")(x, place.layer)
        q_still, q_turning = q[..., : mla.nope_dim], q[..., mla.nope_dim :]
        if kind.rope:
            turning, q_turning = (rotate(y, step.positions, kind.rope, step.length) for y in (turning, q_turning))

        k_up = self._expansion("k_up", mla.nope_dim)
        q_latent = with_layer(k_up, place.layer, lambda w: jnp.einsum("btnh,nhr->btnr", q_still, w))
        q = jnp.concatenate([q_latent.astype(x.dtype), q_turning], axis=-1) * (cfg.query_scale or h**-0.5)
        q = constrain(fold_heads(q, 1), "batch", None, token_axis(x.shape[1]), None)
        key = jnp.swapaxes(jnp.concatenate([latent, turning], axis=-1), 1, 2)
        fresh = policy.encode(key), policy.encode(key[..., :0])

        k, v = (policy.decode(y, q.dtype) for y in fresh)
        visible = partial(policy.visible, kind)
        store, extent = step.cache.stores[kind.name], step.extents[kind.name]
        scoring = Scoring(cfg.attention_softcap, value_width=mla.kv_rank)
        ahead = step.drafted.get(kind.name)
        parts = (q, k, v, step.tree, store, place.slot, step.positions, extent)
        out = attend(*parts, visible, policy.decode, scoring, ahead)
        out = unfold_heads(out, x.shape[1])
        v_up = self._expansion("v_up", mla.v_dim)
        out = with_layer(v_up, place.layer, lambda w: jnp.einsum("btnr,nhr->btnh", out, w)).astype(x.dtype)
        outward = linear((d, n, mla.v_dim), ("embed", "heads", "head_dim"), n_in=2, bias=cfg.output_bias, name="o")
        return outward(out, place.layer), fresh

    def _expansion(self, name: str, width: int) -> Any:
        """Return the map from the latent to each head's keys or values: a stack [layers, N, width, kv_rank]."""
        cfg = self.cfg
        assert cfg.mla is not None

        def init(key, shape, dtype):
            return jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5

        shape = (self.layers, cfg.n_heads, width, cfg.mla.kv_rank)
        return parameter(self, name, init, shape, ("layers", "heads", "head_dim", "latent"), self.dtype)
