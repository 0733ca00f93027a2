"""Lookahead decoding: n-grams from Jacobi trajectories, collected and verified in one forward (Fu et al. 2024)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.decoding.checks import takes_trees
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict, key_of
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output, likeliest_token


@struct.dataclass
class Trajectory:
    """The window and the pool of one generation; every row has its own."""

    window: jax.Array  # i32[B, N - 1, W]: the last N - 1 iterates of a Jacobi iteration over W places
    pool: jax.Array  # i32[B, buckets, G, N]: n-grams by their first token; the oldest of a bucket first, -1 where empty


@dataclass(frozen=True)
class Lookahead(DecodeMethod):
    """Lookahead decoding: guess n-grams that the model said in a Jacobi window before. Lossless.

    Levels and places of the window are one tree with the guesses, as in Figure 2 of the paper: level 0 is a chain below
    the pending token, the token (level j, place i) hangs below (j - 1, i), and each guess is a chain below the pending
    token. A diagonal of the window and what the model says after it are an n-gram, which goes to the pool. What the
    model confirms of level 0 is accepted too.
    """

    window: int = 10  # W: places that the lookahead branch iterates over
    ngram: int = 5  # N: tokens of an n-gram; the branch has N - 1 levels
    guesses: int = 10  # G: n-grams verified per step, and kept for each bucket of first tokens
    buckets: int = 1024  # of the pool: first tokens that are equal modulo this share G places
    from_text: bool = True  # the n-grams of the prompt and of the new text go to the pool as well

    samples: ClassVar[bool] = True
    can_rest: ClassVar[bool] = True
    unbounded: ClassVar[tuple[str, ...]] = ("buckets",)  # no more are made than there are tokens

    def __post_init__(self):
        typed(self)
        for name, least in (("window", 1), ("ngram", 2), ("guesses", 1), ("buckets", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")

    @property
    def width(self) -> int:
        return (self.ngram - 1) * (self.window + self.guesses)

    def check(self, model, policy) -> None:
        takes_trees(self, model)

    def init(self, ctx: Context, state: DecodeState) -> Trajectory:
        batch, levels = state.n.shape[0], self.ngram - 1
        # The iteration starts from tokens of the prompt, in no order.
        keys = jax.vmap(key_of)(state.seeds)
        places = jax.vmap(lambda key, n: jax.random.randint(key, (levels, self.window), 0, n))(keys, state.n)
        window = state.tokens[jnp.arange(batch)[:, None, None], places]
        buckets = min(self.buckets, ctx.model.cfg.vocab_size)
        pool = jnp.full((batch, buckets, self.guesses, self.ngram), -1, jnp.int32)
        return Trajectory(window, seed_pool(pool, state.tokens, state.n) if self.from_text else pool)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        batch, window = state.n.shape[0], state.aux.window
        guesses, found = recall(state.aux.pool, state.pending)
        guesses = jnp.where(found[:, :, None], guesses, state.pending[:, None, None])
        window = window.at[:, 0, 0].set(state.pending).reshape(batch, -1)
        return Draft(
            jnp.concatenate([window, guesses.reshape(batch, -1)], axis=1),
            size=window.shape[1] + (self.ngram - 1) * jnp.sum(found, axis=1, dtype=jnp.int32),
            parent=jnp.tile(_parents(self.window, self.ngram, self.guesses), (batch, 1)),
            always=True,
        )

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        accepted = accept(state, draft, logits)
        if draft.tokens.shape[1] == 1:  # switched off: the window waits
            pool = state.aux.pool
            if self.from_text:
                pool = remember(pool, *_new_ngrams(state, accepted.emit, accepted.n, self.ngram))
            return Verdict(*accepted, aux=Trajectory(state.aux.window, pool))
        levels, places = self.ngram - 1, self.window
        last = likeliest_token(logits[:, (levels - 1) * places : levels * places])
        window = jnp.concatenate([state.aux.window, last[:, None]], axis=1).at[:, 0, 0].set(state.pending)
        pool = remember(state.aux.pool, jnp.swapaxes(window, 1, 2), jnp.where(state.done, 0, places))
        if self.from_text:
            pool = remember(pool, *_new_ngrams(state, accepted.emit, accepted.n, self.ngram))
        # In a row that is done for this method, the guesses were another's, or do not matter.
        window = jnp.where(state.done[:, None, None], state.aux.window, slide(window[:, 1:], accepted.n))
        return Verdict(*accepted, aux=Trajectory(window, pool))


def _parents(window: int, ngram: int, guesses: int) -> np.ndarray:
    """Give i32[T]: the tree of both branches, level by level and guess by guess."""
    first = np.arange(window) - 1
    levels = np.arange((ngram - 2) * window)
    chains = (ngram - 1) * window + np.arange(guesses * (ngram - 1)).reshape(guesses, -1) - 1
    chains[:, 0] = 0
    return np.concatenate([first, levels, chains.ravel()]).astype(np.int32)


def slide(window: jax.Array, n: jax.Array) -> jax.Array:
    """Move a window i32[B, N - 1, W] whose levels have moved up by one on by the rest of n i32[B] accepted tokens.

    A token (level j, place i) then stands where it stood in the text. The places after the end repeat the last one.
    """
    index = jnp.minimum(jnp.arange(window.shape[2]) + n[:, None] - 1, window.shape[2] - 1)
    return jnp.take_along_axis(window, index[:, None], axis=2)


def recall(pool: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Recall the n-grams that begin with token i32[B], newest first: what follows, i32[B, G, N - 1], which exist."""
    batch, buckets = pool.shape[:2]
    slots = pool[jnp.arange(batch), token % buckets][:, ::-1]
    found = slots[:, :, 0] == token[:, None]
    order = jnp.argsort(~found, axis=1, stable=True)
    return jnp.take_along_axis(slots, order[:, :, None], axis=1)[:, :, 1:], jnp.take_along_axis(found, order, axis=1)


