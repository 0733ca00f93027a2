"""Sampling from the model, one token a step."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.decoding.method import Context, DecodeState, Draft, Verdict
from jaxinfer.decoding.penalties import penalize
from jaxinfer.decoding.verify import accept_one
from jaxinfer.model import Output


@dataclass(frozen=True)
class Sample:
    """Temperature, truncations and penalties as `Sampling` has them, one token a step; temperature 0 is greedy."""

    samples: ClassVar[bool] = True
    width: ClassVar[int] = 1

    def init(self, ctx: Context, state: DecodeState) -> None:
        return None

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return Draft(state.pending[:, None], size=jnp.ones_like(state.n))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        logits = penalize(state, logits, draft.tokens)
        accepted, surprise = accept_one(state.sampling, draft.tokens, draft.size, logits, state.step_keys)
        return Verdict(*accepted, aux=None, surprise=surprise)
