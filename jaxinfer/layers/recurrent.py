"""Mixers that carry a state in place of a cache of tokens: selective state spaces, and attention with a feature map.

A forward reads the committed state of its layer and returns the states that a commit can choose from: after every
token of a decode step, [B, T, ...], because nobody knows yet how many will be accepted; after the last token that is
not padding of a prompt, [B, 1, ...], because there all are.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinfer.config import SSM, LayerKind, LinearAttention, ModelConfig
from jaxinfer.kernels import scan
from jaxinfer.layers.attention import Place, Step
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.position import rotate
from jaxinfer.weights.layer_stack import parameter


def committed(place: Place, step: Step, kind: LayerKind) -> Any:
    """Read a layer's state, leaves [B, ...]. Raises ValueError for a tree of drafts, whose branches have no order."""
    if step.tree is not None:
        raise ValueError(f"{kind.name} layers carry a state from token to token: drafts must be chains, not trees")
    pick = partial(jax.lax.dynamic_index_in_dim, index=place.slot, keepdims=False)
    return jax.tree.map(pick, step.cache.stores[kind.name].state)


class _Mixer(nn.Module):
    cfg: ModelConfig
    kind: LayerKind
    layers: int
    dtype: jnp.dtype

    def _linear(self, name: str, out: int, width: int, axes: tuple[str, str], bias: bool = False) -> Linear:
        return Linear((out, width), axes, dtype=self.dtype, layers=self.layers, bias=bias, name=name)

    def _own(self, name: str, shape: tuple[int, ...], place: Place, fill: float = 1.0) -> jax.Array:
        """Return a small parameter of this layer, float32."""
        init = nn.initializers.constant(fill)
        axes = ("layers", *("mlp", "state")[: len(shape)])
        stack = parameter(self, name, init, (self.layers, *shape), axes, jnp.float32)
        return jax.lax.dynamic_index_in_dim(stack, place.layer, keepdims=False)


class Mamba(_Mixer):
    """Selective state space: h_t = exp(dt A) h_{t-1} + dt B x_t, y_t = C h_t + D x_t (Gu and Dao 2023, algorithm 2)."""

    @nn.compact
    def __call__(self, x: jax.Array, place: Place, step: Step) -> tuple[jax.Array, Any]:
        """Map x[B, T, D] -> [B, T, D], states to choose from."""
        ssm, d, state = self.kind.mixer, self.cfg.d_model, committed(place, step, self.kind)
        assert isinstance(ssm, SSM)
        w, s = ssm.width, ssm.state
        inward = self._linear("in", 2 * w, d, ("mlp", "embed"), ssm.bias)(x, place.layer)
        u, gate = inward[..., :w], inward[..., w:]
        u, windows = _conv(self, u, w, ssm, state, place, step)
        parts = self._linear("select", ssm.dt_rank + 2 * s, w, ("latent", "mlp"))(u, place.layer)
        dt, b, c = jnp.split(parts.astype(jnp.float32), [ssm.dt_rank, ssm.dt_rank + s], axis=-1)
        dt = self._linear("dt", w, ssm.dt_rank, ("mlp", "latent"), bias=True)(dt.astype(x.dtype), place.layer)
        dt = jnp.where(step.live[..., None], jax.nn.softplus(dt.astype(jnp.float32)), 0.0)
        a = -jnp.exp(self._own("a_log", (w, s), place, 0.0))

        def one(h, token):
            dt, b, c, u = token
            h = jnp.exp(dt[..., None] * a) * h + (dt * u)[..., None] * b[:, None]
            return h, jnp.einsum("bws,bs->bw", h, c)

        u = u.astype(jnp.float32)
        y, states = scan.run(one, state["ssm"], (dt, b, c, u), step.decoding)
        y = (y + self._own("skip", (w,), place) * u) * jax.nn.silu(gate.astype(jnp.float32))
        out = self._linear("out", d, w, ("embed", "mlp"), ssm.bias)(y.astype(x.dtype), place.layer)
        return out, {"conv": windows, "ssm": states}