def remember(pool: jax.Array, ngrams: jax.Array, count: jax.Array) -> jax.Array:
    """Put the first count[B] of ngrams i32[B, K, N] into the pool i32[B, buckets, G, N], one after the other.

    The newest of a bucket stands last. One that is there already becomes the newest; else the oldest one goes. Those
    that begin with a token below 0 are left out.
    """
    rows, (_, buckets, slots, _) = jnp.arange(pool.shape[0]), pool.shape

    def put(i: jax.Array, pool: jax.Array) -> jax.Array:
        ngram = jax.lax.dynamic_index_in_dim(ngrams, i, axis=1, keepdims=False)
        bucket = ngram[:, 0] % buckets
        held = pool[rows, bucket]
        gone = jnp.argmax(jnp.all(held == ngram[:, None], axis=2), axis=1)  # 0, the oldest, if it is not there
        order = jnp.arange(slots - 1)
        kept = jnp.take_along_axis(held, (order + (order >= gone[:, None]))[:, :, None], axis=1)
        counts = (i < count) & (ngram[:, 0] >= 0)
        return pool.at[rows, jnp.where(counts, bucket, buckets)].set(
            jnp.concatenate([kept, ngram[:, None]], axis=1), mode="drop"
        )

    return jax.lax.fori_loop(0, jnp.minimum(jnp.max(count), ngrams.shape[1]), put, pool)


@partial(jax.jit, donate_argnums=0)
def seed_pool(pool: jax.Array, tokens: jax.Array, n: jax.Array) -> jax.Array:
    """Put the n-grams of the first n[B] of tokens i32[B, M] into the pool."""
    size = pool.shape[3]
    ngrams = jnp.stack([tokens[:, i : tokens.shape[1] - size + 1 + i] for i in range(size)], axis=2)
    return remember(pool, ngrams, n - size + 1)


def _new_ngrams(state: DecodeState, emit: jax.Array, n: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Give the n-grams that end with one of the first n[B] of emit i32[B, E]: i32[B, E, N], and n."""
    places = state.n[:, None] - size + 1 + jnp.arange(size - 1)
    before = jnp.where(places >= 0, jnp.take_along_axis(state.tokens, jnp.maximum(places, 0), axis=1), -1)
    text = jnp.concatenate([before, emit], axis=1)
    return jnp.stack([text[:, i : emit.shape[1] + i] for i in range(size)], axis=2), n
