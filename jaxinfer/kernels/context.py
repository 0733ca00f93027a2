"""Attention where devices share the tokens of a row: slots of the cache, and tokens of a prompt.

A decode step (context-parallel decode). Queries and fresh tokens are on every device. Each computes the partial softmax
over its own slots (Flash-Decoding, Dao et al. 2023, with devices for splits), and collectives merge the partials: the
maximum of the log-sum-exps, then the sum of weighted outputs and of weights. A layer moves an all-reduce of B K R
float32 numbers and one of B K R (H + 1), whatever the cache holds. The fresh tokens' part is the same on all devices
and is merged after that, so it counts once.

A chunk of a prompt (`ring`). A device has T / C of its tokens. Their keys and values travel around the ring, C - 1
permutes, while each device accumulates the softmax of its queries over the block at hand (Ring Attention, Liu et al.
2023). A block that lies after the device's own is passed on and not computed with. The permute of the next block does
not wait for the computation with this one. The last device has all blocks to compute with, twice the mean, of T x T
scores; a chunk's T x S scores with the cache are balanced.

All queries must see all slots. Queries are small and slots are many, so the queries are gathered, each device computes
the partials of all of them over its own slots, and a reduce-scatter leaves it those of its own: T N H numbers gathered
and T N (H + 1) float32 numbers scattered a layer and row, whatever the cache holds. Sending slots around the ring would
move the whole cache for every chunk; sending queries around it would move the same as the gather, C times as often.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxinfer.cache.split import Split, names_of
from jaxinfer.cache.store import BLOCK, Store, round_up
from jaxinfer.kernels import dispatch, reference, xla
from jaxinfer.kernels.contract import FEW, FLOOR, Decode, Partial, Scoring, Visible, chain_or, merged, with_sinks

QUERIES = 512  # tokens of a row whose queries and partial softmaxes a device holds at a time


@dataclass(frozen=True)
class Formulation:
    """The partial softmaxes of a row of `dispatch.TABLE`, on one device."""

    cached: Callable[..., Partial]  # (q, store, layer, q_pos, extent, scoring)
    own: Callable[..., Partial]  # (q, k, v, tree, q_pos, scoring): fresh tokens over themselves
    others: Callable[..., Partial]  # (q, k, v, q_pos, kv_pos, scoring): over tokens that all stand before them

    @staticmethod
    def of(row: dispatch.Row, visible: Visible, decode: Decode) -> "Formulation":
        """Make those of one row of the table."""

        def own_mask(tree, q_pos):
            return visible(q_pos[:, :, None], q_pos[:, None, :]) & chain_or(tree, q_pos.shape[1])

        def cached_by_xla(q, store, layer, q_pos, extent, scoring):
            return xla.cached_partial(q, store, layer, q_pos, extent, visible, decode, scoring)

        def own_by_xla(q, k, v, tree, q_pos, scoring):
            return xla.fresh_partial(q, k, v, own_mask(tree, q_pos), q_pos, scoring)

        def others_by_xla(q, k, v, q_pos, kv_pos, scoring):
            return xla.block_partial(q, k, v, visible, q_pos, kv_pos, scoring)

        if row.name == "xla":
            return Formulation(cached_by_xla, own_by_xla, others_by_xla)
        if row.name == "reference":
            return Formulation(
                cached=lambda q, store, layer, q_pos, extent, scoring: reference.cached_partial(
                    q, store, layer, q_pos, visible, decode, scoring
                ),
                own=lambda q, k, v, tree, q_pos, scoring: reference.partial(
                    q, k, v, own_mask(tree, q_pos), q_pos, q_pos, scoring
                ),
                others=lambda q, k, v, q_pos, kv_pos, scoring: reference.partial(
                    q, k, v, visible(q_pos[:, :, None], kv_pos[:, None, :]), q_pos, kv_pos, scoring
                ),
            )
        kernel = partial(dispatch.module(row).partial, **dispatch.interpreter(row))

        def over(q, k, v, q_pos, kv_pos, scoring, ordered):
            padding = round_up(k.shape[2], BLOCK) - k.shape[2]
            keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))[None] for x in (k, v))
            kv_pos = jnp.pad(kv_pos, ((0, 0), (0, padding)), constant_values=-1)
            return kernel(q, keys, values, jnp.int32(0), q_pos, kv_pos, visible, scoring, ordered=ordered)

        def cached(q, store, layer, q_pos, extent, scoring):
            return kernel(q, store.k, store.v, layer, q_pos, store.pos, visible, scoring, pages=store.pages)

        def own(q, k, v, tree, q_pos, scoring):
            if tree is not None or k.shape[2] <= FEW:
                return own_by_xla(q, k, v, tree, q_pos, scoring)
            return over(q, k, v, q_pos, q_pos, scoring, ordered=True)

        def others(q, k, v, q_pos, kv_pos, scoring):
            few = k.shape[2] <= FEW
            return (others_by_xla if few else partial(over, ordered=False))(q, k, v, q_pos, kv_pos, scoring)

        return Formulation(cached, own, others)


def attend(
    split: Split,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tree: jax.Array | None,
    store: Store,
    layer: jax.Array,
    q_pos: jax.Array,
    extent: jax.Array,
    visible: Visible,
    decode: Decode,
    scoring: Scoring,
    ahead: Store | None,
) -> jax.Array:
    """Compute `attention.attend` where the slots of the store are split. extent: i32[devices], as `store.extent`."""
    split = replace(split, layers=None)  # a layer of any number is read
    batch, n_kv_heads, rows, width = q.shape
    tokens = k.shape[2]
    in_ring = tree is None and ahead is None and split.tokens(tokens)
    by_head = [_of_heads(x, n_kv_heads) for x in (scoring.slopes, scoring.sinks)]

    def run(q, k, v, tree, store, ahead, layer, q_pos, extent, slopes, sinks):
        own_scoring = scoring._replace(slopes=slopes, sinks=sinks)
        shape = q.shape
        q, extent = q.reshape(*shape[:2], -1, width), extent[0]
        call = dispatch.Call.of(q, k.shape[2], store, scoring.value_width is not None)
        how = Formulation.of(dispatch.choose(call), visible, decode)
        if in_ring:
            found = _of_prompt(split, how, q, k, v, store, layer, q_pos, extent, own_scoring)
        else:
            cached = _reduced(split, how.cached(q, store, layer, q_pos, extent, own_scoring))
            fresh = how.own(q, k, v, tree, q_pos, own_scoring)
            if ahead is not None:
                slots = jnp.int32(ahead.pos.shape[1])
                drafted = xla.cached_partial(q, ahead, layer, q_pos, slots, visible, decode, own_scoring)
                fresh = merged(fresh, drafted)
            found = merged(cached, fresh)
        return with_sinks(found, sinks, k.shape[2]).reshape(*shape[:4], -1)

    # With one key/value head there are rows and groups to split: [B, K, T, G, H].
    group = rows // tokens
    of_group = split.layout.of(("heads",), (group,)).spec[0] if n_kv_heads == 1 else None
    of_tokens = split.slots if in_ring else None
    queries = PartitionSpec(split.rows, split.heads, of_tokens, of_group)
    keys, by_row = PartitionSpec(split.rows, split.heads, of_tokens), PartitionSpec(split.rows)
    heads = PartitionSpec(split.heads, of_group)
    of_tree = None if tree is None else PartitionSpec() if tree.shape[0] == 1 else by_row
    of_ahead = None if ahead is None else split.whole(ahead)
    devices = PartitionSpec((*names_of(split.rows), *split.slots))
    in_specs = (queries, keys, keys, of_tree, split.of_store(store), of_ahead, PartitionSpec(), by_row, devices)
    of_heads = tuple(None if x is None else heads for x in by_head)
    attended = split.run(run, (*in_specs, *of_heads), queries)
    given = q.reshape(batch, n_kv_heads, tokens, group, width)
    out = attended(given, k, v, tree, store, ahead, layer, q_pos, extent, *by_head)
    return out.reshape(batch, n_kv_heads, rows, -1)


def _of_heads(per_head: Any, n_kv_heads: int) -> jax.Array | None:
    return None if per_head is None else jnp.asarray(per_head, jnp.float32).reshape(n_kv_heads, -1)


def _weights(split: Split, part: Partial) -> tuple[jax.Array, jax.Array]:
    """Give the largest log-sum-exp of all devices, finite, and this part's weight beside it: float32[B, K, R]."""
    top = jnp.maximum(jax.lax.pmax(part.lse, split.slots), FLOOR)
    return top, jnp.exp(part.lse - top)


