"""The definition of attention that every kernel is held to: whole score matrices, in float32, nothing clever."""

import jax
import jax.numpy as jnp

from jaxinfer.cache.codes import through
from jaxinfer.cache.store import Store
from jaxinfer.kernels.contract import PLAIN, Decode, Partial, Scoring, Visible, chain_or, merged, rows_of, with_sinks

HIGHEST = jax.lax.Precision.HIGHEST


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tree: jax.Array | None,
    store: Store,
    layer: jax.Array,
    q_pos: jax.Array,
    extent: jax.Array,
    visible: Visible,
    decode: Decode,
    scoring: Scoring = PLAIN,
    ahead: Store | None = None,
) -> jax.Array:
    """Compute `attention.attend` as its definition says. `extent` only bounds work, and is not needed."""
    mask = visible(q_pos[:, :, None], q_pos[:, None, :]) & chain_or(tree, k.shape[2])
    fresh = partial(q, k, v, mask, q_pos, q_pos, scoring)
    for cached in (store,) if ahead is None else (store, ahead):
        fresh = merged(cached_partial(q, cached, layer, q_pos, visible, decode, scoring), fresh)
    return with_sinks(fresh, scoring.sinks, k.shape[2])


def cached_partial(
    q: jax.Array,
    store: Store,
    layer: jax.Array,
    q_pos: jax.Array,
    visible: Visible,
    decode: Decode,
    scoring: Scoring = PLAIN,
) -> Partial:
    """Compute the attention of q[B, K, T*G, H] over one layer of a store."""

    def of_layer(stored):
        if store.pages is None:
            return jax.tree.map(lambda x: x[layer], stored)
        return through(stored, layer, store.pages)

    keys, values = (decode(of_layer(stored), q.dtype) for stored in (store.k, store.v))
    seen = visible(q_pos[:, :, None], store.pos[:, None, :])
    return partial(q, keys, values, seen, q_pos, store.pos, scoring)


def partial(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    q_pos: jax.Array,
    kv_pos: jax.Array,
    scoring: Scoring = PLAIN,
) -> Partial:
    """Compute softmax(adjusted q k^T) v over the keys of mask: q[B, K, T*G, H], k, v[B, K, S, H], mask bool[B, T, S].

    A score is q . k, then soft-capped, then lowered by ALiBi's slope for each position between q_pos[B, T] and
    kv_pos[B, S]. Learned sinks belong to neither part: `with_sinks` adds them after the merge.
    """
    tokens = mask.shape[1]
    if scoring.value_width is not None:
        v = k[..., : scoring.value_width]
    scores = jnp.einsum("bkrh,bksh->bkrs", q, k, precision=HIGHEST, preferred_element_type=jnp.float32)
    if scoring.softcap:
        scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
    group = q.shape[2] // tokens
    if scoring.slopes is not None:
        distance = jnp.repeat(kv_pos[:, None, :] - q_pos[:, :, None], group, axis=1)[:, None].astype(jnp.float32)
        scores = scores + rows_of(scoring.slopes, q.shape[1], tokens)[None, :, :, None] * distance
    rows = jnp.broadcast_to(jnp.repeat(mask, group, axis=1)[:, None], scores.shape)
    top = jnp.max(scores, axis=-1, where=rows, initial=-jnp.inf)
    top = jnp.where(jnp.isneginf(top), 0.0, top)[..., None]
    weights = jnp.where(rows, jnp.exp(scores - top), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # Weights take the dtype of the values, as in every kernel: sums stay in float32.
    out = jnp.einsum(
        "bkrs,bksh->bkrh", weights.astype(v.dtype), v, precision=HIGHEST, preferred_element_type=jnp.float32
    )
    return Partial(out / jnp.where(total > 0, total, 1.0), (top + jnp.log(total))[..., 0])
