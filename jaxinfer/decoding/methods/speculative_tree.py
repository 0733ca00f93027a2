"""Speculative decoding with a draft model's token tree (SpecInfer, Miao et al. 2023; Sequoia; EAGLE-2)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache.store import Cache
from jaxinfer.decoding.checks import check_draft, check_lenience
from jaxinfer.decoding.contract import Companion, Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.drafts.growth import (
    Dynamic,
    Paths,
    check_branches,
    check_paths,
    expansion,
    grow,
    grow_dynamic,
    likeliest,
    parents,
    width,
)
from jaxinfer.decoding.drafts.trees import ancestors, from_paths
from jaxinfer.decoding.methods.speculative import DRAFTING, catch_up
from jaxinfer.decoding.sampling.acceptance import accept, draw
from jaxinfer.decoding.sampling.settings import distribution
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output, forward, logits_of

DEFAULT = expansion(2, 2, 1, 1)  # 15 nodes, 4 deep
SPARE = 1e-9  # of a proposal's mass, for guesses beyond those that the row's truncation leaves the draft model


@dataclass(frozen=True)
class SpeculativeTree(DecodeMethod):
    """A smaller model with the same vocabulary guesses a tree of tokens. Lossless at lenience 1, sampled too."""

    paths: Paths = DEFAULT  # by the rank of each guess: `trees.from_paths`, `growth.expansion`
    dynamic: Dynamic | None = None  # a tree that follows the draft model's probabilities, in place of `paths`
    replace: bool = False  # sampled: siblings drawn with replacement, as SpecInfer does; else without
    lenience: float = 1.0  # below 1: accept more than the target would say, see `acceptance.accept`: lossy

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("draft",)
    can_rest: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        check_lenience(self)
        check_paths(self.paths)
        parent, rank = from_paths(self.paths)
        for column in range(1, len(rank)):
            if rank[column] != np.sum(parent[1:column] == parent[column]):
                raise InputError(
                    f"paths={self.paths} skip a rank: guesses are drawn in order, so ranks below a node are 0, 1, ..."
                )

    @property
    def width(self) -> int:
        return self.dynamic.width if self.dynamic else width(self.paths)

    @property
    def lossless(self) -> bool:
        return self.lenience == 1

    @property
    def depth(self) -> int:
        """Count the guesses that follow one another at most."""
        return self.dynamic.depth if self.dynamic else max(map(len, self.paths))

    def check(self, model: Any, policy: Any) -> None:
        check_draft(model)
        check_branches(self, model, model.config.vocab_size)

    def hold(self, ctx: Context, state: DecodeState) -> Cache:
        return ctx.extras["draft"].cache

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        # The draft model reads what was accepted when it is text: its cache never holds a guess, so none is taken back.
        draft, cache = ctx.extras["draft"], state.held
        cache, after_root = catch_up(draft, cache, state.tokens, state.n, ~state.done, self.depth + 1)
        size = jnp.where(state.done | (state.limit - state.n <= 1), 1, self.width)
        shape = (len(size), self.width)

        def dynamic() -> tuple[jax.Array, ...]:
            def scores(tokens: jax.Array, parent: jax.Array, newest: np.ndarray) -> jax.Array:
                return logits_after(draft, cache, after_root, tokens, ancestors(parent), newest)

            assert self.dynamic
            return grow_dynamic(self.dynamic, state.pending, None, scores)

        def static() -> tuple[jax.Array, ...]:
            return static_tree(self, draft, cache, after_root, state)

        def nothing() -> tuple[jax.Array, ...]:
            tokens = jnp.broadcast_to(state.pending[:, None], shape)
            if self.dynamic:
                return tokens, jnp.broadcast_to(jnp.arange(-1, self.width - 1, dtype=jnp.int32), shape)
            return tokens, jnp.zeros((*shape, after_root.shape[-1]))

        tokens, other = jax.lax.cond(jnp.any(size > 1), dynamic if self.dynamic else static, nothing)
        if self.dynamic:
            return Draft(tokens, size, parent=other, held=cache, always=True)
        return Draft(tokens, size, parents(self.paths, len(tokens)), proposal=other, held=cache, always=True)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits, self.replace, self.lenience))


def static_tree(
    method: SpeculativeTree, draft: Companion, cache: Cache, after_root: jax.Array, state: DecodeState
) -> tuple[jax.Array, jax.Array]:
    """Guess the tree of `method.paths`: tokens i32[B, T], and what those below each are drawn from, f32[B, T, V]."""
    parent, _ = from_paths(method.paths)
    inner = np.unique(parent[1:])  # guesses below which nothing is guessed need not be read
    batch, vocab = after_root.shape
    proposal = jnp.zeros((batch, method.width, vocab))

    def guess(depth: int, columns: np.ndarray, tokens: jax.Array) -> jax.Array:
        read = inner[inner < tokens.shape[1]]
        sees = ancestors(jnp.asarray(parent)[None])[:, read[:, None], read]
        return logits_after(draft, cache, after_root, tokens[:, read], sees, np.searchsorted(read, columns))

    def pick(logits: jax.Array, count: int, columns: np.ndarray) -> jax.Array:
        nonlocal proposal
        guesses, probs = draw_siblings(state, logits, count, columns, method.replace)
        proposal = proposal.at[:, columns].set(probs)
        return guesses

    return grow(method.paths, state.pending, None, guess, pick), proposal


def logits_after(
    draft: Companion, cache: Cache, after_root: jax.Array, tokens: jax.Array, sees: jax.Array, columns: np.ndarray
) -> jax.Array:
    """Compute the draft model's logits float32[B, n, V] after these columns of a tree.

    tokens i32[B, T]; sees bool[B or 1, T, T], which column sees which. Column 0 is the root, which the cache holds
    already; after_root float32[B, V]. The whole tree so far is read each time: a forward takes its fresh tokens from
    nowhere but the tree itself, and a tree is small.
    """
    if tokens.shape[1] == 1:
        return after_root[:, None]
    positions = cache.length[:, None] - 2 + jnp.sum(sees, axis=2, dtype=jnp.int32)[:, 1:]
    output = forward(draft.model, draft.params, tokens[:, 1:], positions, cache, tree=sees[:, 1:, 1:], decoding=True)
    return logits_of(draft.model, draft.params, output.hidden[:, columns - 1])


def draw_siblings(
    state: DecodeState, logits: jax.Array, count: int, columns: np.ndarray, replace: bool
) -> tuple[jax.Array, jax.Array]:
    """Draw guesses i32[B, n, count] below each of n columns, and give what they are drawn from, float32[B, n, V].

    logits float32[B, n, V]. One after the other, with or without replacement: the `count` largest of log-probabilities
    with Gumbel noise are a draw without (Kool et al. 2019, stochastic beams). When a truncation leaves fewer tokens
    than that, the others come from the model's own distribution, which is `SPARE` of the proposal. Rows at temperature
    0 take the best.
    """
    key = state.keys(jnp.zeros(1, jnp.int32))[:, 0]
    apart = jax.vmap(lambda key: jax.random.fold_in(key, DRAFTING))(key)
    keys = jax.vmap(lambda key: jax.vmap(lambda column: jax.random.fold_in(key, column))(jnp.asarray(columns)))(apart)
    cold = (state.sampling.temperature == 0)[:, None, None]

    def best(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return likeliest(logits, count, columns), jnp.zeros_like(logits)

    def drawn(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        probs = distribution(state.sampling, logits)
        if replace:
            each = jax.vmap(jax.vmap(lambda key: jax.random.split(key, count)))(keys)
            guesses = draw(each, jnp.broadcast_to(probs[:, :, None], (*each.shape, probs.shape[-1])))
            return jnp.where(cold, likeliest(logits, count, columns), guesses), probs
        probs = probs + SPARE * jnp.maximum(jax.nn.softmax(logits, axis=-1), 1e-12)
        probs /= jnp.sum(probs, axis=-1, keepdims=True)
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))(keys)
        return likeliest(jnp.where(cold, logits, jnp.log(probs) + noise), count, columns), probs

    return jax.lax.cond(jnp.all(cold), best, drawn, logits)
