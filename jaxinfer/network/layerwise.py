"""The network layer by layer: some of its layers alone, for drafts and for early exits.

A forward is `embed`, the layers in turn, and `final_norm`; here each is a function of the parameters, so that control
flow may stand between them. The layers are those of `jaxinfer.network.transformer`: nothing is computed in another way.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxinfer.cache import Dense
from jaxinfer.cache.store import Cache, Store
from jaxinfer.config import ModelConfig
from jaxinfer.layers.attention import Place, Step
from jaxinfer.layers.norm import Norm
from jaxinfer.network.transformer import (
    Block,
    Output,
    Transformer,
    by_kind,
    joined,
    layer_places,
    likeliest_token,
    logits_of,
)


def embed(model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Map tokens, positions i32[B, T] -> [B, T, D], which the first layer reads."""
    return cast(jax.Array, model.apply({"params": params}, tokens, positions, method=lambda m, t, p: m.embed(t, p)))


def final_norm(model: Transformer, params: Any, x: jax.Array) -> jax.Array:
    """Map x[B, T, D] after any layer -> [B, T, D], which `logits_of` takes."""
    cfg = model.cfg
    return cast(jax.Array, Norm(cfg.norm_eps, cfg.norm, cfg.norm_bias).apply({"params": params["final_norm"]}, x))


def layer(
    model: Transformer, params: Any, segment: int, j: int, x: jax.Array, place: Place, step: Step
) -> tuple[jax.Array, Any]:
    """Run one layer, that at `place` of position j of a segment's pattern: [B, T, D], and its fresh keys and values."""
    cfg = model.cfg
    block = Block(cfg, cfg.segments[segment].pattern[j], cfg.segments[segment].repeats, model.dtype)
    out, fresh, _ = cast(Any, block.apply({"params": params[f"segment_{segment}"][f"layer_{j}"]}, x, place, step))
    return out, fresh


def runs(cfg: ModelConfig, layers: Sequence[int]) -> list[tuple[int, tuple[int, ...], list[int]]]:
    """Return rising layer numbers as (segment, positions in its pattern, repeats): what one scan can go through.

    Example: layers 0, 2, 4 and 5 of a segment of two kinds in turn are (0, (0,), [0, 1]) and (0, (0, 1), [2]).
    """
    places = [
        (i, repeat, j) for i, s in enumerate(cfg.segments) for repeat in range(s.repeats) for j in range(len(s.pattern))
    ]
    kept: dict[tuple[int, int], list[int]] = {}
    for number in layers:
        i, repeat, j = places[number]
        kept.setdefault((i, repeat), []).append(j)
    grouped = itertools.groupby(kept.items(), key=lambda entry: (entry[0][0], tuple(entry[1])))
    return [(i, js, [repeat for (_, repeat), _ in group]) for (i, js), group in grouped]


def forward_some(
    model: Transformer,
    params: Any,
    layers: Sequence[int],
    tokens: jax.Array,
    positions: jax.Array,
    cache: Cache,
    drafted: dict[str, Store],
) -> tuple[jax.Array, dict[str, Any]]:
    """Run the network with these of its layers alone, in a decode step, over the cache of the whole one.

    tokens, positions i32[B, T]. drafted: by layer kind, tokens ahead of the cache that came through here before
    (`empty_drafted`, `put_drafted`). Returns hidden[B, T, D] after the final norm, and by layer kind the fresh keys
    and values of these layers, leaves [layers, B, K, T, ...] in their order.
    """
    x, cfg, whole = embed(model, params, tokens, positions), model.cfg, layer_places(model.cfg)
    step = dataclasses.replace(Step.of(tokens, positions, None, None, cache, decoding=True), drafted=drafted)
    made: dict[str, list] = {}
    for i, js, repeats in runs(cfg, layers):
        places = [jax.tree.map(lambda a, at=repeats: a[jnp.array(at)], whole[i][j]) for j in js]

        def body(x, places, i=i, js=js):
            fresh = []
            for j, place in zip(js, places, strict=True):
                x, new = layer(model, params, i, j, x, place, step)
                fresh.append(new)
            return x, fresh

        x, new = jax.lax.scan(body, x, places)
        for j, place, fresh in zip(js, places, new, strict=True):
            made.setdefault(cfg.segments[i].pattern[j].name, []).append((place.slot, fresh))
    return final_norm(model, params, x), made


def empty_drafted(cache: Cache, slots: int) -> dict[str, Store]:
    """Make stores without tokens, of so many slots, in the format of the cache."""

    def of(store: Store) -> Store:
        batch = store.pos.shape[0]

        def empty(x):
            return jnp.zeros((x.shape[0], batch, x.shape[2], slots, *x.shape[4:]), x.dtype)

        return Store(
            jax.tree.map(empty, store.k), jax.tree.map(empty, store.v), jnp.full((batch, slots), -1, jnp.int32)
        )

    return {name: of(store) for name, store in cache.stores.items() if isinstance(store, Store)}


