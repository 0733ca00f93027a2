"""From prompts to tokens: the host side of a generation. It buckets shapes, drives the engine, and keeps the clock."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import readout
from jaxinfer.cache import CachePolicy
from jaxinfer.cache.store import Store
from jaxinfer.decoding.constraint import Constraint, Masks
from jaxinfer.decoding.method import Companion, Context, DecodeMethod, DecodeState
from jaxinfer.decoding.sampling import Sampling, SamplingState, bucket
from jaxinfer.engine import decode
from jaxinfer.errors import InputError
from jaxinfer.layers.bits import without_bits
from jaxinfer.programs import program
from jaxinfer.stats import Stats
from jaxinfer.target import Target

SMALLEST_BUFFER = 128  # tokens: prompts and limits that fit in the same power of two share a program
STEPS_PER_CALL = 64  # so that Ctrl-C and progress are never far away
STOP_SLOTS = 8


def _without_cache(extra: Any) -> Any:
    if not isinstance(extra, Companion):
        return extra
    below = {name: _without_cache(x) for name, x in extra.extras.items()}
    return dataclasses.replace(extra, cache=None, extras=below)


def _nbytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(without_bits(tree)))


def _joined(parts: list[jax.Array], shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Chunks [B, T, D] one behind the other, in an array of this shape: cut, or filled up with zeros."""
    whole = jnp.concatenate([jnp.zeros((shape[0], 0, shape[2]), dtype), *parts], axis=1)[:, : shape[1]]
    return jnp.pad(whole, ((0, 0), (0, shape[1] - whole.shape[1]), (0, 0)))


