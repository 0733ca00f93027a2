"""Jacobi decoding: a block of tokens as the fixed point of an iteration (Song et al. 2021; Santilli et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.decoding.checks import fits, room_to_guess
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output


@dataclass(frozen=True)
class Jacobi(DecodeMethod):
    """Jacobi decoding: guess what the model said after the last step's guesses. Lossless.

    One forward is one iteration of y_i <- argmax p(. | y_<i, x) over the block (Santilli et al. 2023, Algorithm 1);
    what has converged is what the rules of acceptance accept. The block slides on with every accepted token. With
    `blocks` it does not: the Gauss-Seidel-Jacobi variant (Algorithm 2), in which a block of `width` tokens converges
    before the next one begins, so that fewer and fewer of them count.
    """

    width: int = 8  # tokens scored per step: the pending one and width - 1 that iterate
    blocks: bool = False  # one block after the other

    samples: ClassVar[bool] = True
    can_rest: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        room_to_guess(self)

    def check(self, model, policy) -> None:
        fits(self, model)

    def init(self, ctx: Context, state: DecodeState) -> tuple[jax.Array, jax.Array]:
        """Give the guesses i32[B, width - 1], at first the pending token again, and how many iterate, i32[B]."""
        guesses = jnp.tile(state.pending[:, None], (1, self.width - 1))
        return guesses, jnp.full_like(state.n, self.width - 1)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        guesses, left = state.aux
        return Draft(jnp.concatenate([state.pending[:, None], guesses], axis=1), size=1 + left, always=True)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        accepted = accept(state, draft, logits)
        guesses, left = self._iterate(state.aux[1], accepted.emit, accepted.n)
        # In a row that is done for this method, the guesses were another's, or do not matter.
        kept = jnp.where(state.done[:, None], state.aux[0], guesses), jnp.where(state.done, state.aux[1], left)
        return Verdict(*accepted, aux=kept)

    def _iterate(self, left: jax.Array, chosen: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Give the next guesses: chosen i32[B, T], what the model said after each column, from the n-th on."""
        index = n[:, None] + jnp.arange(self.width - 1)
        guesses = jnp.take_along_axis(chosen, jnp.minimum(index, chosen.shape[1] - 1), axis=1)
        if not self.blocks:
            return guesses, left
        # The block ends with the token that its last guess was for; the last one that the model gave is pending.
        left = left - n
        return guesses, jnp.where(left > 0, left, self.width - 1)