class Mamba2(_Mixer):
    """Selective state space with one decay a head (Dao and Gu 2024, section 7): prompts run in chunks, as products."""

    @nn.compact
    def __call__(self, x: jax.Array, place: Place, step: Step) -> tuple[jax.Array, Any]:
        """Map x[B, T, D] -> [B, T, D], states to choose from."""
        ssm, d, state = self.kind.mixer, self.cfg.d_model, committed(place, step, self.kind)
        assert isinstance(ssm, SSM)
        w, s, g, heads = ssm.width, ssm.state, ssm.groups, ssm.heads
        inward = self._linear("in", 2 * w + 2 * g * s + heads, d, ("mlp", "embed"), ssm.bias)(x, place.layer)
        gate, mixed, dt = jnp.split(inward, [w, 2 * w + 2 * g * s], axis=-1)
        mixed, windows = _conv(self, mixed, w + 2 * g * s, ssm, state, place, step)
        u, b, c = jnp.split(mixed.astype(jnp.float32), [w, w + g * s], axis=-1)
        u = u.reshape(*u.shape[:2], heads, w // heads)
        b, c = (jnp.repeat(y.reshape(*y.shape[:2], g, s), heads // g, axis=2) for y in (b, c))
        dt = jax.nn.softplus(dt.astype(jnp.float32) + self._own("dt_bias", (heads,), place, 0.0))
        dt = jnp.where(step.live[..., None], jnp.clip(dt, *ssm.dt_limit), 0.0)
        decay = -jnp.exp(self._own("a_log", (heads,), place, 0.0)) * dt
        y, states = recurrence(decay, b, u * dt[..., None], c, state["ssm"], step.decoding)
        y = y + self._own("skip", (heads,), place)[:, None] * u
        y = (y.reshape(gate.shape) * jax.nn.silu(gate.astype(jnp.float32))).reshape(*x.shape[:2], g, -1)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.cfg.norm_eps)
        y = y.reshape(gate.shape) * self._own("norm", (w,), place)
        out = self._linear("out", d, w, ("embed", "mlp"), ssm.bias)(y.astype(x.dtype), place.layer)
        return out, {"conv": windows, "ssm": states}


class KernelAttention(_Mixer):
    """Attention with phi(q) . phi(k) in place of exp(q . k), phi = elu + 1 (Katharopoulos et al. 2020, equation 7).

    The sums over keys are a state of fixed size, so time is linear in the length of the text.
    """

    @nn.compact
    def __call__(self, x: jax.Array, place: Place, step: Step) -> tuple[jax.Array, Any]:
        """Map x[B, T, D] -> [B, T, D], states to choose from."""
        cfg, state = self.cfg, committed(place, step, self.kind)
        d, n, kv, h = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        linear = partial(Linear, dtype=self.dtype, layers=self.layers)
        q = linear((n, h, d), ("heads", "head_dim", "embed"), bias=cfg.attention_bias, name="q")(x, place.layer)
        k = linear((kv, h, d), ("kv_heads", "head_dim", "embed"), bias=cfg.attention_bias, name="k")(x, place.layer)
        v = linear((kv, h, d), ("kv_heads", "head_dim", "embed"), bias=cfg.attention_bias, name="v")(x, place.layer)
        if self.kind.rope:
            q, k = (rotate(y, step.positions, self.kind.rope) for y in (q, k))
        q, k = (jax.nn.elu(y.astype(jnp.float32)) + 1 for y in (q, k))
        k = jnp.where(step.live[..., None, None], k, 0.0)
        # A value of one beside the others: its sum is what the others are divided by.
        v = jnp.concatenate([v.astype(jnp.float32), jnp.ones((*v.shape[:3], 1))], axis=-1)
        k, v = (jnp.repeat(y, n // kv, axis=2) for y in (k, v))
        y, states = recurrence(jnp.zeros(q.shape[:3]), k, v, q, state["sums"], step.decoding)
        y = (y[..., :h] / jnp.maximum(y[..., h:], 1e-6)).astype(x.dtype)
        outward = linear((d, n, h), ("embed", "heads", "head_dim"), n_in=2, bias=cfg.output_bias, name="o")
        return outward(y, place.layer), {"sums": states}


def recurrence(decay, keys, values, queries, state, keep_all: bool) -> tuple[jax.Array, jax.Array]:
    """Run `scan.chunked`, or the same token by token where the state after every token is wanted."""
    if not keep_all:
        y, last = scan.chunked(decay, keys, values, queries, state)
        return y, last[:, None]

    def one(h, token):
        a, k, v, q = token
        h = jnp.exp(a)[..., None, None] * h + v[..., None] * k[:, :, None]
        return h, jnp.einsum("bhpn,bhn->bhp", h, q)

    return scan.run(one, state, (decay, keys, values, queries), True)


def _conv(mixer: _Mixer, x: jax.Array, channels: int, ssm: SSM, state: Any, place: Place, step: Step):
    """Run the short convolution before a state space, and its activation: [B, T, channels], inputs to choose from."""
    kernel = mixer._own("conv", (channels, ssm.conv), place, ssm.conv**-1.0)
    bias = mixer._own("conv_bias", (channels,), place, 0.0) if ssm.conv_bias else None
    n = None if step.decoding else jnp.sum(step.live, axis=1)
    y, windows = scan.causal_conv(x, state["conv"], kernel, bias, n)
    return jax.nn.silu(y), windows


def mixer_of(kind: LayerKind) -> type[nn.Module]:
    """Return the module of a recurrent layer."""
    if isinstance(kind.mixer, LinearAttention):
        return KernelAttention
    assert isinstance(kind.mixer, SSM)
    return Mamba if kind.mixer.version == 1 else Mamba2
