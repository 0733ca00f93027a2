"""The rules of acceptance, once, as functions of arrays. Decode methods call them. (Of drawn guesses: rejection.py.)

A draft of width T is tokens[B, T]: column 0 is the pending token, emitted by the last step and not yet in the cache,
and the others are guesses for what follows one another (a chain), or the column that each hangs below (a tree). Logits
at column t speak about the token after it. Accepting n columns emits n tokens: n - 1 guesses, and one more that the
target itself gives.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxinfer.decoding.contract import DecodeState, Draft
from jaxinfer.decoding.drafts.trees import ancestors
from jaxinfer.decoding.sampling.penalties import penalize
from jaxinfer.decoding.sampling.rejection import Accepted, accept_sampled, accept_sampled_tree, draw, leading
from jaxinfer.decoding.sampling.settings import SamplingState, distribution
from jaxinfer.decoding.sampling.truncation import entropy
from jaxinfer.network.transformer import likeliest_token


def accept(
    state: DecodeState, draft: Draft, logits: jax.Array, replaced: bool = False, lenience: float = 1.0
) -> Accepted:
    """Accept the guesses of a draft, under each row's own sampling; logits [B, T, V].

    Rows whose guesses were drawn (`draft.proposal`) emit tokens with the target's distribution: `accept_drawn`. In the
    others, and where every row is at temperature 0, the text is that of one token a step: `accept_guessed`. replaced:
    see `accept_sampled_tree`.

    lenience l below 1 is lossy (Leviathan et al. 2023, appendix A.5): a drawn guess x counts as drawn with probability
    l q(x), so that none is emitted more than p(x) / l of the time; at temperature 0, and where guesses are not drawn, a
    guess is accepted whose probability is at least l times that of the most likely token.
    """

    def fixed(logits):
        given = accept_guessed if lenience == 1 else partial(_accept_lenient, lenience=lenience)
        return given(state, draft, logits)

    if draft.proposal is None or state.sampling is None:
        return fixed(logits)
    cold = state.sampling.temperature == 0

    def sampled(logits):
        accepted, rows = accept_drawn(state, draft, logits, replaced, lenience), draft.drawn
        if lenience < 1:
            rows = ~cold if rows is None else rows & ~cold
        if rows is None:
            return accepted
        return jax.tree.map(
            lambda a, b: jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b), accepted, fixed(logits)
        )

    return jax.lax.cond(jnp.all(cold), fixed, sampled, logits)


def accept_guessed(state: DecodeState, draft: Draft, logits: jax.Array) -> Accepted:
    """Accept the guesses of a draft as if none were random.

    At every column the target says what follows: its most likely token, or one drawn with the key of that place. A
    guess is accepted if the target says the same. So the text is that of one token a step, sampled or not, whatever is
    guessed.
    """
    if state.sampling is None:
        chosen = likeliest_token(logits)
    else:
        chosen = choose(state.sampling, penalize(state, logits, draft.tokens, draft.tree), state.keys(draft.depth))
    if draft.parent is None:
        return accept_chain(draft.tokens, draft.size, chosen)
    return accept_tree(draft.tokens, draft.size, draft.parent, chosen)


def accept_drawn(
    state: DecodeState, draft: Draft, logits: jax.Array, replaced: bool = False, lenience: float = 1.0
) -> Accepted:
    """Accept the guesses of a draft drawn from draft.proposal: emitted tokens have the target's distribution.

    replaced, lenience: see `accept`.
    """
    proposal = draft.proposal
    assert proposal is not None
    target = distribution(state.sampling, penalize(state, logits, draft.tokens, draft.tree))
    given = (target, state.keys(jnp.zeros(1, jnp.int32))[:, 0], proposal)
    if draft.parent is None:
        return accept_sampled(draft.tokens, draft.size, *given, lenience)
    return accept_sampled_tree(draft.tokens, draft.size, draft.parent, *given, replaced, lenience)


def _accept_lenient(state: DecodeState, draft: Draft, logits: jax.Array, lenience: float) -> Accepted:
    """Accept as `accept_close` does, under each row's own sampling."""
    logits = penalize(state, logits, draft.tokens, draft.tree)
    chosen = choose(state.sampling, logits, state.keys(draft.depth))
    temperature = jnp.where(state.sampling.temperature == 0, 1.0, state.sampling.temperature)
    scaled = logits / temperature[:, None, None]
    found = accept_close(draft.tokens, draft.size, _parent_of(draft), chosen, scaled, lenience)
    return found._replace(take=None) if draft.parent is None else found


def _parent_of(draft: Draft) -> jax.Array:
    """Give i32[B, T]: the parent of each column, of a chain too."""
    if draft.parent is not None:
        return draft.parent
    return jnp.broadcast_to(jnp.arange(-1, draft.tokens.shape[1] - 1), draft.tokens.shape)


def accept_one(state: DecodeState, draft: Draft, logits: jax.Array) -> tuple[Accepted, jax.Array]:
    """Accept a draft of the pending token alone, and give the surprise float32[B] of what is emitted.

    In bits, under the distribution that it was drawn from: what mirostat corrects itself by. 0 if nothing was drawn.
    """

    def greedily(logits):
        return likeliest_token(logits), jnp.zeros(logits.shape[0], jnp.float32)

    def sampled(logits):
        probs = distribution(state.sampling, logits)
        token = draw(state.keys(draft.depth), probs)
        return token, -jnp.log2(jnp.take_along_axis(probs[:, 0], token, axis=-1)[:, 0])

    logits = penalize(state, logits, draft.tokens)
    token, surprise = jax.lax.cond(jnp.all(state.sampling.temperature == 0), greedily, sampled, logits)
    return Accepted(token, jnp.ones_like(state.n)), surprise


