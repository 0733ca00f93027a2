"""Token recycling: yesterday's candidates are today's guesses (Luo et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.decoding.checks import room_to_guess, takes_trees
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.drafts import trees
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output, likeliest_tokens

RATES = (0.45, 0.15, 0.08, 0.05, 0.035, 0.027, 0.022, 0.018)
"""About how often the successor of rank r is the right one: what the shape of the tree follows."""


@dataclass(frozen=True)
class Recycling(DecodeMethod):
    """Token recycling: guess a tree of the successors that the model last thought likely after each token. Lossless.

    Every row keeps an adjacency matrix of its own, i32[V, successors]: the likeliest tokens after each token, as of
    the last time that the model scored it, accepted or not (section 3.1). A breadth-first walk from the pending token
    fills a tree of fixed shape (Algorithm 1): `trees.likeliest` in place of the paper's hand-made one. Rows share
    nothing, so none changes another's steps; the price is V x successors x 4 bytes a row.
    """

    width: int = 32  # tokens scored per step: the pending one and width - 1 guesses
    successors: int = 8  # K: candidates kept for each token

    samples: ClassVar[bool] = True
    can_rest: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        room_to_guess(self)
        if not 1 <= self.successors <= len(RATES):
            raise InputError(f"successors={self.successors} must be between 1 and {len(RATES)}")

    def check(self, model, policy) -> None:
        takes_trees(self, model)
        if self.successors > model.config.vocab_size:
            raise InputError(
                f"successors={self.successors} is more than the {model.config.vocab_size} tokens there are"
            )

    def init(self, ctx: Context, state: DecodeState) -> jax.Array:
        """Make the matrix i32[B, V, K], -1 where nothing is known; prompts, which are not scored, give successors."""
        batch, length = state.tokens.shape
        rows, places = jnp.arange(batch)[:, None], jnp.arange(length - 1)
        known = jnp.where(places < state.n[:, None] - 1, places, -1)
        vocab = ctx.model.cfg.vocab_size
        last = jnp.full((batch, vocab), -1, jnp.int32).at[rows, state.tokens[:, :-1]].max(known)
        follower = jnp.take_along_axis(state.tokens, last + 1, axis=1)
        matrix = jnp.full((batch, vocab, self.successors), -1, jnp.int32)
        return matrix.at[:, :, 0].set(jnp.where(last >= 0, follower, -1))

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        parent, rank = trees.likeliest(RATES[: self.successors], self.width)
        tokens = walk(state.aux, state.pending, parent, rank)
        # Where nothing is known, anything may be guessed.
        tokens = jnp.where(tokens >= 0, tokens, state.pending[:, None])
        parents = jnp.tile(parent, (state.n.shape[0], 1))
        return Draft(tokens, jnp.full_like(state.n, self.width), parents, always=True)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits), aux=recycle(state.aux, draft.tokens, logits))


def walk(matrix: jax.Array, root: jax.Array, parent: np.ndarray, rank: np.ndarray) -> jax.Array:
    """Give i32[B, T]: the tokens of a tree whose column t is successor rank[t] of column parent[t]; -1 for none."""
    rows = jnp.arange(root.shape[0])[:, None]
    tokens = jnp.tile(root[:, None], (1, len(parent)))
    for columns in trees.levels(parent)[1:]:
        above = tokens[:, parent[columns]]
        below = matrix[rows, jnp.maximum(above, 0), rank[columns]]
        tokens = tokens.at[:, columns].set(jnp.where(above >= 0, below, -1))
    return tokens


def recycle(matrix: jax.Array, tokens: jax.Array, logits: jax.Array) -> jax.Array:
    """Give the matrix i32[B, V, K] with the likeliest tokens of logits[B, T, V] after each of tokens i32[B, T].

    The first of several columns with one token counts: that nearest to the text. So a filler, which is the pending
    token again, changes nothing.
    """
    batch, width = tokens.shape
    _, best = likeliest_tokens(logits, matrix.shape[2])
    order = jnp.arange(width)
    again = jnp.any((tokens[:, :, None] == tokens[:, None]) & (order < order[:, None]), axis=2)
    place = jnp.where(again, matrix.shape[1], tokens)  # outside: dropped
    return matrix.at[jnp.arange(batch)[:, None], place].set(best.astype(jnp.int32), mode="drop")
