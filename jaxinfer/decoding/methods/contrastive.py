"""Contrastive search: likely tokens that do not say again what has been said (Su et al. 2022, section 3)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.decoding.checks import takes_trees
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output


@struct.dataclass
class Candidates:
    """The tokens that may follow the pending one, and the states that the text so far is compared with."""

    tokens: jax.Array  # i32[B, k], the likeliest first
    probs: jax.Array  # f32[B, k]
    ready: jax.Array  # bool[B]: whether there are any: the first step only finds them
    past: jax.Array  # f32[B, M, D]: the hidden state of every committed token, of length 1


@dataclass(frozen=True)
class Contrastive(DecodeMethod):
    """Of the k likeliest tokens, the one that is likely and unlike all before it, by hidden states. Not greedy's.

    argmax over v of (1 - alpha) p(v | text) - alpha max_j cos(h_v, h_j), equation 5, with the hidden states after the
    final norm. The candidates hang below the pending token as a tree, so a step is one forward over k + 1 tokens.
    """

    k: int = 4
    alpha: float = 0.6  # 0 is greedy decoding

    reads_prompt: ClassVar[bool] = True
    lossless: ClassVar[bool] = False

    def __post_init__(self):
        typed(self)
        if self.k < 1:
            raise InputError(f"k={self.k} must be at least 1")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha={self.alpha} must be between 0 (likely alone) and 1 (unlike alone)")

    @property
    def width(self) -> int:
        return self.k + 1

    def check(self, model: Any, policy: Any) -> None:
        takes_trees(self, model)
        if self.k > model.config.vocab_size:
            raise InputError(f"k={self.k} must be at most {model.config.vocab_size}, the size of the vocabulary")

    def init(self, ctx: Context, state: DecodeState) -> Candidates:
        shape = (len(state.n), self.k)
        past = _unit(ctx.extras["hidden"])
        return Candidates(jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape[0], bool), past)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        tokens = jnp.concatenate([state.pending[:, None], state.aux.tokens], axis=1)
        parent = jnp.broadcast_to(jnp.array([-1] + [0] * self.k, jnp.int32), tokens.shape)
        # The first step finds the candidates, and scores what is none: a narrower program for it alone does not pay.
        return Draft(tokens, jnp.where(state.aux.ready, self.width, 1), parent, always=True)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        known: Candidates = state.aux
        rows = jnp.arange(len(state.n))
        hidden = _unit(output.hidden)
        past = known.past.at[rows, state.n - 1].set(hidden[:, 0])
        likeness = jnp.einsum("bkd,bmd->bkm", hidden[:, 1:], past, precision="highest")
        seen = jnp.arange(past.shape[1]) < state.n[:, None]
        degeneration = jnp.max(jnp.where(seen[:, None], likeness, -jnp.inf), axis=2)
        score = (1 - self.alpha) * known.probs - self.alpha * degeneration
        best = jnp.argmax(jnp.where(known.probs > 0, score, -jnp.inf), axis=1)  # constraints may leave less than k
        column = jnp.where(known.ready, 1 + best, 0)
        probs, tokens = jax.lax.top_k(jax.nn.softmax(logits[rows, column]), self.k)
        return Verdict(
            emit=draft.tokens[rows, 1 + best][:, None],
            n=known.ready.astype(jnp.int32),
            take=jnp.zeros((len(rows), 1), jnp.int32),  # what is chosen is pending now
            aux=Candidates(tokens, probs, jnp.ones_like(known.ready), past),
        )


def _unit(x: jax.Array) -> jax.Array:
    """Scale [..., D] to length 1, as float32; zeros stay as they are."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