def choose(sampling: SamplingState, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Choose what the target says after each column, i32[B, T], from penalized logits[B, T, V] and keys [B, T].

    If every row is at temperature 0 no distribution is built: the program branches, the trace does not.
    """

    def greedily(logits):
        return likeliest_token(logits)

    def sampled(logits):
        return draw(keys, distribution(sampling, logits))

    return jax.lax.cond(jnp.all(sampling.temperature == 0), greedily, sampled, logits)


def accept_chain(draft: jax.Array, size: jax.Array, chosen: jax.Array) -> Accepted:
    """Accept the guesses that equal what the target chose (Stern et al. 2018, blockwise parallel decoding).

    draft i32[B, T], of which the first size[B] columns count; chosen i32[B, T]: what the target says after each.
    """
    return Accepted(chosen, 1 + leading(draft[:, 1:] == chosen[:, :-1], size))


def accept_tree(draft: jax.Array, size: jax.Array, parent: jax.Array, chosen: jax.Array) -> Accepted:
    """Accept the longest path from the root of guesses that the target chose above them (SpecInfer, Algorithm 2).

    As `accept_chain`, with parent i32[B, T]. Siblings may say the same: the deepest path counts, of equals the first.
    """
    above = jnp.take_along_axis(chosen, jnp.maximum(parent, 0), axis=1)
    take, n = _longest(draft == above, size, parent)
    return Accepted(jnp.take_along_axis(chosen, take, axis=1), n, take)


def _longest(agrees: jax.Array, size: jax.Array, parent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the longest path from the root on which all of bool[B, T] agree: columns i32[B, T], their number i32[B]."""
    order = jnp.arange(agrees.shape[1])
    agrees = (agrees | (order == 0)) & (order < size[:, None])
    path = ancestors(parent)
    accepted = jnp.all(agrees[:, None, :] | ~path, axis=2)
    depth = jnp.sum(path, axis=2, dtype=jnp.int32) - 1
    leaf = jnp.argmax(jnp.where(accepted, depth, -1), axis=1)
    rows = jnp.arange(agrees.shape[0])
    # Exactly one of the columns on the way to the leaf stands at each depth.
    on_way = path[rows, leaf][:, None, :] & (depth[:, None, :] == order[:, None])
    return jnp.argmax(on_way, axis=2).astype(jnp.int32), 1 + depth[rows, leaf]


def accept_typical(state: DecodeState, draft: Draft, logits: jax.Array, epsilon: float, delta: float) -> Accepted:
    """Accept guesses that are likely enough under each row's own sampling; logits [B, T, V]. Lossy.

    As `accept`, but a guess need not be what the target chose: see `accept_likely`. At temperature 0 it must be.
    """
    logits = penalize(state, logits, draft.tokens, draft.tree)
    chosen = choose(state.sampling, logits, state.keys(draft.depth))
    probs = distribution(state.sampling, logits)
    return accept_likely(draft.tokens, draft.size, _parent_of(draft), chosen, probs, epsilon, delta)


def accept_likely(
    draft: jax.Array,
    size: jax.Array,
    parent: jax.Array,
    chosen: jax.Array,
    probs: jax.Array,
    epsilon: float,
    delta: float,
) -> Accepted:
    """Accept typical guesses (Medusa, Cai et al. 2024, section 2.3.1): p(guess) > min(epsilon, delta * exp(-entropy)).

    As `accept_tree`, with probs float32[B, T, V]: the target's distribution after each column, whose entropy (nats)
    says how sure it is. The longest path of such guesses is emitted, and after it what the target chose there.
    """
    threshold = jnp.minimum(epsilon, delta * jnp.exp(-entropy(probs)))
    above = jnp.maximum(parent, 0)
    rows = jnp.arange(len(draft))[:, None]
    return _accept_those(probs[rows, above, draft] > threshold[rows, above], draft, size, parent, chosen)


def accept_close(
    draft: jax.Array, size: jax.Array, parent: jax.Array, chosen: jax.Array, logits: jax.Array, lenience: float
) -> Accepted:
    """Accept where p(guess) >= lenience * max(p), or the target chose it (Leviathan et al. 2023, appendix A.5).

    As `accept_likely`, with logits float32[B, T, V] in place of probabilities.
    """
    above, rows = jnp.maximum(parent, 0), jnp.arange(len(draft))[:, None]
    close = logits[rows, above, draft] >= (jnp.max(logits, axis=-1) + jnp.log(lenience))[rows, above]
    return _accept_those(close | (draft == chosen[rows, above]), draft, size, parent, chosen)


def _accept_those(
    agrees: jax.Array, draft: jax.Array, size: jax.Array, parent: jax.Array, chosen: jax.Array
) -> Accepted:
    """Accept the longest path of guesses that are agreed to, bool[B, T], and what the target chose after it."""
    take, n = _longest(agrees, size, parent)
    guesses = jnp.take_along_axis(draft, jnp.roll(take, -1, axis=1), axis=1)
    last = jnp.take_along_axis(chosen, take, axis=1)
    return Accepted(jnp.where(jnp.arange(draft.shape[1]) == n[:, None] - 1, last, guesses), n, take)
