"""EAGLE: one decoder layer that goes on with the backbone's hidden states (Li et al. 2024, section 3.1).

It reads the hidden state of a token and the embedding of the token after it, and gives the hidden state of that one.
The backbone's unembedding makes a guess of it, and guess and state go in again. This layer has a norm in front of its
parts, as the backbone has, and one after, which begins as the backbone's own: so its states have the right scale from
the first step of training on. (The paper's has none of these.)
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.config import Rope
from jaxinfer.layers.position import rotate
from jaxinfer.network.heads import HeadsConfig

INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=-1, out_axis=-2)


@struct.dataclass
class Past:
    """Keys and values [B, K, S, H] of the first length[B] tokens of each row; slot = position."""

    k: jax.Array
    v: jax.Array
    length: jax.Array  # i32[B]


def init(cfg: HeadsConfig, key: jax.Array, final_scale: jax.Array | None = None) -> dict[str, jax.Array]:
    """Make random parameters; `final_scale` [D] is that of the backbone's last norm."""
    d, q, kv = cfg.d_model, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    shapes = {
        "join": (d, 2 * d),
        "q": (q, d),
        "k": (kv, d),
        "v": (kv, d),
        "o": (d, q),
        "gate": (cfg.d_ff, d),
        "up": (cfg.d_ff, d),
        "down": (d, cfg.d_ff),
    }
    kernels = {
        name: INIT(one, shape) for (name, shape), one in zip(shapes.items(), jax.random.split(key, 8), strict=True)
    }
    norms = {name: jnp.ones(d) for name in ("hidden_norm", "attention_norm", "mlp_norm", "final_norm")}
    if final_scale is not None:
        norms["final_norm"] = jnp.array(final_scale, jnp.float32)  # a copy: training donates its parameters
    return {**kernels, **norms}


def layer(
    params: dict[str, jax.Array],
    cfg: HeadsConfig,
    hidden: jax.Array,
    embedded: jax.Array,
    positions: jax.Array,
    sees: jax.Array,
    past: Past | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Run one forward: the next hidden states [B, T, D], and these tokens' keys and values [B, K, T, H].

    hidden[B, T, D] and, of the tokens after each, embedded[B, T, D]; positions i32[B, T]; sees bool[B or 1, T, T]:
    what of each other they see. All of them see all of `past`.
    """

    def norm(name: str, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + cfg.eps) * params[name]

    def heads(name: str, x: jax.Array) -> jax.Array:
        y = (x @ params[name].T).reshape(*x.shape[:2], -1, cfg.head_dim)
        return y if name == "v" else rotate(y, positions, Rope(cfg.rope_theta))

    x = jnp.concatenate([embedded, norm("hidden_norm", hidden)], axis=-1) @ params["join"].T
    y = norm("attention_norm", x)
    q, k, v = (heads(name, y) for name in ("q", "k", "v"))
    fresh = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    x = x + attention(q, fresh, sees, past).reshape(*x.shape[:2], -1) @ params["o"].T
    y = norm("mlp_norm", x)
    x = x + (jax.nn.silu(y @ params["gate"].T) * (y @ params["up"].T)) @ params["down"].T
    return norm("final_norm", x), fresh


def attention(q: jax.Array, fresh: tuple[jax.Array, jax.Array], sees: jax.Array, past: Past | None) -> jax.Array:
    """Attend with q[B, T, N, H] to past and fresh keys and values [B, K, ., H] -> [B, T, N, H]."""
    batch, width, n, h = q.shape
    k, v = fresh
    mask = jnp.broadcast_to(sees, (batch, width, width))
    if past is not None:
        slots = jnp.arange(past.k.shape[2]) < past.length[:, None, None]
        mask = jnp.concatenate([jnp.broadcast_to(slots, (batch, width, past.k.shape[2])), mask], axis=2)
        k, v = jnp.concatenate([past.k, k], axis=2), jnp.concatenate([past.v, v], axis=2)
    grouped = q.reshape(batch, width, k.shape[1], -1, h)
    weights = jnp.einsum("btkgh,bksh->bkgts", grouped, k) * h**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], weights, -1e30), axis=-1)
    return jnp.einsum("bkgts,bksh->btkgh", weights, v).reshape(batch, width, n, h)


def empty(cfg: HeadsConfig, batch: int, slots: int) -> Past:
    """Return a past without tokens."""
    zeros = jnp.zeros((batch, cfg.n_kv_heads, slots, cfg.head_dim))
    return Past(zeros, jnp.zeros_like(zeros), jnp.zeros(batch, jnp.int32))


def commit(past: Past, fresh: tuple[jax.Array, jax.Array], n: jax.Array) -> Past:
    """Return the past with the first n[B] of the fresh tokens after it."""
    order = jnp.arange(fresh[0].shape[2])
    slot = jnp.where(order < n[:, None], past.length[:, None] + order, past.k.shape[2])  # outside: dropped
    rows = jnp.arange(slot.shape[0])[:, None]
    k, v = (
        old.at[rows, :, slot].set(jnp.swapaxes(new, 1, 2), mode="drop")
        for old, new in zip((past.k, past.v), fresh, strict=True)
    )
    return Past(k, v, past.length + n)
