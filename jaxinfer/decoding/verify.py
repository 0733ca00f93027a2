"""The rules of acceptance, once, as functions of arrays. Decode methods call them.

A draft of width T is tokens[B, T]: column 0 is the pending token, emitted by the last step and not yet in the cache,
and the others are guesses for what follows one another (a chain), or the column that each hangs below (a tree). Logits
at column t speak about the token behind it. Accepting n columns emits n tokens: n - 1 guesses, and one more that the
target itself gives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinfer.decoding.method import DecodeState, Draft
from jaxinfer.decoding.penalties import penalize
from jaxinfer.decoding.sampling import SamplingState, distribution
from jaxinfer.decoding.trees import ancestors
from jaxinfer.decoding.truncation import entropy


class Accepted(NamedTuple):
    """emit i32[B, E]: the tokens to emit, the first n[B] valid; take i32[B, E]: their columns, None: the first n."""

    emit: jax.Array
    n: jax.Array
    take: jax.Array | None = None


def accept(state: DecodeState, draft: Draft, logits: jax.Array) -> Accepted:
    """Accept the guesses of a draft, under each row's own sampling; logits [B, T, V].

    Rows whose guesses were drawn (`draft.proposal`) emit tokens with the target's distribution: `accept_drawn`. In the
    others, and where every row is at temperature 0, the text is that of one token a step: `accept_guessed`.
    """
    if draft.proposal is None or state.sampling is None:
        return accept_guessed(state, draft, logits)

    def sampled(logits):
        drawn, rows = accept_drawn(state, draft, logits), draft.drawn
        if rows is None:
            return drawn
        guessed = accept_guessed(state, draft, logits)
        return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b), drawn, guessed)

    cold = jnp.all(state.sampling.temperature == 0)
    return jax.lax.cond(cold, lambda x: accept_guessed(state, draft, x), sampled, logits)


def accept_guessed(state: DecodeState, draft: Draft, logits: jax.Array) -> Accepted:
    """Accept the guesses of a draft as if none were random.

    At every column the target says what follows: its most likely token, or one drawn with the key of that place. A
    guess is accepted if the target says the same. So the text is that of one token a step, sampled or not, whatever is
    guessed.
    """
    if state.sampling is None:
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        chosen = choose(state.sampling, penalize(state, logits, draft.tokens, draft.tree), state.keys(draft.depth))
    if draft.parent is None:
        return accept_chain(draft.tokens, draft.size, chosen)
    return accept_tree(draft.tokens, draft.size, draft.parent, chosen)


def accept_drawn(state: DecodeState, draft: Draft, logits: jax.Array) -> Accepted:
    """Accept the guesses of a draft drawn from draft.proposal: emitted tokens have the target's distribution."""
    proposal = draft.proposal
    assert proposal is not None
    target = distribution(state.sampling, penalize(state, logits, draft.tokens, draft.tree))
    keys = state.keys(jnp.zeros(1, jnp.int32))[:, 0]
    if draft.parent is None:
        return accept_sampled(draft.tokens, draft.size, target, keys, proposal)
    return accept_sampled_tree(draft.tokens, draft.size, draft.parent, target, keys, proposal)


def accept_one(state: DecodeState, draft: Draft, logits: jax.Array) -> tuple[Accepted, jax.Array]:
    """`accept` for a draft of the pending token alone, and the surprise float32[B] of what is emitted.

    In bits, under the distribution that it was drawn from: what mirostat corrects itself by. 0 if nothing was drawn.
    """

    def greedily(logits):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(logits.shape[0], jnp.float32)

    def sampled(logits):
        probs = distribution(state.sampling, logits)
        token = draw(state.keys(draft.depth), probs)
        return token, -jnp.log2(jnp.take_along_axis(probs[:, 0], token, axis=-1)[:, 0])

    logits = penalize(state, logits, draft.tokens)
    token, surprise = jax.lax.cond(jnp.all(state.sampling.temperature == 0), greedily, sampled, logits)
    return Accepted(token, jnp.ones_like(state.n)), surprise


