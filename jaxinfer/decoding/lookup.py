"""Prompt lookup decoding: the text so far is the draft model (Saxena 2023; LLMA, Yang et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.decoding.method import Context, DecodeState, Draft, Verdict
from jaxinfer.decoding.penalties import penalize
from jaxinfer.decoding.verify import accept
from jaxinfer.errors import InputError
from jaxinfer.model import Output


@dataclass(frozen=True)
class Lookup:
    """Prompt lookup: guess that what followed the last n-gram before will follow it again. Lossless."""

    width: int = 8  # tokens scored per step: the pending one and width - 1 guesses
    ngram: int = 3  # the longest match looked for
    min_ngram: int = 1  # the shortest match that is worth a draft

    samples: ClassVar[bool] = True

    def __post_init__(self):
        if self.width < 2:
            raise InputError(f"width={self.width} must be at least 2: the pending token and one guess")
        if not 1 <= self.min_ngram <= self.ngram:
            raise InputError(f"min_ngram={self.min_ngram} must be between 1 and ngram={self.ngram}")

    def init(self, ctx: Context, state: DecodeState) -> None:
        return None

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        guesses, found = continue_match(state.tokens, state.n, self.width - 1, self.ngram, self.min_ngram)
        tokens = jnp.concatenate([state.pending[:, None], guesses], axis=1)
        return Draft(tokens, size=jnp.where(found, self.width, 1))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        logits = penalize(state, logits, draft.tokens)
        return Verdict(*accept(state.sampling, draft.tokens, draft.size, logits, state.step_keys), aux=None)


def continue_match(
    tokens: jax.Array, n: jax.Array, count: int, longest: int, shortest: int
) -> tuple[jax.Array, jax.Array]:
    """Continue tokens i32[B, M] (the first n[B] valid) as after the best earlier match of their ending.

    The longest match of at most `longest` tokens wins, among equals the latest. Returns i32[B, count] and whether a
    match of at least `shortest` tokens was found, bool[B]. Where the match overlaps the ending, what follows repeats.
    """
    rows = jnp.arange(tokens.shape[0])[:, None]
    places = jnp.arange(tokens.shape[1])
    # Does the token j before place i equal the token j before the last one? Runs of yes from j = 0 on are matches.
    ending = jnp.stack([tokens[rows[:, 0], jnp.maximum(n - 1 - j, 0)] for j in range(longest)], axis=1)
    equal = jnp.stack([jnp.roll(tokens, j, axis=1) == ending[:, j, None] for j in range(longest)])
    inside = places - jnp.arange(longest)[:, None] >= 0
    length = jnp.sum(jnp.cumprod((equal & inside[:, None]).astype(jnp.int32), axis=0), axis=0)
    length = jnp.where(places < n[:, None] - 1, length, 0)
    best = jnp.argmax(length * tokens.shape[1] + jnp.where(length > 0, places, 0), axis=1)
    period = jnp.maximum(n - 1 - best, 1)
    index = best[:, None] + 1 + jnp.arange(count) % period[:, None]
    return tokens[rows, index], length[rows[:, 0], best] >= shortest
