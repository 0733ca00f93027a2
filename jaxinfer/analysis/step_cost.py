"""Measure the cost of a decode step by its width: the machine's side of every method that guesses."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.api import Model
from jaxinfer.cache import CachePolicy
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.settings import Sampling
from jaxinfer.network.transformer import Output, likeliest_token
from jaxinfer.runtime.generation import Generation

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Still(DecodeMethod):
    """A method for measuring: it scores `width` tokens a step and accepts none of its guesses."""

    width: int

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        tokens = jnp.repeat(state.pending[:, None], self.width, axis=1)
        return Draft(tokens, size=jnp.full_like(state.n, self.width), always=True)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(likeliest_token(logits), jnp.ones_like(state.n))


def step_seconds(
    model: Model,
    widths: Sequence[int],
    batch: int = 1,
    live: int = 128,
    rounds: int = 5,
    steps: int = 12,
    policy: CachePolicy | None = None,
) -> dict[int, float]:
    """Measure a decode step by width, in seconds: the median of `rounds`, in which the widths take turns.

    Every row has `live` tokens in the cache at the beginning, and `steps` more after each round.
    """
    running = {
        width: standing(model, width, batch, live, steps * (rounds + 2), policy) for width in dict.fromkeys(widths)
    }
    return {width: statistics.median(seconds) for width, seconds in in_turn(running, rounds, steps).items()}


def standing(
    model: Model, width: int, batch: int, live: int, most: int, policy: CachePolicy | None = None
) -> Generation:
    """Make a generation whose rows hold `live` tokens in the cache, compiled and ready for `most` steps of a width."""
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, live)).tolist()
    chosen, limits, seeds = model.default_policy(policy), [most] * batch, [0] * batch
    generation = Generation.begin(
        model.placed, prompts, limits, Still(width), chosen, Sampling(), seeds, (), logprobs=False
    )
    generation.advance(1)
    return generation


def in_turn(running: Mapping[Key, Generation], rounds: int, steps: int) -> dict[Key, list[float]]:
    """Measure a step of each generation, in seconds, one value a round, in which they take turns."""
    found: dict[Key, list[float]] = {key: [] for key in running}
    for _ in range(rounds):
        for key, generation in running.items():
            start = time.perf_counter()
            generation.advance(steps)
            found[key].append((time.perf_counter() - start) / steps)
    return found


def propose_seconds(
    model: Model,
    method: DecodeMethod,
    batches: Sequence[Sequence[Sequence[int]]],
    new_tokens: int = 24,
    places: int = 10,
    policy: CachePolicy | None = None,
) -> float:
    """Measure the seconds that a method spends on the guesses of a step at temperature 0: 0.0 if it makes none.

    `batches` are of prompts, of token ids: how long a guess takes may depend on them. The mean over the batches that it
    makes guesses for; of each over the steps of the second half of `new_tokens` in the answers, `places` of them at
    most. Each is the median of three measurements of the same guesses: what is to be read of the step before is read in
    all.
    """

    def propose(held: Any, params: Any, extras: Any, state: DecodeState) -> Draft:
        return method.propose(Context(params, extras, model.network), dataclasses.replace(state, held=held))

    call = jax.jit(propose, donate_argnums=0)
    means = []
    for prompts in batches:
        rows, cold, seeds = [list(prompt) for prompt in prompts], Sampling(temperature=0.0), [0] * len(prompts)
        chosen, limits = model.default_policy(policy), [new_tokens] * len(rows)
        generation = Generation.begin(model.placed, rows, limits, method, chosen, cold, seeds, (), logprobs=False)
        if found := list(itertools.islice(_guesses(call, generation, new_tokens // 2), places)):
            means.append(statistics.mean(found))
    return statistics.mean(means) if means else 0.0


def _guesses(propose: Callable[..., Draft], generation: Generation, begin: int) -> Iterator[float]:
    """Measure the seconds that each step's guesses take, from the one on before which a row has `begin` tokens."""
    while not generation.done.any() and max(map(len, generation.rows())) < begin:
        generation.advance(1)

    def measured(state: DecodeState) -> tuple[float, Draft]:
        held = jax.block_until_ready(jax.tree.map(jnp.copy, state.held))  # the next step still needs its own
        start = time.perf_counter()
        draft = propose(held, generation.placed.params, generation.extras, dataclasses.replace(state, held=None))
        jax.block_until_ready(draft.tokens)
        return time.perf_counter() - start, draft

    measured(generation.state)  # which compiles
    while True:
        times, drafts = zip(*(measured(generation.state) for _ in range(3)), strict=True)
        if jnp.any(drafts[0].size > 1):
            yield statistics.median(times)
        if generation.done.all():
            return
        generation.advance(1)


def widths_of(method: DecodeMethod) -> tuple[int, int]:
    """Count the tokens in a step with guesses, and in one where the method makes fewer: the same, if it never does."""
    return method.width, method.narrow or method.width


def speculation_costs(model: Model, width: int, **options: Any) -> tuple[float, float]:
    """Measure what `Speculative(width, schedule="acceptance")` goes by: draft_cost and wide_cost on this machine.

    The time of a step of the attached draft model, and of one over `width` tokens, over that of one over a single
    token; options as in `step_seconds`.
    """
    alone = dataclasses.replace(model, extras={})
    seconds, guess = step_seconds(alone, (1, width), **options), step_seconds(model.extras["draft"], (1,), **options)
    return guess[1] / seconds[1], seconds[width] / seconds[1]


def acceptance_to_break_even(ratio: float, width: int) -> float | None:
    """Solve for the acceptance a at which a chain pays: (1 - a^width) / (1 - a) tokens a step = ratio of step times.

    Leviathan et al. 2023, equation 1, with width = gamma + 1. None if no acceptance is enough.
    """
    if ratio > width:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        a = (low + high) / 2
        tokens = sum(a**i for i in range(width))
        low, high = (a, high) if tokens < ratio else (low, a)
    return high
