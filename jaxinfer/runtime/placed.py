"""A model where it lies: what it reads of prompts, and the caches that this leaves."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache import CachePolicy, Dense
from jaxinfer.cache.split import devices_of, split_of
from jaxinfer.cache.store import STORE_AXES, Cache, Store, gather, round_up
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.contract import Companion
from jaxinfer.decoding.sampling.settings import bucket
from jaxinfer.network.transformer import Transformer
from jaxinfer.runtime.compiled import program
from jaxinfer.runtime.prefill import Give, nothing, prefill
from jaxinfer.sharding import Sharding, across, choices, use

LARGEST_CHUNK = 512  # tokens of a row that one prefill call takes; on a CPU, of all rows
SMALLEST_CHUNK = 16


@dataclass(frozen=True)
class PlacedModel:
    """A model where it lies: static network, parameters, and how they are spread over devices."""

    model: Transformer
    params: Any  # in the form that runs best here: see `weights.layer_stack.for_cpu`
    layout: Sharding | None = None
    extras: dict[str, Any] = field(default_factory=dict)  # by name: arrays, or the PlacedModel of a second model

    def place(self, x: np.ndarray, *axes: str | None) -> jax.Array:
        # A copy: what lies on the device may be donated, and must not share memory with the host's array.
        return jax.device_put(x.copy()) if self.layout is None else self.layout.place(x, axes)

    def empty_cache(self, policy: CachePolicy, lengths: np.ndarray, capacity: int) -> Cache:
        """Make a cache for prompts of so many tokens, int[B]."""
        static = policy, self.model.cfg, len(lengths), policy.capacity or capacity, self.model.dtype
        cache = _empty_cache(*static) if self.layout is None else _empty_on_mesh(*static, self.layout)()
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
        give: Give = nothing,
    ) -> tuple[Cache, list[Any], float]:
        """Read prompts i32[B, M] of lengths[B] but for their last tokens: a cache, and the rest as in `prefill`.

        copies: how many rows each of them becomes, of up to ends[B] tokens. Where rows can share what they begin with,
        one reads it for all. Raises InputError where the policy has no room, before anything is read.
        """
        n, common = lengths - 1, self.check_room(policy, tokens, lengths, ends, copies)
        cache, shared, compiling = self.empty_cache(policy, lengths, tokens.shape[1]), [], 0.0
        if common:
            one = self._gathered(cache, np.zeros(1, np.int32))
            one, parts, compiling = self.prefill(one, tokens[:1, :common], np.full(1, common), give)
            cache = self._gathered(one, np.zeros_like(n))
            shared = [jnp.repeat(jnp.concatenate(parts, axis=1)[:, :common], len(n), axis=0)] if parts else []
        cache, parts, more = self.prefill(cache, tokens[:, common:], n - common, give)
        cache = self._gathered(cache, np.repeat(np.arange(len(n)), copies)) if copies > 1 else cache
        return cache, [*shared, *parts], compiling + more

    def check_room(
        self, policy: CachePolicy, tokens: np.ndarray, lengths: np.ndarray, ends: np.ndarray, copies: int = 1
    ) -> int:
        """Count the tokens of prompts i32[B, M] that all rows share. Raises InputError where the policy has no room."""
        common = 0 if self._follows_length else policy.whole(_common(tokens, lengths - 1))
        policy.check_room(self.model.cfg, lengths, ends, copies, common)
        return common

    @property
    def _follows_length(self) -> bool:
        """Tell whether keys are turned by frequencies that the length of the prompt decides."""
        return any(k.rope and k.rope.scaling and k.rope.scaling.follows_length for k in self.model.cfg.kinds)

    def _gathered(self, cache: Cache, rows: np.ndarray) -> Cache:
        return self._placed(_gathered(cache, rows))

    def _placed(self, cache: Cache) -> Cache:
        if self.layout is None:
            return cache
        return jax.tree.map(self._put, cache, _layouts(cache, self.layout))

    def made(self, make: Callable[..., Any], state: Any, *args: Any) -> Any:
        """Give make(state, *args), what a method keeps in a state; on a mesh it is laid out by rows, as that is."""
        found, layout, rows = make(state, *args), self.layout, len(state.n)
        if layout is None:
            return found

        def lay(x: Any) -> Any:
            if isinstance(x, Cache):
                return self._placed(x)
            by_row = x.shape[:1] == (rows,)
            return self._put(x, layout.of(("batch" if by_row else None, *(None,) * x.ndim)[: x.ndim], x.shape))

        return jax.tree.map(lay, found, is_leaf=lambda x: isinstance(x, Cache))

    def _put(self, x: Any, sharding: Any) -> Any:
        return across.put(x, sharding)

    def prefill(
        self, cache: Cache, tokens: np.ndarray, n: np.ndarray, give: Give = nothing
    ) -> tuple[Cache, list[Any], float]:
        """Commit the first n[B] of tokens i32[B, P], chunk by chunk.

        Returns the cache, what `give` makes of each chunk, [B, T, ...], if it makes something, and the seconds spent
        compiling.
        """
        parts: list[Any] = []
        compiling, done = 0.0, 0
        for width in chunks(int(n.max(initial=0)), len(n), devices_of(self.layout)):
            part = np.zeros((tokens.shape[0], width), np.int32)
            given = tokens[:, done : done + width]
            part[:, : given.shape[1]] = given
            cache, found, seconds = self.read_chunk(cache, part, np.clip(n - done, 0, width), give)
            parts += [] if found is None else [found]
            compiling += seconds
            done += width
        return cache, parts, compiling

    def read_chunk(
        self, cache: Cache, tokens: np.ndarray, n: np.ndarray, give: Give, *more: np.ndarray
    ) -> tuple[Cache, Any, float]:
        """Run `prefill` on i32[B, T] arrays, tokens and what `give` takes: its results, and seconds spent compiling."""
        first, *rest = (self.place(x, "batch", "tokens") for x in (tokens, *more))
        args = (self.params, cache, first, self.place(n.astype(np.int32), "batch"), *rest)
        call, new = program(prefill, (self.model, give), args, carry=1, layout=self.layout)
        cache, found = call.call(*args)
        return cache, found, call.seconds if new else 0.0

    def companions(
        self, needs: Sequence[str], tokens: np.ndarray, lengths: np.ndarray, ends: np.ndarray, copies: int
    ) -> tuple[dict[str, Any], float]:
        """Give the extras of these names, and seconds spent compiling. `a.b` names the extra b of the extra a, a model.

        Models have read the prompts, as `read` does, into a cache that holds every token.
        """
        found, compiling = {}, 0.0
        for name in dict.fromkeys(need.partition(".")[0] for need in needs):
            extra = found[name] = self.extras[name]
            if isinstance(extra, PlacedModel):
                cache, _, own = extra.read(Dense(), tokens, lengths, ends, copies)
                below = [need.removeprefix(f"{name}.") for need in needs if need.startswith(f"{name}.")]
                more, theirs = extra.companions(below, tokens, lengths, ends, copies)
                found[name] = Companion(extra.params, cache, extra.model, more)
                compiling += own + theirs
        return found, compiling


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _empty_cache(policy: CachePolicy, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> Cache:
    return policy.init(cfg, batch, capacity, dtype)


@functools.lru_cache(maxsize=64)
def _empty_on_mesh(
    policy: CachePolicy, cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype, layout: Sharding
) -> Callable[[], Cache]:
    """Compile what makes an empty cache where it is to lie: no device ever holds more than its part.

    Warns of stores whose slots the devices that are to share them cannot: each then holds them all.
    """
    with use(layout):
        form = jax.eval_shape(functools.partial(policy.init, cfg, batch, capacity, dtype))
        for name, store in form.stores.items():
            if isinstance(store, Store) and devices_of(layout) > 1 and split_of(store) is None:
                slots = store.pos.shape[1] if store.pages is None else store.pos.shape[1] // store.pages.shape[1]
                what = f"{slots} slots" if store.pages is None else f"blocks of {slots} slots"
                warnings.warn(
                    f"policy {type(policy).__name__}: {what} of {name} layers do not divide over the "
                    f"{devices_of(layout)} devices that share a row's slots: each of them holds all",
                    RuntimeWarning,
                    stacklevel=2,
                )
        init = jax.jit(lambda: policy.init(cfg, batch, capacity, dtype), out_shardings=_layouts(form, layout))
        return cast(Callable[[], Cache], init.lower().compile())


def _layouts(cache: Cache, layout: Sharding) -> Any:
    """Give the layout of every array of a cache, as a tree like it."""
    rows = cache.length.shape[0]

    def by_row(x: Any) -> Any:  # of the policy's own state an axis of another size is not of rows
        axes = ("batch", *(None,) * (x.ndim - 1)) if x.ndim else ()
        return layout.of(tuple(None if x.shape[0] != rows else axis for axis in axes), x.shape)

    def of(store: Any) -> Any:
        if not isinstance(store, Store):
            axes = tuple(None if axis == "slots" else axis for axis in STORE_AXES)
            return jax.tree.map(lambda x: layout.of((*axes, *(None,) * x.ndim)[: x.ndim], x.shape), store)
        shared = split_of(store, layout)
        of_slots = "slots" if shared else None
        pooled = store.pages is not None  # by rows on any device
        axes = ("layers", None if pooled else "batch", "kv_heads", of_slots, "head_dim")
        keys, values = (
            jax.tree.map(lambda x: layout.of(axes[: x.ndim], x.shape), stored) for stored in (store.k, store.v)
        )
        pos = layout.of(("batch", of_slots), store.pos.shape)
        return Store(keys, values, cast(Any, pos), cast(Any, by_row(store.pages)) if pooled else None)

    stores = {name: of(store) for name, store in cache.stores.items()}
    rest = jax.tree.map(by_row, dataclasses.replace(cache, stores={}))
    return dataclasses.replace(rest, stores=stores)


_gathered = jax.jit(gather)


def _common(tokens: np.ndarray, n: np.ndarray) -> int:
    """Count the tokens with which all rows begin, of the first n[B] of tokens i32[B, M]. A row alone has no others."""
    if len(n) == 1:
        return 0
    alike = (tokens == tokens[:1]).all(axis=0)
    return int(min(n.min(), alike.argmin() if not alike.all() else len(alike)))


def chunks(n: int, rows: int = 1, devices: int = 1) -> list[int]:
    """Choose the widths of the prefill calls for n tokens of each row: few calls, little padding, and one program.

    All are the same: a power of two, or the next eighth of the largest that there is. On a CPU the rows of a batch
    share `LARGEST_CHUNK` (docs/cpu.md). devices: those that share the tokens of a row, each of which takes as many.
    """
    largest = LARGEST_CHUNK
    if choices.FEW_TOKENS_A_CALL.here():
        largest = max(LARGEST_CHUNK // bucket(rows), SMALLEST_CHUNK)
    largest *= devices
    calls = -(-n // largest)
    each = -(-n // max(calls, 1))
    width = min(bucket(each), round_up(each, largest // 8))
    return [max(width, SMALLEST_CHUNK)] * calls
