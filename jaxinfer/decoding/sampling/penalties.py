"""Changes of logits by the text so far: biases, penalties, n-grams that may not come again, bad words.

Within a draft each column has a text of its own: what is committed, the pending token, and the guesses on the way to
the column, itself among them. All settings are traced: see `SamplingState`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxinfer.decoding.contract import DecodeState
from jaxinfer.decoding.sampling.settings import SamplingState
from jaxinfer.kernels.contract import chain_or


def penalize(state: DecodeState, logits: jax.Array, draft: jax.Array, tree: jax.Array | None = None) -> jax.Array:
    """Bias and penalize logits[B, T, V] after each of the draft tokens i32[B, T], with -inf where banned.

    draft[:, 0] is the pending token, which is counted already. tree bool[B, T, T]: which column has which on its way,
    itself included; None: a chain. Where every token would be banned, none is. Where no row has a setting for it,
    logits pass as they are, at no cost.
    """
    settings: SamplingState = state.sampling
    penalized = jnp.any(
        (settings.repetition_penalty != 1) | (settings.presence_penalty != 0) | (settings.frequency_penalty != 0)
    )
    if not settings.rare:
        seen = partial(_penalize_seen, settings, draft=draft, tree=tree)
        return jax.lax.cond(penalized, seen, lambda logits: logits, logits)
    biased = jnp.any(settings.bias_tokens < logits.shape[-1])
    banned = jnp.any(settings.no_repeat_ngram > 0) | jnp.any(settings.bad_words >= 0)

    def apply(logits):
        logits = jax.lax.cond(biased, lambda x: _add_bias(settings, x), lambda x: x, logits)
        logits = jax.lax.cond(penalized, lambda x: _penalize_seen(settings, x, draft, tree), lambda x: x, logits)
        return jax.lax.cond(banned, lambda x: _ban(state, x, draft, tree), lambda x: x, logits)

    return jax.lax.cond(biased | penalized | banned, apply, lambda logits: logits, logits)


def _add_bias(settings: SamplingState, logits: jax.Array) -> jax.Array:
    rows = jnp.arange(logits.shape[0])[:, None]
    biased = logits.at[rows, :, settings.bias_tokens].add(settings.bias_values[:, :, None], mode="drop")
    return jnp.where(jnp.max(biased, axis=-1, keepdims=True) > -jnp.inf, biased, logits)


def _penalize_seen(settings: SamplingState, logits: jax.Array, draft: jax.Array, tree: jax.Array | None) -> jax.Array:
    """Apply repetition, presence and frequency penalties, by how often each token was seen."""

    def column(x):
        return x[:, None, None]

    ahead = jax.nn.one_hot(draft, logits.shape[-1], dtype=jnp.int32).at[:, 0].set(0)
    ahead = jnp.cumsum(ahead, axis=1) if tree is None else jnp.einsum("bts,bsv->btv", tree.astype(jnp.int32), ahead)
    counts = settings.counts[:, None] + ahead
    seen = settings.in_prompt[:, None] | (counts > 0)
    repetition = column(settings.repetition_penalty)
    logits = jnp.where(seen, jnp.where(logits > 0, logits / repetition, logits * repetition), logits)
    return logits - column(settings.presence_penalty) * (counts > 0) - column(settings.frequency_penalty) * counts


def _ban(state: DecodeState, logits: jax.Array, draft: jax.Array, tree: jax.Array | None) -> jax.Array:
    text, length = texts(state.tokens, state.n, draft, tree)
    settings: SamplingState = state.sampling
    last = [ends_of_repeats(text, length, settings.no_repeat_ngram), ends_of_words(text, length, settings.bad_words)]
    banned = jnp.concatenate(last, axis=2)
    banned = jnp.where(banned < 0, logits.shape[-1], banned)  # outside: dropped
    rows, columns = jnp.arange(logits.shape[0])[:, None, None], jnp.arange(logits.shape[1])[:, None]
    left = logits.at[rows, columns, banned].set(-jnp.inf, mode="drop")
    return jnp.where(jnp.max(left, axis=-1, keepdims=True) > -jnp.inf, left, logits)


def texts(
    tokens: jax.Array, n: jax.Array, draft: jax.Array, tree: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Give the text after which each draft column speaks: i32[B, T, P], P < M + T, and its length i32[B, T].

    tokens i32[B, M], of which the first n[B] are valid, the last of them draft[:, 0].
    """
    batch, width = draft.shape
    room = jnp.pad(tokens, ((0, 0), (0, width - 1)))[:, None]
    if width == 1:
        return room, n[:, None]
    tree = jnp.broadcast_to(chain_or(tree, width), (batch, width, width))
    depth = jnp.sum(tree, axis=-1, dtype=jnp.int32) - 1
    text = jnp.broadcast_to(room, (batch, width, room.shape[2]))
    place = jnp.where(tree, n[:, None, None] - 1 + depth[:, None], room.shape[2])  # off the way: dropped
    rows, columns = jnp.arange(batch)[:, None, None], jnp.arange(width)[:, None]
    return text.at[rows, columns, place].set(draft[:, None], mode="drop"), n[:, None] + depth


def ends_of_repeats(text: jax.Array, length: jax.Array, size: jax.Array) -> jax.Array:
    """Give the tokens that would make the last size[B] tokens of a text come again: i32[B, T, P], the others -1.

    text i32[B, T, P], of which the first length[B, T] are valid; size 0: none. As transformers'
    NoRepeatNGramLogitsProcessor (Paulus et al. 2018, section 2.5).
    """
    size = jnp.where((size > 0) & (size <= jnp.max(length, axis=1)), size, 0)[:, None, None]
    length, places = length[:, :, None], jnp.arange(text.shape[2])

    def compare(back, carry):
        """Tell whether the token back + 1 places before each place equals the one that is so far before the end."""
        equal, earlier = carry
        earlier = jnp.roll(earlier, 1, axis=2)
        newest = jnp.sum(jnp.where(places == length - 1 - back, text, 0), axis=2, keepdims=True)
        return equal & ((earlier == newest) | (back >= size - 1)), earlier

    inside = (size > 0) & (places >= size - 1) & (places < length)
    equal, _ = jax.lax.fori_loop(0, jnp.max(size) - 1, compare, (inside, text))
    return jnp.where(equal, text, -1)


def ends_of_words(text: jax.Array, length: jax.Array, words: jax.Array) -> jax.Array:
    """Give the tokens that would complete one of the words i32[B, W, L], which are padded with -1: i32[B, T, W], or -1.

    As transformers' NoBadWordsLogitsProcessor: a word of one token always, another where the text ends like its start.
    """
    size = jnp.sum(words >= 0, axis=-1)[:, None]  # [B, 1, W]
    order = jnp.arange(words.shape[2])
    is_last = order == size[..., None] - 1  # [B, 1, W, L]
    place = length[:, :, None, None] - (size - 1)[..., None] + order  # where each token but the last has to stand
    rows, columns = jnp.arange(text.shape[0])[:, None, None, None], jnp.arange(text.shape[1])[:, None, None]
    there = text.at[rows, columns, place].get(mode="fill", fill_value=-2, wrap_negative_indices=False)
    matches = jnp.all((there == words[:, None]) | is_last | (words[:, None] < 0), axis=-1)
    return jnp.where(matches, jnp.sum(jnp.where(is_last, words[:, None] + 1, 0), axis=-1) - 1, -1)