class Generation:
    """One batch of prompts on its way through the model.

    The constructor prefills; `advance` takes steps; `rows` gives what is there. Rows never wait in Python: only the
    flags `done` are read between calls of the loop.
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        method: DecodeMethod,
        policy: CachePolicy,
        sampling: Sampling,
        seeds: Sequence[int],
        stop: Sequence[int],
        logprobs: bool,
        constraint: Constraint | Sequence[Constraint | None] | None = None,
    ):
        cfg = target.model.cfg
        sampling.check_width(method.width)
        lengths = np.array([len(p) for p in prompts], np.int32)
        ends = np.minimum(lengths + np.asarray(limits, np.int32), cfg.max_positions + 1).astype(np.int32)
        buffer = bucket(int(ends.max()), SMALLEST_BUFFER)
        if policy.capacity is not None and ends.max() - 1 > policy.capacity:
            raise InputError(
                f"policy capacity={policy.capacity} is too small: the longest prompt and its new tokens need "
                f"{ends.max() - 1} slots"
            )
        if len(stop) > STOP_SLOTS:
            raise InputError(f"{len(stop)} stop tokens: at most {STOP_SLOTS} can be checked on the device")
        tokens = np.zeros((len(prompts), buffer), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt

        self.target, self.method, self.lengths = target, method, lengths
        self.copies = getattr(method, "rows_per_prompt", 1)  # the prompts are read once, whatever it is
        self.seconds = {"prefill": 0.0, "decode": 0.0, "compile": 0.0}
        self.temp_bytes = 0
        start = time.perf_counter()
        hidden: list[jax.Array] | None = [] if getattr(method, "reads_prompt", False) else None
        cache, compiling = target.read(policy, tokens, lengths, ends, self.copies, hidden)
        extras, more = target.companions(method.needs, tokens, lengths, ends, self.copies)
        compiling += more
        jax.block_until_ready((cache, extras))
        self._clock("prefill", start, compiling)

        def place(x, *axes):
            return target.place(np.repeat(x, self.copies, axis=0) if axes[0] == "batch" else x, *axes)

        def per_row(x):
            return place(x, "batch", *(None,) * (x.ndim - 1))

        zeros = np.zeros(len(prompts), np.int32)
        state = DecodeState(
            tokens=per_row(tokens),
            n=per_row(lengths),
            limit=per_row(ends),
            done=per_row(lengths >= ends),
            stop=target.place(np.array([*stop, *[-1] * (STOP_SLOTS - len(stop))], np.int32), None),
            cache=cache,
            seeds=per_row(np.asarray(seeds, np.uint32)),
            sampling=jax.tree.map(per_row, SamplingState.of(sampling, prompts, cfg.vocab_size))
            if method.samples
            else None,
            logprobs=per_row(np.zeros(tokens.shape, np.float32)) if logprobs else None,
            aux=None,
            held=None,
            steps=per_row(zeros),
            guessed=per_row(zeros),
            runs=per_row(np.zeros((len(prompts), method.width + 1), np.int32)),
            proposed=per_row(zeros),
            accepted=per_row(zeros),
            constraint=Masks.of(constraint, len(prompts), cfg.vocab_size, stop, place),
        )
        seen = {}
        if hidden is not None:
            joined = _joined(hidden, (*tokens.shape, cfg.d_model), target.model.dtype)
            seen = {"hidden": jnp.repeat(joined, self.copies, axis=0) if self.copies > 1 else joined}
        ctx = Context(target.params, {**extras, **seen}, target.model)
        held = method.hold(ctx, state) if hasattr(method, "hold") else None
        aux = jax.tree.map(jnp.copy, method.init(ctx, state))  # it may be made of parts of the state, which are donated
        self.state = dataclasses.replace(state, aux=aux, held=held)
        # The caches of companions move with the state from here on.
        self.extras = {name: _without_cache(extra) for name, extra in extras.items()}
        self.cache_bytes = _nbytes((cache, self.state.aux, held))

    def advance(self, steps: int) -> None:
        """Take up to this many steps."""
        args = (self.target.params, self.extras, self.state, np.int32(steps))
        start = time.perf_counter()
        static = (self.target.model, self.method)
        call, new = program(decode, static, args, carry=2, layout=self.target.layout)
        self.temp_bytes = call.temp_bytes
        self.state = call.call(*args)
        jax.block_until_ready(self.state.done)
        self._clock("decode", start, call.seconds if new else 0.0)

    def run(self, steps_per_call: int = STEPS_PER_CALL, after: Callable[["Generation"], None] | None = None) -> None:
        """Advance until every row is done, calling `after` between the calls."""
        while not self.done.all():
            self.advance(steps_per_call)
            if after:
                after(self)

    def finish(self, row: int) -> None:
        """End the rows of one prompt: a stop string was found on the host."""
        rows = slice(row * self.copies, (row + 1) * self.copies)
        self.state = dataclasses.replace(self.state, done=self.state.done.at[rows].set(True))

    def _clock(self, stage: str, start: float, compiling: float) -> None:
        self.seconds[stage] += time.perf_counter() - start - compiling
        self.seconds["compile"] += compiling

    @property
    def done(self) -> np.ndarray:
        """bool, for each prompt."""
        return np.asarray(self.state.done)[:: self.copies]

    def rows(self) -> list[list[int]]:
        """The new tokens of each prompt so far; of a search, the best text, and none before its end."""
        tokens, ends, _ = readout.best(self.method, self.state, self.lengths)
        return [row[a:b].tolist() for row, a, b in zip(tokens, self.lengths, ends, strict=True)]

    def logprobs(self) -> list[list[float]] | None:
        """The log-probability of each new token under the model's own distribution."""
        _, ends, values = readout.best(self.method, self.state, self.lengths)
        if values is None:
            return None
        return [row[a:b].tolist() for row, a, b in zip(values, self.lengths, ends, strict=True)]

    def hypotheses(self) -> list[list[tuple[list[int], float]]] | None:
        """Of each prompt the texts that a search has come to, new tokens and score, best first; None without one."""
        return readout.hypotheses(self.method, self.state, self.lengths)

    def stats(self) -> Stats:
        state, method = self.state, self.method
        _, ends, _ = readout.best(method, state, self.lengths)
        figures = method.figures(state.aux) if hasattr(method, "figures") else {}
        weights = _nbytes(self.target.params)
        looked_up = 0 if self.target.model.cfg.tie_embeddings else self.target.params["embed"]["embedding"].nbytes
        stores = [store for store in state.cache.stores.values() if isinstance(store, Store)]
        held = [jax.tree.leaves(store.k)[0].shape for store in stores]  # [L, B, K, S, ...], or a pool
        slots = sum(shape[1] * shape[3] for shape in held)
        filled = (self.lengths + ends) / 2
        live = self.copies * sum(np.minimum(filled, store.pos.shape[1]).sum() for store in stores)

        counters = ("steps", "guessed", "runs", "proposed", "accepted")
        counted: Any = {name: np.asarray(getattr(state, name))[:: self.copies].tolist() for name in counters}
        return Stats(
            **counted,
            emitted=(ends - self.lengths).tolist(),
            prompt_tokens=self.lengths.tolist(),
            seconds=dict(self.seconds),
            weight_bytes=weights + _nbytes(self.extras),
            cache_bytes=self.cache_bytes,
            temp_bytes=self.temp_bytes,
            step_bytes=int(weights - looked_up + _nbytes(state.cache) * (live / slots if slots else 1.0)),
            figures={name: np.asarray(x).tolist() for name, x in figures.items()},
        )
