"""Greedy decoding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.network.transformer import Output


@dataclass(frozen=True)
class Greedy(DecodeMethod):
    """The most likely token, one a step: the baseline of every comparison."""

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return Draft(state.pending[:, None], size=jnp.ones_like(state.n))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits))