def choose(sampling: SamplingState, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """What the target says behind each column, i32[B, T], from penalized logits[B, T, V] and keys [B, T].

    If every row is at temperature 0 no distribution is built: the program branches, the trace does not.
    """

    def greedily(logits):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def sampled(logits):
        return draw(keys, distribution(sampling, logits))

    return jax.lax.cond(jnp.all(sampling.temperature == 0), greedily, sampled, logits)


def accept_chain(draft: jax.Array, size: jax.Array, chosen: jax.Array) -> Accepted:
    """Accept the guesses that equal what the target chose (Stern et al. 2018, blockwise parallel decoding).

    draft i32[B, T], of which the first size[B] columns count; chosen i32[B, T]: what the target says behind each.
    """
    return Accepted(chosen, 1 + _leading(draft[:, 1:] == chosen[:, :-1], size))


def accept_tree(draft: jax.Array, size: jax.Array, parent: jax.Array, chosen: jax.Array) -> Accepted:
    """The longest path from the root on which every guess is what the target chose above it (SpecInfer, Algorithm 2).

    As `accept_chain`, with parent i32[B, T]. Siblings may say the same: the deepest path counts, of equals the first.
    """
    above = jnp.take_along_axis(chosen, jnp.maximum(parent, 0), axis=1)
    take, n = _longest(draft == above, size, parent)
    return Accepted(jnp.take_along_axis(chosen, take, axis=1), n, take)


def _longest(agrees: jax.Array, size: jax.Array, parent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The longest path from the root on which all of bool[B, T] agree, as columns i32[B, T], and its length i32[B]."""
    order = jnp.arange(agrees.shape[1])
    agrees = (agrees | (order == 0)) & (order < size[:, None])
    path = ancestors(parent)
    accepted = jnp.all(agrees[:, None, :] | ~path, axis=2)
    depth = jnp.sum(path, axis=2, dtype=jnp.int32) - 1
    leaf = jnp.argmax(jnp.where(accepted, depth, -1), axis=1)
    rows = jnp.arange(agrees.shape[0])
    # Of the columns on the way to the leaf exactly one stands at each depth.
    on_way = path[rows, leaf][:, None, :] & (depth[:, None, :] == order[:, None])
    return jnp.argmax(on_way, axis=2).astype(jnp.int32), 1 + depth[rows, leaf]


def accept_typical(state: DecodeState, draft: Draft, logits: jax.Array, epsilon: float, delta: float) -> Accepted:
    """Accept guesses that are likely enough under each row's own sampling; logits [B, T, V]. Lossy.

    As `accept`, but a guess need not be what the target chose: see `accept_likely`. At temperature 0 it must be.
    """
    logits = penalize(state, logits, draft.tokens, draft.tree)
    chosen = choose(state.sampling, logits, state.keys(draft.depth))
    probs = distribution(state.sampling, logits)
    parent = draft.parent
    if parent is None:
        parent = jnp.broadcast_to(jnp.arange(-1, draft.tokens.shape[1] - 1), draft.tokens.shape)
    return accept_likely(draft.tokens, draft.size, parent, chosen, probs, epsilon, delta)


def accept_likely(
    draft: jax.Array,
    size: jax.Array,
    parent: jax.Array,
    chosen: jax.Array,
    probs: jax.Array,
    epsilon: float,
    delta: float,
) -> Accepted:
    """Typical acceptance (Medusa, Cai et al. 2024, section 2.3.1): p(guess) > min(epsilon, delta * exp(-entropy)).

    As `accept_tree`, with probs float32[B, T, V]: the target's distribution behind each column, whose entropy (nats)
    says how sure it is. The longest path of such guesses is emitted, and behind it what the target chose there.
    """
    threshold = jnp.minimum(epsilon, delta * jnp.exp(-entropy(probs)))
    above = jnp.maximum(parent, 0)
    rows = jnp.arange(len(draft))[:, None]
    likely = probs[rows, above, draft] > threshold[rows, above]
    take, n = _longest(likely, size, parent)
    guesses = jnp.take_along_axis(draft, jnp.roll(take, -1, axis=1), axis=1)
    last = chosen[rows, take]
    return Accepted(jnp.where(jnp.arange(draft.shape[1]) == n[:, None] - 1, last, guesses), n, take)


def accept_sampled(
    draft: jax.Array, size: jax.Array, target: jax.Array, keys: jax.Array, proposal: jax.Array
) -> Accepted:
    """Speculative sampling: emitted tokens are distributed as the target's (Leviathan et al. 2023, Algorithm 1).

    draft i32[B, T], of which the first size[B] columns count; target float32[B, T, V]: the distribution behind each
    column; proposal float32[B, T, V]: what column t + 1 was drawn from; keys [B]. A guess x is accepted with
    probability min(1, p(x) / q(x)); after a rejection the token comes from the residual, max(p - q, 0) renormalized.
    """
    batch, width, _ = target.shape
    accept_key, draw_key = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    guess = draft[:, 1:, None]
    p = jnp.take_along_axis(target[:, :-1], guess, axis=-1)[..., 0]
    q = jnp.take_along_axis(proposal[:, :-1], guess, axis=-1)[..., 0]
    u = jax.vmap(lambda key: jax.random.uniform(key, (width - 1,)))(accept_key)
    accepted = _leading(u * q < p, size)

    rows = jnp.arange(batch)
    here = target[rows, accepted]
    rejected = accepted < size - 1
    last = draw(draw_key, residual(here, jnp.where(rejected[:, None], proposal[rows, accepted], 0.0)))

    columns = jnp.arange(width)
    shifted = jnp.concatenate([draft[:, 1:], draft[:, -1:]], axis=1)
    return Accepted(jnp.where(columns == accepted[:, None], last[:, None], shifted), 1 + accepted)


def accept_sampled_tree(
    draft: jax.Array, size: jax.Array, parent: jax.Array, target: jax.Array, keys: jax.Array, proposal: jax.Array
) -> Accepted:
    """Recursive rejection sampling: emitted tokens are distributed as the target's (Jeon et al. 2024).

    As `accept_sampled`, for a tree. The guesses below column t were drawn from proposal[:, t] one after the other
    without replacement, in the order of their columns. Each is tested against what the rejections before it left of the
    target, with what the draws before it left of the proposal (Sequoia, Chen et al. 2024, Algorithm 2).
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
        accepted = is_child & (u * q_x < p_x)
        rejected = is_child & ~accepted
        left = residual(p, q)
        without = q.at[rows, token].set(0.0)
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
    """max(p - q, 0) renormalized over the last axis; p where nothing is left of it, for then p = q up to rounding."""
    left = jnp.maximum(p - q, 0.0)
    total = jnp.sum(left, axis=-1, keepdims=True)
    return jnp.where(total > 0, left / jnp.maximum(total, 1e-30), p)


def draw(keys: jax.Array, probs: jax.Array) -> jax.Array:
    """One token i32[...] from each of probs[..., V], with the keys [...], one random number each (inverse transform).

    A token of probability 0 is never drawn, whatever the sums are rounded to.
    """
    u = jax.vmap(jax.random.uniform)(keys.reshape(-1)).reshape(keys.shape)
    sums = jnp.cumsum(probs, axis=-1)
    reached = (sums > u[..., None] * sums[..., -1:]) & (probs > 0)
    last = probs.shape[-1] - 1 - jnp.argmax(probs[..., ::-1] > 0, axis=-1)
    return jnp.where(jnp.any(reached, axis=-1), jnp.argmax(reached, axis=-1), last).astype(jnp.int32)


def _leading(agrees: jax.Array, size: jax.Array) -> jax.Array:
    """i32[B]: how many guesses are accepted before the first that is not, of the size[B] - 1 that count."""
    counts = agrees & (jnp.arange(1, agrees.shape[1] + 1) < size[:, None])
    return jnp.sum(jnp.cumprod(counts.astype(jnp.int32), axis=1), axis=1)
