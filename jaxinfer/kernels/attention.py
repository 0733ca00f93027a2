"""Attention over the committed cache and over the fresh tokens of this step: the one way in.

attend    = softmax over both sets of keys, by whichever formulation `dispatch.TABLE` names
reference   the definition (`reference.py`)
xla         one online softmax over blocks, in plain XLA (`xla.py`)
pallas      a kernel over the cache, one over the fresh tokens, and their merge (`tpu.py`, `gpu.py`)

Where the devices of a mesh share the slots of the cache, each of these runs on a device's own (`context.py`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxinfer.cache.split import split_of
from jaxinfer.cache.store import BLOCK, Store, round_up
from jaxinfer.kernels import context, dispatch, xla
from jaxinfer.kernels.contract import (
    FEW,
    PLAIN,
    Decode,
    Partial,
    Scoring,
    Visible,
    chain_or,
    fold_heads,
    merge,
    merged,
    unfold_heads,
    with_sinks,
)
from jaxinfer.sharding import layouts

__all__ = ["Partial", "Scoring", "attend", "chain_or", "fold_heads", "merge", "unfold_heads"]


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
    """Attend with q[B, K, T*G, H] to fresh k, v[B, K, T, H] and to one layer of the cache: float32[B, K, T*G, H].

    tree: bool[B, T, T], which fresh token sees which, itself included, none a later one; None: a chain. layer: i32[],
    which of the store's stacked layers. q_pos: i32[B, T], also the positions of the fresh keys. extent: slots in use,
    as `store.extent` counts them. visible and decode: the policy's. ahead: a small second store, of tokens between the
    cache and the fresh ones that are drafted and not committed. Raises InputError where `dispatch.use` forces what
    cannot run.
    """
    shared = split_of(store)
    if shared is not None:
        rest = (store, layer, q_pos, extent, visible, decode, scoring, ahead)
        return context.attend(shared, q, k, v, tree, *rest)
    call = dispatch.Call.of(q, k.shape[2], store, scoring.value_width is not None)
    row = dispatch.choose(call)
    code = dispatch.module(row)
    if row.name != "pallas":
        return code.attend(q, k, v, tree, store, layer, q_pos, extent, visible, decode, scoring, ahead)
    kernel = partial(code.partial, **dispatch.interpreter(row))

    def run(q, k, v, tree, store, ahead, layer, q_pos, slopes, sinks):
        by_head = Scoring(scoring.softcap, slopes, sinks)
        return _in_parts(kernel, q, k, v, tree, store, ahead, layer, q_pos, visible, decode, by_head)

    layout = layouts.active()
    args = (q, k, v, tree, store, ahead, layer, q_pos, *_by_head(scoring, k.shape[1]))
    return run(*args) if layout is None or layout.mesh.size == 1 else _sharded(run, layout, *args)


def _in_parts(kernel, q, k, v, tree, store, ahead, layer, q_pos, visible, decode, scoring) -> jax.Array:
    """Compute the partials of the cache, the tokens ahead of it and the fresh tokens, and merge them."""
    n_tokens = k.shape[2]
    cached = kernel(q, store.k, store.v, layer, q_pos, store.pos, visible, scoring, pages=store.pages)
    if tree is None and n_tokens > FEW:
        padding = round_up(n_tokens, BLOCK) - n_tokens
        keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))[None] for x in (k, v))
        kv_pos = jnp.pad(q_pos, ((0, 0), (0, padding)), constant_values=-1)
        fresh = kernel(q, keys, values, jnp.int32(0), q_pos, kv_pos, visible, scoring, ordered=True)
    else:
        mask = visible(q_pos[:, :, None], q_pos[:, None, :]) & chain_or(tree, n_tokens)
        fresh = xla.fresh_partial(q, k, v, mask, q_pos, scoring)
    if ahead is not None:
        slots = jnp.int32(ahead.pos.shape[1])
        fresh = merged(fresh, xla.cached_partial(q, ahead, layer, q_pos, slots, visible, decode, scoring))
    return with_sinks(merged(cached, fresh), scoring.sinks, n_tokens)


def _by_head(scoring: Scoring, n_kv_heads: int) -> list[jax.Array | None]:
    """Return slopes and sinks, float32[K, G], so that they can be split as the key/value heads are."""
    return [
        None if x is None else jnp.asarray(x, jnp.float32).reshape(n_kv_heads, -1)
        for x in (scoring.slopes, scoring.sinks)
    ]


def _sharded(run: Any, layout: layouts.Sharding, q, k, v, tree, store, ahead, layer, q_pos, slopes, sinks) -> jax.Array:
    """Run the kernel on each device's own rows and key/value heads: the compiler does not split a Pallas call."""
    rows, heads = layout.rules.spec(("batch", "kv_heads"), q.shape[:2], layout.mesh)
    by_row, by_head, by_both = PartitionSpec(rows), PartitionSpec(heads), PartitionSpec(rows, heads)

    def spec_of(store: Any) -> Any:
        of_pools = store.pages is not None  # which rows on any device may read
        stacked = PartitionSpec(None, None if of_pools else rows, heads)
        keys, values = (jax.tree.map(lambda _: stacked, x) for x in (store.k, store.v))
        return store.replace(k=keys, v=values, pos=by_row, pages=by_row if of_pools else None)

    of_ahead = None if ahead is None else spec_of(ahead)
    tree_spec = PartitionSpec() if tree is not None and tree.shape[0] == 1 else by_row
    split = jax.shard_map(
        run,
        mesh=layout.here,
        in_specs=(by_both,) * 3 + (tree_spec, spec_of(store), of_ahead, PartitionSpec(), by_row, by_head, by_head),
        out_specs=by_both,
        check_vma=False,
    )
    return split(q, k, v, tree, store, ahead, layer, q_pos, slopes, sinks)
