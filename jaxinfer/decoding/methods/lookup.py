"""Prompt lookup decoding: the text so far is the draft model (Saxena 2023; LLMA, Yang et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.decoding.checks import ngrams, room_to_guess
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output

UNROLLED = 32  # tokens of an ending that are compared in one piece of program


@dataclass(frozen=True)
class Lookup(DecodeMethod):
    """Prompt lookup: guess that what followed the last n-gram before will follow it again. Lossless.

    The longer the match, the likelier the guesses: where it is shorter than `ngram`, `narrow` makes fewer of them, and
    a step in which no row has more takes the time of so many tokens.
    """

    width: int = 8  # tokens scored per step: the pending one and width - 1 guesses
    ngram: int = 3  # the longest match looked for
    min_ngram: int = 1  # the shortest match that is worth a draft
    narrow: int | None = None  # tokens scored after a match shorter than `ngram`; None: width

    samples: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        room_to_guess(self)
        ngrams(self)
        if self.narrow is not None and not 2 <= self.narrow <= self.width:
            raise InputError(f"narrow={self.narrow} must be between 2 and width={self.width}")

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        guesses, length = continue_match(state.tokens, state.n, self.width - 1, self.ngram, self.min_ngram)
        tokens = jnp.concatenate([state.pending[:, None], guesses], axis=1)
        narrow = self.narrow or self.width
        size = jnp.where(length < self.ngram, narrow, self.width)
        return Draft(tokens, size=jnp.where(length > 0, size, 1), narrower=(1, narrow))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits))


def continue_match(
    tokens: jax.Array, n: jax.Array, count: int, longest: int, shortest: int
) -> tuple[jax.Array, jax.Array]:
    """Continue tokens i32[B, M] (the first n[B] valid) as after the best earlier match of their ending.

    The longest match of at most `longest` tokens wins, among equals the latest. Returns i32[B, count] and the length of
    the match, i32[B]; 0 if none has `shortest` tokens. Where the match overlaps the ending, what follows repeats.
    """
    length = earlier_matches(tokens, n, longest)
    best = latest_longest(length)
    longest_found = jnp.take_along_axis(length, best[:, None], axis=1)[:, 0]
    found = jnp.where(longest_found >= shortest, longest_found, 0)
    return continuations(tokens, n, best[:, None], count)[:, 0], found


def ending(tokens: jax.Array, n: jax.Array, longest: int) -> jax.Array:
    """Give i32[B, longest]: the last of each row's first n[B] tokens, the one before it, ...; -2 before the first."""
    places = n[:, None] - 1 - jnp.arange(longest)
    return jnp.where(places >= 0, jnp.take_along_axis(tokens, jnp.maximum(places, 0), axis=1), -2)


def matches(ends: jax.Array, corpus: jax.Array) -> jax.Array:
    """Give i32[B, M]: how many of the tokens up to each place of corpus i32[B or 1, M] agree with the ending i32[B, K].

    The ending stands in reverse, as `ending` gives it. No token of it equals a -1, which may part documents.
    """
    longest, places = ends.shape[1], jnp.arange(corpus.shape[1])
    if longest > UNROLLED:
        return _long_matches(ends, corpus)
    # Does the token j before place i equal the token j before the last one? Runs of yes from j = 0 on are matches.
    equal = jnp.stack([(jnp.roll(corpus, j, axis=1) == ends[:, j, None]) & (places >= j) for j in range(longest)])
    return jnp.sum(jnp.cumprod(equal.astype(jnp.int32), axis=0), axis=0)


def _long_matches(ends: jax.Array, corpus: jax.Array) -> jax.Array:
    """Do as `matches`, token by token: a program that does not grow with the ending."""
    places = jnp.arange(corpus.shape[1])

    def one(j: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        length, going, before = carry
        newest = jax.lax.dynamic_slice_in_dim(ends, j, 1, axis=1)
        going &= (before == newest) & (places >= j)
        return length + going, going, jnp.roll(before, 1, axis=1)

    shape = (ends.shape[0], corpus.shape[1])
    start = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), jnp.broadcast_to(corpus, shape)
    return jax.lax.fori_loop(0, ends.shape[1], one, start)[0]


def earlier_matches(tokens: jax.Array, n: jax.Array, longest: int) -> jax.Array:
    """Give i32[B, M]: the length of the match of a text's ending that ends at each place; the last is no match."""
    length = matches(ending(tokens, n, longest), tokens)
    return jnp.where(jnp.arange(tokens.shape[1]) < n[:, None] - 1, length, 0)


def latest_longest(length: jax.Array) -> jax.Array:
    """Give i32[B]: where length i32[B, M] is largest; of equals the last place."""
    return length.shape[1] - 1 - jnp.argmax(length[:, ::-1], axis=1)


def continuations(tokens: jax.Array, n: jax.Array, places: jax.Array, count: int) -> jax.Array:
    """Give i32[B, P, count]: what follows each of places i32[B, P]; after the text's end, what followed repeats."""
    period = jnp.maximum(n[:, None] - 1 - places, 1)
    index = places[:, :, None] + 1 + jnp.arange(count) % period[:, :, None]
    flat = jnp.take_along_axis(tokens, index.reshape(index.shape[0], -1), axis=1, mode="clip")
    return flat.reshape(index.shape)
