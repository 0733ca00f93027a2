"""Attention in plain XLA: both sets of keys, block by block, as one online softmax. A CPU runs this.

The keys come in parts. Each part is folded into a running (out, top, total), so that the result is the softmax over all
of them (online softmax, Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022). That takes fewer small
operations than merging two finished partials (docs/cpu.md).

Masked scores are a finite minus infinity. A row that has seen nothing yet collects nonsense under `top == FLOOR`; the
first real score multiplies it by exp(FLOOR - top) = 0. So no weight has to be masked a second time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxinfer.cache.codes import through
from jaxinfer.cache.store import BLOCK, Store
from jaxinfer.kernels.contract import FLOOR, PLAIN, Decode, Partial, Scoring, Visible, chain_or

QUERY_BLOCK = 128  # fresh tokens whose scores are held at a time
WIDE_BLOCK = 512  # cache slots read at a time where many queries share the work


class Running(NamedTuple):
    """An online softmax in progress, float32: out[B, K, R, H] not normalized, top and total [B, K, R, 1]."""

    out: jax.Array
    top: jax.Array
    total: jax.Array


def attend(
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
    scoring: Scoring = PLAIN,
    ahead: Store | None = None,
) -> jax.Array:
    """Compute `attention.attend` in plain XLA."""
    mask = visible(q_pos[:, :, None], q_pos[:, None, :]) & chain_or(tree, k.shape[2])
    running = fold_fresh(q, k, v, mask, q_pos, scoring)
    running = fold_cached(running, q, store, layer, q_pos, extent, visible, decode, scoring)
    if ahead is not None:
        slots = jnp.int32(ahead.pos.shape[1])
        running = fold_cached(running, q, ahead, layer, q_pos, slots, visible, decode, scoring)
    if scoring.sinks is None:
        return running.out / running.total
    sinks = jnp.tile(scoring.sinks.reshape(q.shape[1], -1), (1, k.shape[2]))[None, :, :, None]  # [1, K, T*G, 1]
    top = jnp.maximum(running.top, sinks)
    shrink = jnp.exp(running.top - top)
    return running.out * shrink / (running.total * shrink + jnp.exp(sinks - top))


def fold_fresh(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    q_pos: jax.Array | None = None,
    scoring: Scoring = PLAIN,
) -> Running:
    """Fold in this step's own tokens, a block of queries at a time; later keys are not even multiplied."""
    tokens = k.shape[2]
    group = q.shape[2] // tokens
    blocks = []
    for start in range(0, tokens, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, tokens)
        rows = q[:, :, start * group : end * group]
        keys = k[:, :, :end]
        adjust = _adjustment(scoring, None if q_pos is None else (q_pos[:, start:end], q_pos[:, :end]))
        blocks.append(_fold(None, rows, keys, _values(keys, v[:, :, :end], scoring), mask[:, start:end, :end], adjust))
    return blocks[0] if len(blocks) == 1 else Running(*(jnp.concatenate(x, axis=2) for x in zip(*blocks, strict=True)))


