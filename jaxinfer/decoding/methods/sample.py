"""Sampling from the model, one token a step."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept_one
from jaxinfer.network.transformer import Output


@dataclass(frozen=True)
class Sample(DecodeMethod):
    """Temperature, truncations and penalties as `Sampling` has them, one token a step; temperature 0 is greedy."""

    samples: ClassVar[bool] = True

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return Draft(state.pending[:, None], size=jnp.ones_like(state.n))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        accepted, surprise = accept_one(state, draft, logits)
        return Verdict(*accepted, surprise=surprise)