def _joined(out: jax.Array, total: jax.Array, top: jax.Array) -> Partial:
    return Partial(out / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None], top + jnp.log(total))


def _reduced(split: Split, part: Partial) -> Partial:
    """Merge the partials of all devices, on all of them."""
    with jax.named_scope("merge"):
        top, weight = _weights(split, part)
        packed = jnp.concatenate([part.out * weight[..., None], weight[..., None]], axis=-1)
        packed = jax.lax.psum(packed, split.slots)
        return _joined(packed[..., :-1], packed[..., -1], top)


def _scattered(split: Split, part: Partial) -> Partial:
    """Merge the partials of all devices: each has its own share of the rows of all then."""
    with jax.named_scope("merge"):
        top, weight = _weights(split, part)
        packed = jnp.concatenate([part.out * weight[..., None], weight[..., None]], axis=-1)
        packed = jax.lax.psum_scatter(packed, split.slots, scatter_dimension=2, tiled=True)
        mine = packed.shape[2]
        top = jax.lax.dynamic_slice_in_dim(top, split.own() * mine, mine, axis=2)
        return _joined(packed[..., :-1], packed[..., -1], top)


def _of_prompt(split: Split, how: Formulation, q, k, v, store, layer, q_pos, extent, scoring) -> Partial:
    """Attend with this device's q[B, K, T/C * G, H] to all fresh tokens and all slots. q_pos i32[B, T]: of all."""
    cached = _to_slots(split, how, q, store, layer, q_pos, extent, scoring)
    return merged(cached, ring(split, how, q, k, v, q_pos, scoring))


