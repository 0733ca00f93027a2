"""A generation of shapes: what `generate` would pass to its programs, with no array made."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import sharding
from jaxinfer.analysis.ahead_of_time.ask import Ask
from jaxinfer.api import Model
from jaxinfer.cache import CachePolicy
from jaxinfer.cache.split import devices_of
from jaxinfer.cache.store import Cache, gather
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.contract import DecodeMethod
from jaxinfer.decoding.loop import decode
from jaxinfer.errors import InputError
from jaxinfer.network.head_groups import parts_of, regrouped
from jaxinfer.network.transformer import Transformer, abstract_params, param_axes
from jaxinfer.runtime import compiled
from jaxinfer.runtime.generation import STEPS_PER_CALL, Generation
from jaxinfer.runtime.placed import PlacedModel, chunks
from jaxinfer.runtime.prefill import Give, nothing, prefill
from jaxinfer.runtime.request import Options
from jaxinfer.sharding import Sharding, topologies
from jaxinfer.weights.qtensor import is_quantized
from jaxinfer.weights.quantize import quantize_params


@dataclass(frozen=True)
class Program:
    """A program that `generate` runs, and the shapes that it is called with."""

    name: str  # "prefill 512", "decode"
    function: Any
    static: tuple[Any, ...]
    arguments: tuple[Any, ...]
    carry: int
    layout: Sharding
    tokens: int  # of a row, that one forward takes
    method: DecodeMethod | None = None

    def lower(self) -> jax.stages.Lowered:
        return compiled.lower(self.function, self.static, self.arguments, self.carry, self.layout)

    @property
    def signature(self) -> str:
        return compiled.signature(self.function, self.static, self.arguments, self.layout)

    @property
    def cache(self) -> Cache:
        """Give the cache among the arguments."""
        held = self.arguments[self.carry]
        return held if isinstance(held, Cache) else held.cache


@dataclass(frozen=True)
class Shapes(PlacedModel):
    """A placed model whose parameters are shapes. What reads prompts gives shapes, and is noted by its width."""

    seen: dict[int, Program] = field(default_factory=dict)

    def place(self, x: Any, *axes: str | None) -> Any:
        return self._put(x, self._mesh().of(axes, x.shape))

    def empty_cache(self, policy: CachePolicy, lengths: np.ndarray, capacity: int) -> Cache:
        slots = policy.capacity or capacity
        cache = jax.eval_shape(partial(policy.init, self.model.cfg, len(lengths), slots, self.model.dtype))
        if self._follows_length:
            cache = cache.replace(prompt=jax.ShapeDtypeStruct((len(lengths),), jnp.int32))
        return self._placed(cache)

    def read_chunk(
        self, cache: Cache, tokens: np.ndarray, n: np.ndarray, give: Give, *more: np.ndarray
    ) -> tuple[Cache, Any, float]:
        first, *rest = (self.place(x, "batch", "tokens") for x in (tokens, *more))
        args = (self.params, cache, first, self.place(n.astype(np.int32), "batch"), *rest)
        width, static = tokens.shape[1], (self.model, give)
        layout = self._mesh()
        self.seen.setdefault(width, Program(f"prefill {width}", prefill, static, args, 1, layout, width))
        found = None
        if give is not nothing:
            found = jax.eval_shape(partial(prefill, *static), *args)[1]
        return cache, found, 0.0

    def made(self, make: Any, state: Any, *args: Any) -> Any:
        try:
            shapes = jax.eval_shape(make, state, *args)
        except (jax.errors.JAXTypeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"the method's first state needs arrays, and there are only shapes: {reason}") from None
        return super().made(lambda state: shapes, state)

    def _gathered(self, cache: Cache, rows: np.ndarray) -> Cache:
        return self._placed(jax.eval_shape(gather, cache, jax.ShapeDtypeStruct(rows.shape, jnp.int32)))

    def _put(self, x: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def _mesh(self) -> Sharding:
        assert self.layout is not None
        return self.layout


def layout_of(ask: Ask) -> Sharding:
    """Lay the mesh on the target's devices. Raises InputError where there is no compiler for it."""
    rules = replace(ask.mesh.rules, pad_heads=ask.pad_heads)
    return Sharding(ask.mesh.on(topologies.devices(ask.target)), rules)


