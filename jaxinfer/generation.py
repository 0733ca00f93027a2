"""From prompts to tokens: the host side of a generation. It buckets shapes, drives the engine, and keeps the clock."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import readout
from jaxinfer.cache import CachePolicy, Dense
from jaxinfer.cache.store import STORE_AXES, Cache, Store, gather
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.constraint import Constraint, Masks
from jaxinfer.decoding.method import Companion, Context, DecodeMethod, DecodeState
from jaxinfer.decoding.sampling import Sampling, SamplingState, bucket
from jaxinfer.engine import decode, features, prefill
from jaxinfer.errors import InputError
from jaxinfer.model import Transformer
from jaxinfer.programs import program
from jaxinfer.sharding import Sharding
from jaxinfer.stats import Stats

LARGEST_CHUNK = 512  # tokens of a row that one prefill call takes
SMALLEST_CHUNK = 16
SMALLEST_BUFFER = 128  # tokens: prompts and limits that fit in the same power of two share a program
STEPS_PER_CALL = 64  # so that Ctrl-C and progress are never far away
STOP_SLOTS = 8


@dataclass(frozen=True)
class Target:
    """A model where it lies: static network, parameters, and how they are spread over devices."""

    model: Transformer
    params: Any  # in the form that runs best here: see `layers.stacked.separate`
    layout: Sharding | None = None
    extras: dict[str, Any] = field(default_factory=dict)  # by name: arrays, or the Target of a second model

    def place(self, x: np.ndarray, *axes: str | None) -> jax.Array:
        # A copy: what lies on the device may be donated, and must not share memory with the host's array.
        return jax.device_put(x.copy()) if self.layout is None else self.layout.place(x, axes)

    def empty_cache(self, policy: CachePolicy, lengths: np.ndarray, capacity: int) -> Cache:
        """For prompts of so many tokens, int[B]."""
        cfg = self.model.cfg
        cache = _empty_cache(policy, cfg, len(lengths), policy.capacity or capacity, self.model.dtype)
        if self._follows_length:
            cache = dataclasses.replace(cache, prompt=jnp.array(lengths, jnp.int32))
        return self._placed(cache)

    def read(
        self,
        policy: CachePolicy,
        tokens: np.ndarray,
        lengths: np.ndarray,
        ends: np.ndarray,
        copies: int = 1,
        hidden: list[jax.Array] | None = None,
    ) -> tuple[Cache, float]:
        """A cache that has read prompts i32[B, M] of lengths[B] but for their last tokens: see `prefill`.

        copies: how many rows each of them becomes, of up to ends[B] tokens. Where rows can share what they begin with,
        one reads it for all. Raises InputError where the policy has no room, before anything is read.
        """
        n, common = lengths - 1, 0
        if hasattr(policy, "whole") and not self._follows_length:
            common = policy.whole(_common(tokens, n))
        if hasattr(policy, "check_room"):
            policy.check_room(self.model.cfg, lengths, ends, copies, common)
        cache, compiling = self.empty_cache(policy, lengths, tokens.shape[1]), 0.0
        if common:
            one = self._gathered(cache, np.zeros(1, np.int32))
            one, compiling = self.prefill(one, tokens[:1, :common], np.full(1, common, np.int32), hidden)
            cache = self._gathered(one, np.zeros_like(n))
            if hidden is not None:
                hidden[:] = [jnp.repeat(jnp.concatenate(hidden, axis=1)[:, :common], len(n), axis=0)]
        cache, more = self.prefill(cache, tokens[:, common:], n - common, hidden)
        return self._gathered(cache, np.repeat(np.arange(len(n)), copies)) if copies > 1 else cache, compiling + more

    @property
    def _follows_length(self) -> bool:
        """Whether keys are turned by frequencies that the length of the prompt decides."""
        return any(k.rope and k.rope.scaling and k.rope.scaling.follows_length for k in self.model.cfg.kinds)

    def _gathered(self, cache: Cache, rows: np.ndarray) -> Cache:
        return self._placed(_gathered(cache, jnp.asarray(rows)))

    def _placed(self, cache: Cache) -> Cache:
        layout, rows = self.layout, len(cache.length)
        if layout is None:
            return cache

        def axes_of(x):
            axes = STORE_AXES if x.ndim >= 4 else ("batch", None, None)
            sized = zip(axes[: x.ndim], x.shape, strict=True)
            # An axis of another size is one of blocks, which rows on any device share.
            return tuple(None if axis == "batch" and size != rows else axis for axis, size in sized)

        return jax.tree.map(lambda x: layout.place(x, axes_of(x)), cache)

    def prefill(
        self, cache: Cache, tokens: np.ndarray, n: np.ndarray, hidden: list[jax.Array] | None = None
    ) -> tuple[Cache, float]:
        """Commit the first n[B] of tokens i32[B, P], chunk by chunk: the cache, and seconds spent compiling.

        A list `hidden` gets the hidden states of the chunks, [B, T, D] each.
        """
        compiling, done = 0.0, 0
        for width in chunks(int(n.max(initial=0))):
            part = np.zeros((tokens.shape[0], width), np.int32)
            given = tokens[:, done : done + width]
            part[:, : given.shape[1]] = given
            size = np.clip(n - done, 0, width).astype(np.int32)
            args = (self.params, cache, self.place(part, "batch", "tokens"), self.place(size, "batch"))
            fun = prefill if hidden is None else features
            call, new = program(fun, (self.model,), args, carry=1, layout=self.layout)
            compiling += call.seconds if new else 0.0
            if hidden is None:
                cache = call.call(*args)
            else:
                cache, states = call.call(*args)
                hidden.append(states)
            done += width
        return cache, compiling

    def companions(
        self, needs: Sequence[str], tokens: np.ndarray, lengths: np.ndarray, ends: np.ndarray, copies: int
    ) -> tuple[dict[str, Any], float]:
        """The extras of these names, and seconds spent compiling. `a.b` names the extra b of the extra a, a model.

        Models have read the prompts, as `read` does, into a cache that holds every token.
        """
        found, compiling = {}, 0.0
        for name in dict.fromkeys(need.partition(".")[0] for need in needs):
            extra = found[name] = self.extras[name]
            if isinstance(extra, Target):
                cache, own = extra.read(Dense(), tokens, lengths, ends, copies)
                below = [need.removeprefix(f"{name}.") for need in needs if need.startswith(f"{name}.")]
                more, theirs = extra.companions(below, tokens, lengths, ends, copies)
                found[name] = Companion(extra.params, cache, extra.model, more)
                compiling += own + theirs
        return found, compiling


def _without_cache(extra: Any) -> Any:
    if not isinstance(extra, Companion):
        return extra
    below = {name: _without_cache(x) for name, x in extra.extras.items()}
    return dataclasses.replace(extra, cache=None, extras=below)


def _nbytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _empty_cache(policy: CachePolicy, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
    return policy.init(cfg, batch, capacity, dtype)


_gathered = jax.jit(gather)


def _common(tokens: np.ndarray, n: np.ndarray) -> int:
    """With how many tokens all rows begin, of the first n[B] of tokens i32[B, M]. A row alone has no others."""
    if len(n) == 1:
        return 0
    alike = (tokens == tokens[:1]).all(axis=0)
    return int(min(n.min(), alike.argmin() if not alike.all() else len(alike)))


def chunks(n: int) -> Iterator[int]:
    """Widths of the prefill calls for n tokens: powers of two, few calls, little padding."""
    while n > 0:
        width = min(LARGEST_CHUNK, bucket(n, SMALLEST_CHUNK))
        if width > 64 and n < 0.7 * width:
            width //= 2
        yield width
        n -= width


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
