"""The rules of acceptance, once, as functions of arrays. Decode methods call them.

A chain draft of width T is tokens[B, T]: column 0 is the pending token, emitted by the last step and not yet in the
cache, and the others are guesses for what follows it. Logits at column t speak about the token at t + 1. Accepting a
chain of n columns emits n tokens: the guesses 1..n-1, and one more that the target itself gives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinfer.decoding.sampling import SamplingState, distribution


class Accepted(NamedTuple):
    """emit i32[B, T]: the tokens to emit, the first n[B] of them valid."""

    emit: jax.Array
    n: jax.Array


def accept_greedy(draft: jax.Array, size: jax.Array, logits: jax.Array) -> Accepted:
    """Accept the guesses that equal the target's own argmax (Stern et al. 2018, blockwise parallel decoding).

    draft i32[B, T], of which the first size[B] columns count; logits [B, T, V].
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    agrees = draft[:, 1:] == best[:, :-1]
    return Accepted(best, 1 + _leading(agrees, size))


def accept_sampled(
    draft: jax.Array, size: jax.Array, target: jax.Array, keys: jax.Array, proposal: jax.Array | None = None
) -> Accepted:
    """Speculative sampling: emitted tokens are distributed as the target's (Leviathan et al. 2023, Algorithm 1).

    draft i32[B, T], of which the first size[B] columns count; target float32[B, T, V]: the distribution behind each
    column. proposal float32[B, T, V]: what column t + 1 was drawn from, or None if the draft is not random (a point
    mass). A guess x is accepted with probability min(1, p(x) / q(x)); after a rejection the token comes from the
    residual, max(p - q, 0) renormalized.
    """
    batch, width, vocab = target.shape
    accept_key, draw_key = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    guess = draft[:, 1:, None]
    p = jnp.take_along_axis(target[:, :-1], guess, axis=-1)[..., 0]
    q = 1.0 if proposal is None else jnp.take_along_axis(proposal[:, :-1], guess, axis=-1)[..., 0]
    u = jax.vmap(lambda key: jax.random.uniform(key, (width - 1,)))(accept_key)
    accepted = _leading(u * q < p, size)

    rows = jnp.arange(batch)
    here = target[rows, accepted]
    rejected = jnp.where(accepted < size - 1, draft[rows, jnp.minimum(accepted + 1, width - 1)], -1)
    if proposal is None:
        drafted = jax.nn.one_hot(rejected, vocab)
    else:
        drafted = jnp.where((rejected >= 0)[:, None], proposal[rows, accepted], 0.0)
    last = draw(draw_key, jnp.maximum(here - drafted, 0.0))

    columns = jnp.arange(width)
    shifted = jnp.concatenate([draft[:, 1:], draft[:, -1:]], axis=1)
    return Accepted(jnp.where(columns == accepted[:, None], last[:, None], shifted), 1 + accepted)


def accept(sampling: SamplingState, draft: jax.Array, size: jax.Array, logits: jax.Array, keys: jax.Array) -> Accepted:
    """Accept a draft that is not random under the row's own sampling settings, from penalized logits[B, T, V].

    If every row is at temperature 0 no distribution is built: the program branches, the trace does not.
    """

    def greedily(logits):
        return accept_greedy(draft, size, logits)

    def sampled(logits):
        return accept_sampled(draft, size, distribution(sampling, logits), keys)

    return jax.lax.cond(jnp.all(sampling.temperature == 0), greedily, sampled, logits)


def accept_one(
    sampling: SamplingState, draft: jax.Array, size: jax.Array, logits: jax.Array, keys: jax.Array
) -> tuple[Accepted, jax.Array]:
    """`accept` for a draft of the pending token alone, i32[B, 1], and the surprise f32[B] of what is emitted.

    In bits, under the distribution that it was drawn from: what mirostat corrects itself by. 0 if nothing was drawn.
    """

    def greedily(logits):
        return accept_greedy(draft, size, logits), jnp.zeros(logits.shape[0], jnp.float32)

    def sampled(logits):
        target = distribution(sampling, logits)
        accepted = accept_sampled(draft, size, target, keys)
        return accepted, -jnp.log2(jnp.take_along_axis(target[:, 0], accepted.emit, axis=-1)[:, 0])

    return jax.lax.cond(jnp.all(sampling.temperature == 0), greedily, sampled, logits)


def draw(keys: jax.Array, weights: jax.Array) -> jax.Array:
    """One token i32[B] from each row of weights[B, V] (not necessarily normalized), with a key for each row."""
    return jax.vmap(jax.random.categorical)(keys, jnp.log(weights)).astype(jnp.int32)


def _leading(agrees: jax.Array, size: jax.Array) -> jax.Array:
    """i32[B]: how many guesses are accepted before the first that is not, of the size[B] - 1 that count."""
    counts = agrees & (jnp.arange(1, agrees.shape[1] + 1) < size[:, None])
    return jnp.sum(jnp.cumprod(counts.astype(jnp.int32), axis=1), axis=1)
