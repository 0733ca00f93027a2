"""Attention as two partial softmaxes: over the committed cache, and over the fresh tokens of this step.

Each part gives a normalized output and its log-sum-exp; `merge` makes the softmax over both (Flash-Decoding, Dao et
al. 2023; online softmax, Milakov and Gimelshein 2018). A part in which a row sees nothing gives 0 and -inf.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxinfer.cache.store import BLOCK, Store

FLOOR = -1e30  # a finite minus infinity: exp(FLOOR - FLOOR) is 1, not NaN

Visible = Callable[[jax.Array, jax.Array], jax.Array]


class Partial(NamedTuple):
    """out float32[B, K, R, H] normalized over this part; lse float32[B, K, R]. R = T x G rows, T-major."""

    out: jax.Array
    lse: jax.Array


def fold_heads(q: jax.Array, n_kv_heads: int) -> jax.Array:
    """q[B, T, N, H] -> [B, K, T*G, H]: the queries that share a key/value head are rows of one matrix (GQA)."""
    return rearrange(q, "b t (k g) h -> b k (t g) h", k=n_kv_heads)


def unfold_heads(out: jax.Array, n_tokens: int) -> jax.Array:
    """[B, K, T*G, H] -> [B, T, N, H]."""
    return rearrange(out, "b k (t g) h -> b t (k g) h", t=n_tokens)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Masked scores of q[B, K, R, H] against k[B, K, S, H] under mask[B, T, S], and the mask by rows [B, 1, R, S]."""
    scores = jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=jnp.float32)
    rows = jnp.repeat(mask, q.shape[2] // mask.shape[1], axis=1)[:, None]
    return jnp.where(rows, scores, FLOOR), rows


def fresh_partial(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> Partial:
    """q[B, K, R, H] over this step's own k, v[B, K, T, H]; mask[B, T, T] says which token sees which."""
    scores, rows = _scores(q, k, mask)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.where(rows, jnp.exp(scores - top), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("bkrs,bksh->bkrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return _normalize(out, top, total)


def cached_partial(
    q: jax.Array, store: Store, layer: jax.Array, q_pos: jax.Array, extent: jax.Array, visible: Visible, decode: Any
) -> Partial:
    """q[B, K, R, H] over one layer of a store, block by block, no further than the slots in use.

    layer: i32[], which of the stacked layers. q_pos: i32[B, T]. extent: i32[], slots in use. The work and the bytes read
    follow `extent`, not the capacity of the cache; the store is indexed, never sliced by layer (that would copy it).
    """
    batch, n_kv, rows, width = q.shape

    def block(i, carry):
        out, top, total = carry
        start = i * BLOCK

        def read(stored):
            sizes = (1, *stored.shape[1:3], BLOCK, *stored.shape[4:])
            index = (layer, 0, 0, start, *(0,) * (stored.ndim - 4))
            return jax.lax.dynamic_slice(stored, index, sizes)[0]

        k = decode(jax.tree.map(read, store.k), q.dtype)
        v = decode(jax.tree.map(read, store.v), q.dtype)
        kv_pos = jax.lax.dynamic_slice_in_dim(store.pos, start, BLOCK, axis=1)
        scores, seen = _scores(q, k, visible(q_pos[:, :, None], kv_pos[:, None, :]))
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - new_top), 0.0)
        shrink = jnp.exp(top - new_top)
        total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        part = jnp.einsum("bkrs,bksh->bkrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return out * shrink + part, new_top, total

    start = (
        jnp.zeros((batch, n_kv, rows, width), jnp.float32),
        jnp.full((batch, n_kv, rows, 1), FLOOR, jnp.float32),
        jnp.zeros((batch, n_kv, rows, 1), jnp.float32),
    )
    n_blocks = (extent + BLOCK - 1) // BLOCK
    return _normalize(*jax.lax.fori_loop(0, n_blocks, block, start))


def _normalize(out: jax.Array, top: jax.Array, total: jax.Array) -> Partial:
    empty = total == 0
    safe = jnp.where(empty, 1.0, total)
    return Partial(out / safe, jnp.where(empty, -jnp.inf, top + jnp.log(safe))[..., 0])


def merge(a: Partial, b: Partial) -> jax.Array:
    """The softmax over both parts: float32[B, K, R, H]. A row that sees nothing in either gives 0."""
    top = jnp.maximum(jnp.maximum(a.lse, b.lse), FLOOR)
    weight_a, weight_b = jnp.exp(a.lse - top), jnp.exp(b.lse - top)
    total = jnp.maximum(weight_a + weight_b, jnp.finfo(jnp.float32).tiny)
    return (a.out * (weight_a / total)[..., None]) + (b.out * (weight_b / total)[..., None])
