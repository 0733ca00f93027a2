"""A model where it lies: what it reads of prompts, and the caches that this leaves."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache import CachePolicy, Dense
from jaxinfer.cache.store import STORE_AXES, Cache, gather
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.method import Companion
from jaxinfer.decoding.sampling import bucket
from jaxinfer.engine import features, prefill
from jaxinfer.model import Transformer
from jaxinfer.programs import program
from jaxinfer.sharding import Sharding

LARGEST_CHUNK = 512  # tokens of a row that one prefill call takes
SMALLEST_CHUNK = 16


@dataclass(frozen=True)
class Target:
    """A model where it lies: static network, parameters, and how they are spread over devices."""

    model: Transformer
    params: Any  # in the form that runs best here: see `layers.stacked.for_cpu`
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