def _to_slots(split: Split, how: Formulation, q, store, layer, q_pos, extent, scoring) -> Partial:
    """Attend with this device's queries to all slots: `QUERIES` tokens of all devices at a time."""
    batch, devices, count = q_pos.shape[0], split.parts, q_pos.shape[1] // split.parts
    size = next(n for n in range(min(count, max(QUERIES // devices, 1)), 0, -1) if count % n == 0)
    of_devices = q_pos.reshape(batch, devices, count // size, size)

    def part(q, q_pos):
        with jax.named_scope("gather_queries"):
            everyone = jax.lax.all_gather(q, split.slots, axis=2, tiled=True)
        return _scattered(split, how.cached(everyone, store, layer, q_pos.reshape(batch, -1), extent, scoring))

    if size == count:
        return part(q, of_devices[:, :, 0])
    parts = jnp.moveaxis(q.reshape(*q.shape[:2], count // size, -1, q.shape[-1]), 2, 0)
    found = jax.lax.map(lambda given: part(*given), (parts, jnp.moveaxis(of_devices, 2, 0)))
    return Partial(*(jnp.moveaxis(x, 0, 2).reshape(*q.shape[:3], *x.shape[4:]) for x in found))


def ring(
    split: Split, how: Formulation, q: jax.Array, k: jax.Array, v: jax.Array, q_pos: jax.Array, scoring: Scoring
) -> Partial:
    """Attend with this device's queries to the fresh tokens of all: k, v[B, K, T/C, H] are its own, q_pos i32[B, T]."""
    devices, here, count = split.parts, split.own(), k.shape[2]

    def positions(device):
        return jax.lax.dynamic_slice_in_dim(q_pos, device * count, count, axis=1)

    mine = positions(here)
    found = how.own(q, k, v, None, mine, scoring)
    onward = [(i, (i + 1) % devices) for i in range(devices)]
    for step in range(1, devices):
        with jax.named_scope("ring"):  # latent attention has no values of its own to send
            k, v = (jax.lax.ppermute(x, split.slots, onward) if x.size else x for x in (k, v))
        source = here - step

        def with_block(found, k=k, v=v, source=source):
            kv_pos = positions(jnp.maximum(source, 0))
            return merged(how.others(q, k, v, mine, kv_pos, scoring), found)

        found = jax.lax.cond(source >= 0, with_block, lambda found: found, found)
    return found
