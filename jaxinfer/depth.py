"""The network layer by layer: what runs some of its layers only, for drafts and for early exits.

A forward is `embed`, the layers in turn, and `final_norm`; here each is a function of the parameters, so that control
flow may stand between them. The layers are those of `jaxinfer.model`: nothing is computed in another way.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import Cache, Store
from jaxinfer.config import ModelConfig
from jaxinfer.layers.attention import Place, Step
from jaxinfer.layers.norm import Norm
from jaxinfer.model import Block, Transformer, layer_places


def embed(model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """tokens, positions i32[B, T] -> [B, T, D]: what the first layer reads."""
    return cast(jax.Array, model.apply({"params": params}, tokens, positions, method=lambda m, t, p: m.embed(t, p)))


def final_norm(model: Transformer, params: Any, x: jax.Array) -> jax.Array:
    """x[B, T, D] behind any layer -> [B, T, D], which `logits_of` takes."""
    cfg = model.cfg
    return cast(jax.Array, Norm(cfg.norm_eps, cfg.norm, cfg.norm_bias).apply({"params": params["final_norm"]}, x))


def layer(
    model: Transformer, params: Any, segment: int, j: int, x: jax.Array, place: Place, step: Step
) -> tuple[jax.Array, Any]:
    """One layer, that at `place` of position j of a segment's pattern: [B, T, D], and its fresh keys and values."""
    cfg = model.cfg
    block = Block(cfg, cfg.segments[segment].pattern[j], cfg.segments[segment].repeats, model.dtype)
    out, fresh, _ = cast(Any, block.apply({"params": params[f"segment_{segment}"][f"layer_{j}"]}, x, place, step))
    return out, fresh


def runs(cfg: ModelConfig, layers: Sequence[int]) -> list[tuple[int, tuple[int, ...], list[int]]]:
    """Rising layer numbers as (segment, positions in its pattern, repeats): what one scan can go through.

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
    """The network with these of its layers alone, in a decode step, over the cache of the whole one.

    tokens, positions i32[B, T]. drafted: by layer kind, tokens ahead of the cache that came through here before
    (`empty_drafted`, `put_drafted`). Returns hidden[B, T, D] behind the final norm, and by layer kind the fresh keys
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
    """Stores without tokens, of so many slots, in the format of the cache."""

    def of(store: Store) -> Store:
        batch = store.pos.shape[0]

        def empty(x):
            return jnp.zeros((*x.shape[:3], slots, *x.shape[4:]), x.dtype)

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
