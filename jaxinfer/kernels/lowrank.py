"""Low-rank attention over a whole text, for encoders: keys and values are projected along the text (Linformer)."""

import jax
import jax.numpy as jnp


def lowrank_attention(q: jax.Array, k: jax.Array, v: jax.Array, e: jax.Array, f: jax.Array, mask=None) -> jax.Array:
    """Compute softmax(q (E k)^T) (F v): q, k, v [B, T, N, H] -> [B, T, N, H], in time and memory T R, not T^2.

    e, f: [R, S] with S at least T, the projections along the text, of which the first T columns are used. mask:
    bool[B, T], False for padding. Every token sees a mixture of all others, later ones too: there is no causal form,
    and so no decode step (Linformer, Wang et al. 2020, equation 7). Raises ValueError if the text is longer than the
    projections.
    """
    n_tokens = k.shape[1]
    if n_tokens > e.shape[1]:
        raise ValueError(
            f"a text of {n_tokens} tokens is longer than the {e.shape[1]} that the projections are made for"
        )
    if mask is not None:
        k, v = (jnp.where(mask[:, :, None, None], x, 0) for x in (k, v))
    keys = jnp.einsum("rs,bsnh->brnh", e[:, :n_tokens], k)
    values = jnp.einsum("rs,bsnh->brnh", f[:, :n_tokens], v)
    scores = jnp.einsum("btnh,brnh->bntr", q, keys, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jnp.einsum("bntr,brnh->btnh", jax.nn.softmax(scores, axis=-1).astype(v.dtype), values)
