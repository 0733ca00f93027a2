"""Heads that guess several tokens from one hidden state: Medusa (Cai et al. 2024) and Hydra (Ankner et al. 2024)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.drafts.growth import Paths, check_branches, check_paths, grow, parents, width
from jaxinfer.decoding.drafts.trees import from_paths
from jaxinfer.decoding.sampling.acceptance import accept, accept_typical
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.heads import check_fits, embed, scores, unembedding
from jaxinfer.network.resblock import feature
from jaxinfer.network.transformer import Output


@struct.dataclass
class Seen:
    """The hidden state that the heads guess from."""

    hidden: jax.Array  # f32[B, D]: of the last committed token
    ready: jax.Array  # bool[B]: whether there is one: the first step only finds it


@dataclass(frozen=True)
class Medusa(DecodeMethod):
    """Trained heads guess a tree of tokens, each head one token further ahead. Lossless, unless `typical`."""

    paths: Paths = ((0, 0, 0), (0, 1), (1, 0), (2,), (3,))  # the tree, by ranks: see `trees.from_paths`
    typical: bool = False  # accept what is likely enough, though the model would have said something else: lossy
    epsilon: float = 0.09  # typical: a guess of at least this probability is accepted
    delta: float = 0.3  # typical: or of delta * exp(-entropy), where the model is unsure

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("heads",)
    kinds: ClassVar[tuple[str, ...]] = ("medusa", "hydra")

    def __post_init__(self):
        typed(self)
        check_paths(self.paths)
        for name, value in (("epsilon", self.epsilon), ("delta", self.delta)):
            if not 0 < value <= 1:
                raise InputError(f"{name}={value} must be above 0 and at most 1")

    @property
    def width(self) -> int:
        return width(self.paths)

    @property
    def lossless(self) -> bool:
        return not self.typical

    def check(self, model: Any, policy: Any) -> None:
        check_fits(model.extras["heads"], self.kinds, "Medusa", model)
        check_paths(self.paths, deepest=model.extras["heads"].cfg.count)
        check_branches(self, model, model.extras["heads"].cfg.draft_vocab)

    def hold(self, ctx: Context, state: DecodeState) -> jax.Array:
        """Give f32[M, D]: the unembedding of the tokens that can be guessed."""
        return unembedding(ctx.params, ctx.extras["heads"].vocab)

    def init(self, ctx: Context, state: DecodeState) -> Seen:
        batch = len(state.n)
        return Seen(jnp.zeros((batch, ctx.extras["heads"].cfg.d_model)), jnp.zeros(batch, bool))

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        heads, seen = ctx.extras["heads"], state.aux
        parent, _ = from_paths(self.paths)
        pending = embed(ctx.params, state.pending)[:, None, None]  # [B, 1, 1, D]

        def guess(depth: int, columns: np.ndarray, tokens: jax.Array) -> jax.Array:
            head = heads.params[f"head_{depth + 1}"]
            if heads.cfg.kind == "medusa":  # the same guesses below every column
                below = scores(feature(head, seen.hidden[:, None], pending), state.held)
                return jnp.broadcast_to(below, (len(tokens), len(columns), below.shape[-1]))
            way = [columns]
            while way[0][0]:
                way.insert(0, parent[way[0]])
            between = embed(ctx.params, tokens[:, np.stack(way, axis=1)])  # [B, columns, depth + 1, D]
            hidden = jnp.broadcast_to(seen.hidden[:, None], (*between.shape[:2], seen.hidden.shape[-1]))
            return scores(feature(head, hidden, between), state.held)

        tokens = grow(self.paths, state.pending, heads.vocab, guess)
        size = jnp.where(seen.ready, self.width, 1)
        return Draft(tokens, size, parents(self.paths, len(tokens)), held=state.held)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        if self.typical and state.sampling is not None:
            accepted = accept_typical(state, draft, logits, self.epsilon, self.delta)
        else:
            accepted = accept(state, draft, logits)
        last = accepted.n - 1
        if accepted.take is not None:
            last = jnp.take_along_axis(accepted.take, last[:, None], axis=1)[:, 0]
        hidden = output.hidden[jnp.arange(len(last)), last].astype(jnp.float32)
        return Verdict(*accepted, aux=Seen(hidden, jnp.ones_like(state.aux.ready)))
