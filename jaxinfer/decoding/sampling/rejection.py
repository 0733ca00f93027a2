"""Rejection sampling: guesses that were drawn from a proposal leave the target's distribution as it is.

Drafts are as in acceptance.py: tokens[B, T], column 0 the pending token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Accepted(NamedTuple):
    """emit i32[B, E]: the tokens to emit, the first n[B] valid; take i32[B, E]: their columns, None: the first n."""

    emit: jax.Array
    n: jax.Array
    take: jax.Array | None = None


def accept_sampled(
    draft: jax.Array,
    size: jax.Array,
    target: jax.Array,
    keys: jax.Array,
    proposal: jax.Array,
    lenience: float = 1.0,
) -> Accepted:
    """Sample speculatively: emitted tokens are distributed as the target's (Leviathan et al. 2023, Algorithm 1).

    draft i32[B, T], of which the first size[B] columns count; target float32[B, T, V]: the distribution after each
    column; proposal float32[B, T, V]: what column t + 1 was drawn from; keys [B]. A guess x is accepted with
    probability min(1, p(x) / q(x)); after a rejection the token comes from the residual, max(p - q, 0) renormalized.
    """
    batch, width, _ = target.shape
    accept_key, draw_key = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    guess = draft[:, 1:, None]
    p = jnp.take_along_axis(target[:, :-1], guess, axis=-1)[..., 0]
    q = jnp.take_along_axis(proposal[:, :-1], guess, axis=-1)[..., 0]
    u = jax.vmap(lambda key: jax.random.uniform(key, (width - 1,)))(accept_key)
    accepted = leading(u * lenience * q < p, size)

    rows = jnp.arange(batch)
    here = target[rows, accepted]
    rejected = accepted < size - 1
    last = draw(draw_key, residual(here, jnp.where(rejected[:, None], lenience * proposal[rows, accepted], 0.0)))

    columns = jnp.arange(width)
    shifted = jnp.concatenate([draft[:, 1:], draft[:, -1:]], axis=1)
    return Accepted(jnp.where(columns == accepted[:, None], last[:, None], shifted), 1 + accepted)


def accept_sampled_tree(
    draft: jax.Array,
    size: jax.Array,
    parent: jax.Array,
    target: jax.Array,
    keys: jax.Array,
    proposal: jax.Array,
    replaced: bool = False,
    lenience: float = 1.0,
) -> Accepted:
    """Reject recursively: emitted tokens are distributed as the target's (Jeon et al. 2024).

    As `accept_sampled`, for a tree. The guesses below column t were drawn from proposal[:, t] one after the other
    without replacement, in the order of their columns. Each is tested against what the rejections before it left of the
    target, with what the draws before it left of the proposal (Sequoia, Chen et al. 2024, Algorithm 2).

    replaced: they were drawn independently, with replacement, and the proposal stays as it is (SpecInfer, Miao et al.
    2023, section 4.3: multi-step speculative sampling).
    """
    batch, width, _ = target.shape
    rows = jnp.arange(batch)
    test_keys = jax.vmap(lambda key: jax.random.split(key, width + 1))(keys)

    def visit(t, carry):
        at, p, q, take, n = carry
        token = draft[:, t]
        is_child = (parent[:, t] == at) & (t < size)
        u = jax.vmap(jax.random.uniform)(test_keys[:, t])
        p_x, q_x = p[rows, token], q[rows, token]
        accepted = is_child & (u * lenience * q_x < p_x)
        rejected = is_child & ~accepted
        left = residual(p, lenience * q)
        without = q if replaced else q.at[rows, token].set(0.0)
        without /= jnp.maximum(jnp.sum(without, axis=-1, keepdims=True), 1e-30)
        p = jnp.where(accepted[:, None], target[:, t], jnp.where(rejected[:, None], left, p))
        q = jnp.where(accepted[:, None], proposal[:, t], jnp.where(rejected[:, None], without, q))
        take = take.at[rows, jnp.where(accepted, n, width)].set(t, mode="drop")
        return jnp.where(accepted, t, at), p, q, take, n + accepted

    start = (jnp.zeros(batch, jnp.int32), target[:, 0], proposal[:, 0])
    counters = (jnp.zeros((batch, width), jnp.int32), jnp.ones(batch, jnp.int32))
    _, p, _, take, n = jax.lax.fori_loop(1, width, visit, (*start, *counters))
    last = draw(test_keys[:, width], p)
    guesses = jnp.take_along_axis(draft, jnp.roll(take, -1, axis=1), axis=1)
    return Accepted(jnp.where(jnp.arange(width) == n[:, None] - 1, last[:, None], guesses), n, take)


def residual(p: jax.Array, q: jax.Array) -> jax.Array:
    """Compute max(p - q, 0), renormalized over the last axis; p where nothing is left: then p = q up to rounding."""
    left = jnp.maximum(p - q, 0.0)
    total = jnp.sum(left, axis=-1, keepdims=True)
    return jnp.where(total > 0, left / jnp.maximum(total, 1e-30), p)


def draw(keys: jax.Array, probs: jax.Array) -> jax.Array:
    """Draw a token i32[...] from each of probs[..., V], with the keys [...], one random number each (inverse CDF).

    A token of probability 0 is never drawn, whatever the sums are rounded to.
    """
    u = jax.vmap(jax.random.uniform)(keys.reshape(-1)).reshape(keys.shape)
    sums = jnp.cumsum(probs, axis=-1)
    reached = (sums > u[..., None] * sums[..., -1:]) & (probs > 0)
    last = probs.shape[-1] - 1 - jnp.argmax(probs[..., ::-1] > 0, axis=-1)
    return jnp.where(jnp.any(reached, axis=-1), jnp.argmax(reached, axis=-1), last).astype(jnp.int32)


def leading(agrees: jax.Array, size: jax.Array) -> jax.Array:
    """Count the guesses accepted before the first that is not, i32[B], of the size[B] - 1 that count."""
    counts = agrees & (jnp.arange(1, agrees.shape[1] + 1) < size[:, None])
    return jnp.sum(jnp.cumprod(counts.astype(jnp.int32), axis=1), axis=1)