def parameters(ask: Ask, layout: Sharding) -> tuple[ModelConfig, Any]:
    """Give the network that runs on the mesh, and its parameters as shapes, laid out as `Model.shard` lays arrays."""
    with sharding.use(layout):
        params: Any = abstract_params(ask.config, jnp.dtype(ask.dtype))
        if ask.weights is not None:
            params = jax.eval_shape(partial(quantize_params, format=ask.weights), params)
    cfg, params = regrouped(ask.config, params, parts_of(layout), ask.pad_heads)

    def one(x: Any, axes: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.of(axes, x.shape, at_rest=True))

    def place(axes: Any, weight: Any) -> Any:
        return jax.tree.map(one, weight, weight.axes(axes) if is_quantized(weight) else axes)

    return cfg, jax.tree.map(place, param_axes(cfg), params, is_leaf=lambda x: isinstance(x, tuple))


def programs(ask: Ask, layout: Sharding) -> dict[str, Program]:
    """Give the programs of each step that is asked for, by step; those of `decode` and `verify` may be one."""
    network, found = parameters(ask, layout), {}
    for step in ask.steps:
        method = ask.method_of("decode" if step == "prefill" else step)
        generation = begun(ask, layout, network, method)
        shapes = generation.placed
        assert isinstance(shapes, Shapes)
        if step == "prefill":
            if not shapes.seen:
                raise InputError(f"steps: there is no prefill of prompts of {ask.tokens} token: it is the first step's")
            found[step] = next(iter(shapes.seen.values()))
        else:
            found[step] = _loop(generation, layout, method)
    return found


def widths(ask: Ask, layout: Sharding) -> list[Program]:
    """Give the prefill of every width that prompts of up to the asked length are read in."""
    with sharding.use(layout):
        all_widths = sorted({width for n in range(1, ask.tokens) for width in chunks(n, ask.batch, devices_of(layout))})
    generation = begun(ask, layout, parameters(ask, layout), ask.method_of("decode"))
    shapes, give = generation.placed, nothing
    assert isinstance(shapes, Shapes)
    if shapes.seen:
        give = next(iter(shapes.seen.values())).static[1]
    with sharding.use(layout):
        for width in all_widths:
            rows = np.zeros((ask.batch, width), np.int32)
            shapes.read_chunk(generation.state.cache, rows, np.full(ask.batch, width), give)
    return [shapes.seen[width] for width in sorted(shapes.seen)]


def begun(ask: Ask, layout: Sharding, network: tuple[ModelConfig, Any], method: DecodeMethod) -> Generation:
    """Begin a generation of shapes: prompts of the asked length, in rows that have room for the context."""
    cfg, params = network
    model = Model(cfg, params, name=cfg.family, dtype=ask.dtype, layout=layout)
    shapes = Shapes(Transformer(cfg, jnp.dtype(ask.dtype)), params, layout)
    # No two rows begin alike: a policy may let rows share what they begin with.
    ids = (np.arange(ask.tokens)[None] + np.arange(ask.batch)[:, None]) % ask.config.vocab_size
    rows = ids.tolist()
    options = Options(method=method, policy=ask.policy, max_new_tokens=ask.context - ask.tokens)
    with sharding.use(layout):
        return Generation.of(shapes, rows, options.checked(model, rows))


def _loop(generation: Generation, layout: Sharding, method: DecodeMethod) -> Program:
    static = (generation.placed.model, method)
    arguments = generation.arguments(STEPS_PER_CALL)
    return Program("decode", decode, static, arguments, 2, layout, method.width, method)


@contextlib.contextmanager
def without_disk_cache() -> Iterator[None]:
    """Keep programs for other machines out of the cache on disk: nothing here can load them again."""
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
