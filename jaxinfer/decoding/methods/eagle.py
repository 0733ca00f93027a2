"""EAGLE: a decoder layer drafts on the target's own hidden states (Li et al. 2024; the layer: network/eagle.py).

With `dynamic` its tree grows where the layer is sure, as EAGLE-2's does (Li et al. 2024, "Faster Inference of Language
Models with Dynamic Draft Trees").
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.decoding.checks import check_lenience
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.drafts.growth import (
    Dynamic,
    Paths,
    check_branches,
    check_paths,
    grow,
    grow_dynamic,
    parents,
    width,
)
from jaxinfer.decoding.drafts.trees import ancestors, from_paths
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.host.values import typed
from jaxinfer.network import eagle
from jaxinfer.network.heads import Heads, check_fits, embed, scores, unembedding
from jaxinfer.network.transformer import Output

CHUNK = 256  # tokens of a prompt that the layer reads at a time


@struct.dataclass
class Trail:
    """The extent of what the layer has read, and the hidden state that it expects next."""

    past: eagle.Past  # a pair a token: the target's hidden state, and the token after it, the pending one at last
    expected: jax.Array  # f32[B, D]: the hidden state of the pending token, as the layer expects it
    ready: jax.Array  # bool[B]: whether it has read anything: a prompt of one token has no hidden state yet


@dataclass(frozen=True)
class Eagle(DecodeMethod):
    """A decoder layer goes on with the target's hidden states, a chain or a tree ahead. Lossless at lenience 1."""

    paths: Paths = ((0, 0, 0),)  # one path of zeros is a chain; see `trees.from_paths`
    dynamic: Dynamic | None = None  # a tree that follows the layer's probabilities, in place of `paths`
    lenience: float = 1.0  # below 1: accept more than the target would say, see `acceptance.accept`: lossy

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("heads",)
    reads_prompt: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        check_lenience(self)
        check_paths(self.paths)

    @property
    def width(self) -> int:
        return self.dynamic.width if self.dynamic else width(self.paths)

    @property
    def lossless(self) -> bool:
        return self.lenience == 1

    def check(self, model: Any, policy: Any) -> None:
        check_fits(model.extras["heads"], ("eagle",), "Eagle", model)
        check_branches(self, model, model.extras["heads"].cfg.draft_vocab)

    def hold(self, ctx: Context, state: DecodeState) -> jax.Array:
        """Give f32[M, D]: the unembedding of the tokens that can be guessed."""
        return unembedding(ctx.params, ctx.extras["heads"].vocab)

    def init(self, ctx: Context, state: DecodeState) -> Trail:
        heads, hidden = ctx.extras["heads"], ctx.extras["hidden"].astype(jnp.float32)
        batch, slots, d = hidden.shape
        later = jnp.pad(state.tokens[:, 1:], ((0, 0), (0, 1)))
        trail = Trail(eagle.empty(heads.cfg, batch, slots), jnp.zeros((batch, d)), state.n > 1)
        for start in range(0, int(jnp.max(state.n)) - 1, CHUNK):
            part = slice(start, start + CHUNK)
            n = jnp.clip(state.n - 1 - start, 0, CHUNK)
            trail = _read(heads, trail, hidden[:, part], embed(ctx.params, later[:, part]), n)
        return trail

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        heads, trail = ctx.extras["heads"], state.aux
        size = jnp.where(trail.ready, self.width, 1)
        at_root = trail.expected[:, None]
        states: list[jax.Array] = [at_root]

        def guess(tokens: jax.Array, parent: jax.Array, columns: np.ndarray) -> jax.Array:
            """Guess the states expected at all columns so far; none are kept from level to level: a tree is small."""
            if tokens.shape[1] > 1:
                sees = ancestors(parent)[:, 1:, 1:]
                hidden = jnp.take_along_axis(states[-1], parent[:, 1:, None], axis=1)
                positions = trail.past.length[:, None] - 1 + jnp.sum(sees, axis=2, dtype=jnp.int32)
                embedded = embed(ctx.params, tokens[:, 1:])
                found, _ = eagle.layer(heads.params, heads.cfg, hidden, embedded, positions, sees, trail.past)
                states.append(jnp.concatenate([at_root, found], axis=1))
            return scores(states[-1][:, columns], state.held)

        if self.dynamic:
            tokens, parent = grow_dynamic(self.dynamic, state.pending, heads.vocab, guess)
            return Draft(tokens, size, parent, held=state.held)
        fixed, _ = from_paths(self.paths)

        def guess_at(depth: int, columns: np.ndarray, tokens: jax.Array) -> jax.Array:
            return guess(tokens, jnp.tile(fixed[: tokens.shape[1]], (len(tokens), 1)), columns)

        tokens = grow(self.paths, state.pending, heads.vocab, guess_at)
        return Draft(tokens, size, parents(self.paths, len(tokens)), held=state.held)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        accepted, hidden = accept(state, draft, logits, lenience=self.lenience), output.hidden.astype(jnp.float32)
        if accepted.take is not None:
            hidden = jnp.take_along_axis(hidden, accepted.take[:, :, None], axis=1)
        trail = _read(ctx.extras["heads"], state.aux, hidden, embed(ctx.params, accepted.emit), accepted.n)
        return Verdict(*accepted, aux=dataclasses.replace(trail, ready=jnp.ones_like(trail.ready)))


@jax.jit
def _read(heads: Heads, trail: Trail, hidden: jax.Array, embedded: jax.Array, n: jax.Array) -> Trail:
    """Read the first n[B] pairs of a hidden state and the embedding of the token after it, both [B, T, D]."""
    order = jnp.arange(hidden.shape[1])
    positions, sees = trail.past.length[:, None] + order, order[:, None] >= order
    found, fresh = eagle.layer(heads.params, heads.cfg, hidden, embedded, positions, sees[None], trail.past)
    last = jnp.take_along_axis(found, jnp.maximum(n - 1, 0)[:, None, None], axis=1)[:, 0]
    expected = jnp.where((n > 0)[:, None], last, trail.expected)
    return Trail(eagle.commit(trail.past, fresh, n), expected, trail.ready)
