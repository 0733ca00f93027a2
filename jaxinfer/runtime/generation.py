"""From prompts to tokens: the host side of a generation. It buckets shapes, drives the engine, and keeps the clock."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxinfer.cache import CachePolicy
from jaxinfer.cache.store import Store
from jaxinfer.decoding.constraints.constraint import Constraint, Masks
from jaxinfer.decoding.contract import DecodeMethod, DecodeState
from jaxinfer.decoding.loop import decode
from jaxinfer.decoding.sampling.settings import Sampling, SamplingState
from jaxinfer.runtime import beginning, hypotheses
from jaxinfer.runtime.compiled import program
from jaxinfer.runtime.placed import PlacedModel
from jaxinfer.runtime.request import Call
from jaxinfer.runtime.stats import Stats, on_mesh
from jaxinfer.sharding import across
from jaxinfer.weights.bfloat16_bits import without_bits

STEPS_PER_CALL = 64  # so that Ctrl-C and progress are never far away


def _nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(without_bits(tree)))


@dataclass(eq=False)
class Generation:
    """One batch of prompts on its way through the model.

    `begin` reads the prompts and makes one; `advance` takes steps; `rows` gives what is there. Rows never wait in
    Python: only the flags `done` are read between calls of the loop. What is given has a value for each sample of each
    prompt, N in all; the state has `rows_per_prompt` rows for each of them.
    """

    placed: PlacedModel
    method: DecodeMethod
    state: DecodeState
    extras: dict[str, Any]  # that the method needs, without the caches of models, which are in the state
    lengths: np.ndarray  # i32[N]: of the prompts
    ends: np.ndarray  # i32[N]: the most tokens of each text
    samples: int = 1  # rows of each prompt, which is read once for all of them
    cache_bytes: int = 0  # of the cache, and of what the method keeps beside it
    temp_bytes: int = 0  # scratch memory of the decode program
    seconds: dict[str, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0, "compile": 0.0})

    @classmethod
    def of(cls, placed: PlacedModel, prompts: Sequence[Sequence[int]], call: Call) -> "Generation":
        """Read the prompts of a call of `generate`. Raises InputError as `begin`."""
        return cls.begin(
            placed,
            prompts,
            call.limits,
            call.method,
            call.policy,
            call.sampling,
            call.seeds,
            call.stop_ids,
            call.logprobs is not None,
            call.constraint,
            samples=call.n,
            least=call.least,
            likeliest=call.logprobs or 0,
            own_stop=call.own_stop,
        )

    @classmethod
    def begin(
        cls,
        placed: PlacedModel,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        method: DecodeMethod,
        policy: CachePolicy,
        sampling: Sampling,
        seeds: Sequence[int],
        stop: Sequence[int],
        logprobs: bool,
        constraint: Constraint | Sequence[Constraint | None] | None = None,
        *,
        samples: int = 1,
        least: Sequence[int] | None = None,
        likeliest: int = 0,
        own_stop: Sequence[int] | None = None,
    ) -> "Generation":
        """Read the prompts. Raises InputError for what cannot be done, before anything is read.

        samples: rows of each prompt, which is read once for all of them; seeds are those of rows. least: new tokens of
        each prompt before a stop token may come. likeliest: of how many tokens beside a new one log-probabilities are
        kept. own_stop: those of the stop tokens that a constraint ends with; None: all.
        """
        cfg, copies = placed.model.cfg, samples * method.rows_per_prompt
        sampling.check_width(method.width)
        given = beginning.Prompts.of(prompts, limits, cfg, policy)

        def place(x, *axes):
            return placed.place(np.repeat(x, copies, axis=0) if axes[0] == "batch" else x, *axes)

        def per_row(x):
            return place(x, "batch", *(None,) * (x.ndim - 1))

        settings = SamplingState.of(sampling, prompts, cfg.vocab_size) if method.samples else None
        masks = Masks.of(constraint, len(prompts), cfg.vocab_size, stop if own_stop is None else own_stop, place)
        start = time.perf_counter()
        reading = beginning.read(placed, method, policy, given, copies)
        taken = time.perf_counter() - start
        state = beginning.first_state(
            placed, method, given, reading.cache, per_row, seeds, stop, logprobs, least, likeliest
        )
        state = dataclasses.replace(state, sampling=jax.tree.map(per_row, settings), constraint=masks)
        state = beginning.with_own(method, placed, given, reading, state)
        generation = cls(
            placed,
            method,
            state,
            extras={name: beginning.without_cache(extra) for name, extra in reading.extras.items()},
            lengths=np.repeat(given.lengths, samples),
            ends=np.repeat(given.ends, samples),
            samples=samples,
            cache_bytes=_nbytes((reading.cache, state.aux, state.held)),
        )
        generation._clock("prefill", taken, reading.compiling)
        return generation

    @property
    def copies(self) -> int:
        """Count the rows of the state for each sample of a prompt."""
        return self.method.rows_per_prompt

    def arguments(self, steps: int) -> tuple[Any, ...]:
        """Give what `decode` is called with to take up to this many steps; the state is donated."""
        return self.placed.params, self.extras, self.state, np.int32(steps)

    def advance(self, steps: int) -> None:
        """Take up to this many steps."""
        args = self.arguments(steps)
        start = time.perf_counter()
        static = (self.placed.model, self.method)
        call, new = program(decode, static, args, carry=2, layout=self.placed.layout)
        self.temp_bytes = call.temp_bytes
        self.state = call.call(*args)
        jax.block_until_ready(self.state.done)
        self._clock("decode", time.perf_counter() - start, call.seconds if new else 0.0)

    def run(self, steps_per_call: int = STEPS_PER_CALL, after: Callable[["Generation"], None] | None = None) -> None:
        """Advance until every row is done, calling `after` between the calls."""
        while not self.done.all():
            self.advance(steps_per_call)
            if after:
                after(self)

    def finish(self, row: int) -> None:
        """End the rows of one prompt: a stop string was found on the host."""
        done = across.fetch(self.state.done).copy()
        done[row * self.copies : (row + 1) * self.copies] = True
        self.state = dataclasses.replace(self.state, done=self.placed.place(done, "batch"))

    def _clock(self, stage: str, taken: float, compiling: float) -> None:
        self.seconds[stage] += taken - compiling
        self.seconds["compile"] += compiling

    @property
    def done(self) -> np.ndarray:
        """Tell which prompts are done: bool, for each prompt."""
        return across.fetch(self.state.done)[:: self.copies]

    def rows(self) -> list[list[int]]:
        """Give the new tokens of each prompt so far; of a search, the best text, and none before its end."""
        tokens, ends, _ = hypotheses.best(self.method, self.state, self.lengths)
        return [row[a:b].tolist() for row, a, b in zip(tokens, self.lengths, ends, strict=True)]

    def logprobs(self) -> list[list[float]] | None:
        """Give the log-probability of each new token under the model's own distribution."""
        _, ends, values = hypotheses.best(self.method, self.state, self.lengths)
        if values is None:
            return None
        return [row[a:b].tolist() for row, a, b in zip(values, self.lengths, ends, strict=True)]

    def likeliest(self) -> list[list[list[tuple[int, float]]]] | None:
        """Give each new token's place, the tokens that were likeliest, in order, and their log-probabilities."""
        if self.state.likeliest is None:
            return None
        ids, values = (x[:: self.copies] for x in across.fetch(self.state.likeliest))
        ends = across.fetch(self.state.n)[:: self.copies]
        spans = [slice(a, b) for a, b in zip(self.lengths, ends, strict=True)]
        return [hypotheses.pairs(ids[row, span], values[row, span]) for row, span in enumerate(spans)]

    def hypotheses(self) -> list[list[tuple[list[int], float]]] | None:
        """Give the texts that a search has come to for each prompt, new tokens and score, best first; else None."""
        return hypotheses.hypotheses(self.method, self.state, self.lengths)

    def stats(self) -> Stats:
        state, method = self.state, self.method
        _, ends, _ = hypotheses.best(method, state, self.lengths)
        figures = method.figures(state.aux)
        weights = _nbytes(self.placed.params)
        looked_up = 0 if self.placed.model.cfg.tie_embeddings else self.placed.params["embed"]["embedding"].nbytes
        stores = [store for store in state.cache.stores.values() if isinstance(store, Store)]
        held = [jax.tree.leaves(store.k)[0].shape for store in stores]  # [L, B, K, S, ...], or a pool
        slots = sum(shape[1] * shape[3] for shape in held)
        filled = (self.lengths + ends) / 2
        live = self.copies * sum(np.minimum(filled, store.pos.shape[1]).sum() for store in stores)

        counters = ("steps", "guessed", "runs", "proposed", "accepted")
        values = across.fetch([getattr(state, name) for name in counters])
        counted: Any = {name: x[:: self.copies].tolist() for name, x in zip(counters, values, strict=True)}
        return Stats(
            **counted,
            emitted=(ends - self.lengths).tolist(),
            samples=self.samples,
            prompt_tokens=self.lengths.tolist(),
            seconds=dict(self.seconds),
            weight_bytes=weights + _nbytes(self.extras),
            cache_bytes=self.cache_bytes,
            temp_bytes=self.temp_bytes,
            step_bytes=int(weights - looked_up + _nbytes(state.cache) * (live / slots if slots else 1.0)),
            **on_mesh(self.placed.layout, (self.placed.params, self.extras), (state.cache, state.aux, state.held)),
            figures={name: x.tolist() for name, x in across.fetch(figures).items()},
        )