def put_drafted(
    drafted: dict[str, Store], made: dict[str, Any], positions: jax.Array, slot: jax.Array
) -> dict[str, Store]:
    """Put the one token a row that `forward_some` has read into slot i32[]; positions i32[B, 1]."""

    def into(store: Store, parts: list) -> Store:
        k, v = store.k, store.v
        for layers, fresh in parts:

            def put(buffer, new, layers=layers):
                return buffer.at[layers, :, :, slot].set(new[:, :, :, 0])

            k, v = jax.tree.map(put, k, fresh[0]), jax.tree.map(put, v, fresh[1])
        return Store(k, v, store.pos.at[:, slot].set(positions[:, 0]))

    return {name: into(store, made.get(name, [])) for name, store in drafted.items()}


def forward_until(
    model: Transformer,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    cache: Cache,
    leaves: Callable[[jax.Array, jax.Array], jax.Array],
    may_exit: Sequence[bool],
    skip: jax.Array,
) -> Output:
    """Run the network in a decode step over one token a row, which it may leave early; tokens, positions i32[B, 1].

    leaves(before, after) -> bool[B] sees the hidden states [B, 1, D] around each layer with may_exit[layer]. A row
    that leaves keeps its state, and keys and values of the layers above are made of it (CALM, section 3.3). Once all
    rows have left, a layer computes its keys and values, and nothing else. skip bool[B]: rows that have left from the
    start. `Output.depth` i32[B] counts the layers that each row went through.
    """
    cfg, step = model.cfg, Step.of(tokens, positions, None, None, cache, decoding=True)
    x, numbers = embed(model, params, tokens, positions), iter(range(cfg.n_layers))
    carry = (x, skip, jnp.zeros_like(skip, jnp.int32))
    made: dict[str, list] = {kind.name: [] for kind in cfg.kinds}
    for i, (segment, places) in enumerate(zip(cfg.segments, layer_places(cfg), strict=True)):
        exits = [[may_exit[next(numbers)] for _ in segment.pattern] for _ in range(segment.repeats)]

        def body(carry, part, i=i):
            new = []
            places, exits = part
            for j, place in enumerate(places):
                carry, fresh = _until(model, params, i, j, place, exits[j], step, leaves, carry)
                new.append((fresh, None))
            return carry, new

        carry, new = jax.lax.scan(body, carry, (places, jnp.array(exits)))
        for name, outputs in by_kind(segment, new).items():
            made[name].append(outputs[0])
    fresh = joined(cfg, made)
    x, _, layers = carry
    return Output(final_norm(model, params, x), fresh, depth=layers)


def _until(model, params, i, j, place, may_exit, step, leaves, carry):
    """Run one layer for those who have not left, and its keys and values for all."""

    def whole(carry):
        x, left, layers = carry
        y, fresh = layer(model, params, i, j, x, place, step)
        y = jnp.where(left[:, None, None], x, y)
        leaving = jax.lax.cond(may_exit, leaves, lambda x, y: jnp.zeros_like(left), x, y)
        return (y, left | leaving, layers + ~left), fresh

    def keys_and_values(carry):
        # What only the result of the layer would need is dead code.
        return carry, layer(model, params, i, j, carry[0], place, step)[1]

    return jax.lax.cond(jnp.all(carry[1]), keys_and_values, whole, carry)


@partial(jax.jit, static_argnums=0)
def most_likely(model: Transformer, params: Any, tokens: jax.Array, kept: jax.Array) -> jax.Array:
    """Return i32[B, T]: what the network says after each of tokens i32[B, T], with the layers kept bool[L] alone.

    Which layers is not static: one program for all sets of them.
    """
    cfg, positions = model.cfg, jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    step = Step.of(tokens, positions, None, None, Dense().init(cfg, len(tokens), 1, model.dtype), decoding=False)
    x, start = embed(model, params, tokens, positions), 0
    for i, (segment, places) in enumerate(zip(cfg.segments, layer_places(cfg), strict=True)):
        count = segment.repeats * len(segment.pattern)
        gates = kept[start : start + count].reshape(segment.repeats, -1)

        def body(x, part, i=i):
            places, gates = part
            for j, place in enumerate(places):

                def run(x, i=i, j=j, place=place):
                    return layer(model, params, i, j, x, place, step)[0]

                x = jax.lax.cond(gates[j], run, lambda x: x, x)
            return x, None

        x, _ = jax.lax.scan(body, x, (places, gates))
        start += count
    return likeliest_token(logits_of(model, params, final_norm(model, params, x)))


@partial(jax.jit, static_argnums=0)
def states(model: Transformer, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Map tokens i32[B, T] to hidden states after every layer, [L, B, T, D], and what each would say, i32[L, B, T].

    The final norm is after each of them.
    """
    cfg, positions = model.cfg, jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    step = Step.of(tokens, positions, None, None, Dense().init(cfg, len(tokens), 1, model.dtype), decoding=False)
    x, found = embed(model, params, tokens, positions), []
    for i, (segment, places) in enumerate(zip(cfg.segments, layer_places(cfg), strict=True)):

        def body(x, places, i=i):
            left = []
            for j, place in enumerate(places):
                x, _ = layer(model, params, i, j, x, place, step)
                left.append(x)
            return x, jnp.stack(left)

        x, left = jax.lax.scan(body, x, places)
        found.append(left.reshape(segment.repeats * len(segment.pattern), *x.shape))
    hidden = final_norm(model, params, jnp.concatenate(found))
    said = jax.lax.map(lambda h: likeliest_token(logits_of(model, params, h)), hidden)
    return hidden, said
