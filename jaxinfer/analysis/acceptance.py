"""Measure how often guesses are right, by depth and rank: the best tree for a draft follows from that."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.api import Model
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.drafts.trees import from_paths
from jaxinfer.decoding.methods.wrapper import MethodWrapper
from jaxinfer.decoding.sampling.settings import Sampling
from jaxinfer.errors import InputError
from jaxinfer.network.transformer import Output
from jaxinfer.runtime.generation import Generation


@struct.dataclass
class Tally:
    """Of each row: how often every column was accepted, i32[B, T], in how many steps with guesses, i32[B]."""

    accepted: jax.Array
    steps: jax.Array
    aux: Any  # the method's own


@dataclass(frozen=True)
class Counted(MethodWrapper):
    """A method for measuring: another one, and which columns of its drafts were accepted."""

    method: Any

    def init(self, ctx: Context, state: DecodeState) -> Tally:
        zeros = jnp.zeros_like(state.n)
        return Tally(jnp.zeros((len(zeros), self.width), jnp.int32), zeros, self.method.init(ctx, state))

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return self.method.propose(ctx, self.within(state))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        verdict = self.method.verify(ctx, self.within(state), draft, output, logits)
        tally, order = state.aux, jnp.arange(verdict.emit.shape[1])
        counted = ~state.done & (draft.size > 1)
        take = jnp.broadcast_to(order, verdict.emit.shape) if verdict.take is None else verdict.take
        place = jnp.where(counted[:, None] & (order < verdict.n[:, None]), take, self.width)  # outside: dropped
        accepted = tally.accepted.at[jnp.arange(len(place))[:, None], place].add(1, mode="drop")
        return dataclasses.replace(verdict, aux=Tally(accepted, tally.steps + counted, verdict.aux))


def acceptance_rates(
    model: Model,
    method: DecodeMethod,
    prompts: Sequence[Sequence[int]],
    depth: int = 4,
    ranks: int = 4,
    new_tokens: int = 64,
    sampling: Sampling | None = None,
) -> np.ndarray:
    """Give float[depth, ranks]: how often the guess of a rank is right where the best guesses above it all are.

    method: one with `paths`: SpeculativeTree, Medusa, Eagle, whose draft model or heads the model has attached. Below
    the best guesses `ranks` are tried at each depth, on prompts of token ids, `new_tokens` for each. A rank that did
    better than the one before it counts as equal, and a depth never reached as the one above it. At temperature 0
    unless `sampling` says otherwise. `trees.likeliest_paths` and `trees.fastest_paths` take the rates. Raises
    InputError for a method without paths.
    """
    if method.paths is None:
        raise InputError(
            f"method {type(method).__name__} has no paths to measure: take SpeculativeTree, Medusa or Eagle"
        )
    if depth < 1 or ranks < 1:
        raise InputError(f"depth={depth} and ranks={ranks} must be at least 1")
    paths = tuple((*(0,) * above, rank) for above in range(depth) for rank in range(ranks))
    static = {"dynamic": None} if method.dynamic else {}
    method = dataclasses.replace(method, paths=paths, **static)  # type: ignore[type-var]
    method.check(model, None)
    rows = [list(prompt) for prompt in prompts]
    drawn = Sampling(temperature=0.0) if sampling is None else sampling
    policy = model.default_policy(None)
    limits, seeds = [new_tokens] * len(rows), list(range(len(rows)))
    generation = Generation.begin(model.placed, rows, limits, Counted(method), policy, drawn, seeds, (), logprobs=False)
    generation.run()
    tally = generation.state.aux
    return rates_of(paths, np.asarray(tally.accepted).sum(axis=0), int(np.asarray(tally.steps).sum()), (depth, ranks))


def rates_of(paths: Sequence[Sequence[int]], accepted: np.ndarray, steps: int, shape: tuple[int, int]) -> np.ndarray:
    """Give float[depth, ranks] from how often the columns of a tree were accepted, int[T], in so many steps."""
    parent, rank = from_paths(paths)
    rates, trunk, reached = np.zeros(shape), 0, steps
    for depth in range(shape[0]):
        below = np.flatnonzero(parent == trunk)
        rates[depth, rank[below]] = accepted[below] / reached if reached else rates[depth - 1, rank[below]]
        trunk = below[rank[below] == 0][0]
        reached = int(accepted[trunk])
    return np.minimum.accumulate(rates, axis=1)
