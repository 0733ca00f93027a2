"""No stop token before a row has as many new tokens as it has to have."""

import jax
import jax.numpy as jnp

from jaxinfer.decoding.contract import DecodeState


def hold_back(state: DecodeState, depth: jax.Array, logits: jax.Array) -> jax.Array:
    """Set stop tokens to -inf in logits[B, T, V], in columns whose next token may be none yet.

    depth i32[T] or i32[B, T]: how far after the pending token each column stands. As transformers'
    MinNewTokensLengthLogitsProcessor. Where a constraint has left nothing but stop tokens, they stay. Where no row asks
    for it, logits pass as they are, and nothing is compiled.
    """
    if state.least is None:
        return logits
    early = jnp.broadcast_to(state.n[:, None] + depth < state.least[:, None], logits.shape[:2])
    place = jnp.where(state.stop < 0, logits.shape[-1], state.stop)  # outside: dropped
    held = logits.at[:, :, place].set(-jnp.inf, mode="drop")
    early &= jnp.max(held, axis=-1) > -jnp.inf
    return jnp.where(early[:, :, None], held, logits)
