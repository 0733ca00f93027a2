"""Linear recurrences: states that are carried along the text, and the outputs that are read off them.

B batch, T tokens, a state leaf is [B, ...]. Tokens that are padding leave the state as it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

CHUNK = 64  # tokens whose effect on each other is computed as a matrix


def run(
    step: Callable[[Any, Any], tuple[Any, jax.Array]], state: Any, inputs: Any, keep_all: bool
) -> tuple[jax.Array, Any]:
    """Run step(state, inputs of a token) -> state, output, over tokens: outputs [B, T, ...], states [B, T or 1, ...].

    inputs: leaves [B, T, ...]. keep_all: the state after every token; otherwise that after the last one.
    """
    first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs)

    def body(state, x):
        state, y = step(state, x)
        return state, (y, state if keep_all else None)

    last, (out, states) = jax.lax.scan(body, state, first)
    kept = (
        jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), states) if keep_all else jax.tree.map(lambda x: x[:, None], last)
    )
    return jnp.moveaxis(out, 0, 1), kept


def chunked(
    decay: jax.Array, keys: jax.Array, values: jax.Array, queries: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute h_t = exp(decay_t) h_{t-1} + v_t k_t^T, y_t = h_t q_t: y[B, T, H, P] and the last h[B, H, P, N].

    decay [B, T, H] at most 0; keys, queries [B, T, H, N]; values [B, T, H, P]; state [B, H, P, N]. Within a chunk the
    recurrence is a product with a masked matrix, between chunks it is carried (state-space duality, Mamba-2, Dao and Gu
    2024, section 6).
    """
    n_tokens = decay.shape[1]
    size = min(CHUNK, n_tokens)
    rest = -n_tokens % size

    def cut(x):  # [chunks, B, size, ...]; what is added decays nothing and adds nothing
        x = jnp.pad(x, ((0, 0), (0, rest), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    causal = jnp.tril(jnp.ones((size, size), bool))

    def body(h, chunk):
        a, k, v, q = chunk
        total = jnp.cumsum(a, axis=1)  # [B, size, H]
        spread = total[:, :, None] - total[:, None, :]  # decay from token s to token t
        weights = jnp.exp(jnp.where(causal[None, :, :, None], spread, -jnp.inf))
        scores = jnp.einsum("bthn,bshn->btsh", q, k) * weights
        y = jnp.einsum("btsh,bshp->bthp", scores, v)
        y = y + jnp.einsum("bthn,bhpn->bthp", q, h) * jnp.exp(total)[..., None]
        left = jnp.exp(total[:, -1:] - total)
        h = jnp.exp(total[:, -1])[..., None, None] * h + jnp.einsum("bshp,bshn,bsh->bhpn", v, k, left)
        return h, y

    last, out = jax.lax.scan(body, state, tuple(map(cut, (decay, keys, values, queries))))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :n_tokens], last


def causal_conv(
    x: jax.Array, before: jax.Array, kernel: jax.Array, bias: jax.Array | None, n: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Convolve each channel for itself along the text: y[B, T, C] and the inputs that the next tokens need.

    before: the last W - 1 inputs [B, W-1, C]. kernel [C, W]. n: i32[B], tokens that are not padding: the inputs after
    the last of them [B, 1, W-1, C]; None: those after every token [B, T, W-1, C].
    """
    width, n_tokens = kernel.shape[1], x.shape[1]
    whole = jnp.concatenate([before, x.astype(before.dtype)], axis=1)  # [B, W-1+T, C]
    y = jnp.zeros(x.shape, whole.dtype)
    for i in range(width):
        y = y + whole[:, i : i + n_tokens] * kernel[:, i]
    if bias is not None:
        y = y + bias
    if n is None:
        windows = jnp.stack([whole[:, t + 1 : t + width] for t in range(n_tokens)], axis=1)
    else:
        windows = jax.vmap(lambda row, end: jax.lax.dynamic_slice_in_dim(row, end, width - 1))(whole, n)[:, None]
    return y.astype(x.dtype), windows
