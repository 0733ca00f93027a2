"""The blocks of keys that a kernel visits: decided outside of it, from the positions alone.

A kernel reads, for each block of queries, a list of the blocks of keys in which at least one of its queries sees
something, whatever the rule is: lengths, windows, rings, sinks, tokens that a policy has dropped. What is not in the
list is neither read nor multiplied. The table costs one comparison a query token and slot, for all heads together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinfer.kernels.contract import Visible


class Visits(NamedTuple):
    """blocks i32[B, I, J]: the first total[B, I] of them are to be visited; the others repeat the last of these."""

    blocks: jax.Array
    total: jax.Array


def visits(q_pos: jax.Array, kv_pos: jax.Array, visible: Visible, block: int, ordered: bool) -> Visits:
    """List the visits for q_pos i32[B, I, tokens a block] and kv_pos i32[B, S], in blocks of `block` slots.

    ordered: queries and keys are the same tokens, and a query sees none that stands after it.
    """
    batch, steps, tokens = q_pos.shape
    kv_pos = kv_pos.reshape(batch, 1, -1, 1, block)
    n = kv_pos.shape[2]
    seen = visible(q_pos[:, :, None, :, None], kv_pos)
    seen = jnp.any(seen, axis=(3, 4))
    if ordered:
        last_token = (jnp.arange(steps) + 1) * tokens - 1
        seen &= jnp.arange(n) * block <= last_token[:, None]
    count = jnp.cumsum(seen, axis=-1, dtype=jnp.int32)  # [B, I, J]
    total = count[..., -1]
    wanted = jnp.maximum(jnp.minimum(jnp.arange(n, dtype=jnp.int32), total[..., None] - 1), 0)
    # The j-th visited block is the number of blocks after which at most j were visited.
    blocks = jnp.sum(count[..., None, :] <= wanted[..., None], axis=-1, dtype=jnp.int32)
    return Visits(jnp.minimum(blocks, n - 1), total)


def query_blocks(q: jax.Array, q_pos: jax.Array, tokens: int, rows: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return queries in blocks of `tokens` tokens, each padded to `rows` rows.

    q[B, K, T*G, H], q_pos i32[B, T] -> q[B, K, I*rows, H]; q_pos of tokens i32[B, I, tokens], and of rows
    i32[B, I*rows].
    """
    batch, heads, _, width = q.shape
    n_tokens = q_pos.shape[1]
    group = q.shape[2] // n_tokens
    steps = -(-n_tokens // tokens)
    padding = steps * tokens - n_tokens
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padding * group), (0, 0))).reshape(batch, heads, steps, tokens * group, width)
    q = jnp.pad(q, ((0, 0),) * 3 + ((0, rows - tokens * group), (0, 0))).reshape(batch, heads, steps * rows, width)
    q_pos = jnp.pad(q_pos, ((0, 0), (0, padding)), mode="edge").reshape(batch, steps, tokens)
    of_rows = jnp.repeat(q_pos, group, axis=2)
    of_rows = jnp.pad(of_rows, ((0, 0), (0, 0), (0, rows - tokens * group)), mode="edge")
    return q, q_pos, of_rows.reshape(batch, steps * rows)


def unblock(x: jax.Array, axis: int, rows: int, tokens: int, n_tokens: int, group: int) -> jax.Array:
    """Undo `query_blocks`: rows in padded blocks along an axis -> the T*G rows that were given."""
    steps = x.shape[axis] // rows
    x = x.reshape(*x.shape[:axis], steps, rows, *x.shape[axis + 1 :])
    x = jax.lax.slice_in_dim(x, 0, tokens * group, axis=axis + 1)
    x = x.reshape(*x.shape[:axis], steps * tokens * group, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, n_tokens * group, axis=axis)