def fold_cached(
    running: Running,
    q: jax.Array,
    store: Store,
    layer: jax.Array,
    q_pos: jax.Array,
    extent: jax.Array,
    visible: Visible,
    decode: Decode,
    scoring: Scoring = PLAIN,
) -> Running:
    """Fold in one layer of a store, block by block, no further than the slots in use.

    layer: i32[], which of the stacked layers. q_pos: i32[B, T]. extent: i32[], slots in use. The work and the bytes
    read follow `extent`, not the capacity of the cache; the store is indexed, never sliced by layer: that would copy.
    """
    slots = store.pos.shape[1]
    page = 1 if store.pages is None else slots // store.pages.shape[1]
    some = partial(_fold_blocks, q, store, layer, q_pos, visible, decode, scoring)
    small, large = (max(min(size, slots), page) for size in (BLOCK, WIDE_BLOCK))
    if slots % large or slots == large:
        large = small
    if q_pos.shape[1] >= QUERY_BLOCK // 2:
        return some(running, large, 0, (extent + large - 1) // large)
    # A few queries are done with a small block before the next one is at hand: large ones, as far as they are full.
    full = extent // large if large > small else 0
    if large > small:
        running = some(running, large, 0, full)
    return some(running, small, full * (large // small), (extent + small - 1) // small)


def _fold_blocks(
    q: jax.Array,
    store: Store,
    layer: jax.Array,
    q_pos: jax.Array,
    visible: Visible,
    decode: Decode,
    scoring: Scoring,
    running: Running,
    size: int,
    begin: Any,
    end: Any,
) -> Running:
    """Fold in blocks of `size` slots of one layer, from number `begin` to before `end`."""
    slots = store.pos.shape[1]
    page = 1 if store.pages is None else slots // store.pages.shape[1]

    def block(i, running):
        def read(stored):
            index = (layer, 0, 0, i * size, *(0,) * (stored.ndim - 4))
            return jax.lax.dynamic_slice(stored, index, (1, *stored.shape[1:3], size, *stored.shape[4:]))[0]

        if store.pages is None:
            k, v = (jax.tree.map(read, stored) for stored in (store.k, store.v))
        else:
            blocks = size // page
            pages = jax.lax.dynamic_slice_in_dim(store.pages, i * blocks, blocks, axis=1)
            k, v = (through(stored, layer, pages) for stored in (store.k, store.v))
        k = decode(k, q.dtype)
        v = _values(k, decode(v, q.dtype), scoring)
        kv_pos = jax.lax.dynamic_slice_in_dim(store.pos, i * size, size, axis=1)
        adjust = _adjustment(scoring, (q_pos, kv_pos))
        return _fold(running, q, k, v, visible(q_pos[:, :, None], kv_pos[:, None, :]), adjust)

    return jax.lax.fori_loop(begin, end, block, running)


def _values(k: jax.Array, v: jax.Array, scoring: Scoring) -> jax.Array:
    return v if scoring.value_width is None else k[..., : scoring.value_width]


def _adjustment(scoring: Scoring, positions: tuple[jax.Array, jax.Array] | None) -> Callable[[jax.Array], jax.Array]:
    """Make what adjusts scores [B, K, T*G, S]. positions: of queries i32[B, T], keys i32[B, S], which ALiBi needs."""

    def adjust(scores):
        if scoring.softcap:
            scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
        if scoring.slopes is not None:
            assert positions is not None, "ALiBi needs the positions of queries and keys"
            q_pos, kv_pos = positions
            heads = jnp.asarray(scoring.slopes).reshape(scores.shape[1], 1, -1, 1)  # [K, T, G, S]
            distance = (kv_pos[:, None, None, None, :] - q_pos[:, None, :, None, None]).astype(jnp.float32)
            scores = scores + (heads * distance).reshape(scores.shape)
        return scores

    return adjust


def _fold(running: Running | None, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, adjust) -> Running:
    """Fold in q[B, K, R, H] over k, v[B, K, S, H] under mask[B, T, S], on top of what was there before."""
    with jax.named_scope("qk_matmul"):
        scores = adjust(jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=jnp.float32))
    with jax.named_scope("softmax"):
        rows = jnp.repeat(mask, q.shape[2] // mask.shape[1], axis=1)[:, None]
        scores = jnp.where(rows, scores, FLOOR)
        top = jnp.max(scores, axis=-1, keepdims=True)
        if running is not None:
            top = jnp.maximum(top, running.top)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
    with jax.named_scope("sv_matmul"):
        out = jnp.einsum("bkrs,bksh->bkrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    if running is None:
        return Running(out, top, total)
    with jax.named_scope("softmax"):
        shrink = jnp.exp(running.top - top)
        return Running(running.out * shrink + out, top, running.total * shrink + total)


def fresh_partial(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    q_pos: jax.Array | None = None,
    scoring: Scoring = PLAIN,
) -> Partial:
    """Compute `fold_fresh` on its own."""
    return _normalize(fold_fresh(q, k, v, mask, q_pos, scoring))


def block_partial(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: Visible,
    q_pos: jax.Array,
    kv_pos: jax.Array,
    scoring: Scoring = PLAIN,
) -> Partial:
    """Compute attention over keys of other tokens, k, v[B, K, S, H] at kv_pos i32[B, S], a block of queries at a time.

    Positions alone say what a query sees.
    """
    tokens = q_pos.shape[1]
    group = q.shape[2] // tokens
    v = _values(k, v, scoring)
    blocks = []
    for start in range(0, tokens, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, tokens)
        at = q_pos[:, start:end]
        mask = visible(at[:, :, None], kv_pos[:, None, :])
        blocks.append(_fold(None, q[:, :, start * group : end * group], k, v, mask, _adjustment(scoring, (at, kv_pos))))
    joined = (jnp.concatenate(x, axis=2) for x in zip(*blocks, strict=True)) if len(blocks) > 1 else blocks[0]
    return _normalize(Running(*joined))


def cached_partial(
    q: jax.Array,
    store: Store,
    layer: jax.Array,
    q_pos: jax.Array,
    extent: jax.Array,
    visible: Visible,
    decode: Decode,
    scoring: Scoring = PLAIN,
) -> Partial:
    """Compute `fold_cached` on its own."""
    column = (*q.shape[:3], 1)
    width = scoring.value_width or q.shape[-1]
    nothing = Running(jnp.zeros((*q.shape[:3], width), jnp.float32), jnp.full(column, FLOOR), jnp.zeros(column))
    return _normalize(fold_cached(nothing, q, store, layer, q_pos, extent, visible, decode, scoring))


def _normalize(running: Running) -> Partial:
    empty = running.top <= FLOOR
    total = jnp.where(empty, 1.0, running.total)
    out = jnp.where(empty, 0.0, running.out / total)
    return Partial(out, jnp.where(empty, -jnp.inf, running.top + jnp.log(total))[..., 0])
