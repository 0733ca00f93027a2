"""Flash attention for TPU (Mosaic): one kernel for prefill, decode and verification.

The rows of a step are the T tokens times the G queries that share a key/value head. A grid step multiplies one block of
rows with one block of keys, for several heads at once, and folds it into an online softmax that stays in VMEM
(FlashAttention-2, Dao 2023). Which block of keys that is, a scalar table says (`schedule.py`): steps past the end of a
row's list name the block before again, so that nothing is copied, and compute nothing. The number of steps is the
longest list's, so that time follows the tokens that are there, and not the capacity.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxinfer.cache.codes import Codes
from jaxinfer.kernels import blocks
from jaxinfer.kernels.contract import FEW, FLOOR, PLAIN, Partial, Scoring, Visible
from jaxinfer.kernels.schedule import query_blocks, unblock, visits

LANES = 128
BUDGET = 12 << 20  # bytes of VMEM that a plan may take; v5e's default limit is 16 MiB
WIDTHS = (64, 96, 128, 256)


@dataclass(frozen=True)
class Plan:
    """Block sizes of one call."""

    tokens: int  # query tokens a block
    rows: int  # rows of that block: tokens * group, padded to whole sublanes
    heads: int  # key/value heads a grid step
    block: int  # slots a block

    @staticmethod
    def of(n_tokens: int, group: int, n_kv_heads: int, slots: int, width: int, bytes_per_number: int) -> "Plan":
        """Find the largest step that fits within the table's sizes: many rows want one head at a time, few all."""
        most_of = blocks.sizes("tpu", "attention", "decode" if n_tokens <= FEW else "prefill")
        tokens = min(n_tokens, max(1, most_of["rows"] // group))
        rows = _round_up(tokens * group, 16)
        best, most = None, 0
        for heads in (n for n in range(1, n_kv_heads + 1) if n_kv_heads % n == 0 and n <= most_of["heads"]):
            for block in (128, 256, 512, 1024, 2048):
                if slots % block or block > most_of["block"]:
                    continue
                plan = Plan(tokens, rows, heads, block)
                work = heads * block
                if plan.vmem(width, bytes_per_number) <= BUDGET and work > most:
                    best, most = plan, work
        return best or Plan(tokens, rows, 1, 128)

    def vmem(self, width: int, bytes_per_number: int) -> int:
        """Count bytes: keys and values twice (the next block is on its way), queries, output, statistics, scores."""
        width = _round_up(width, LANES)
        keys = 2 * 2 * self.heads * self.block * width * bytes_per_number
        rows = self.heads * self.rows * (2 * width * 2 + 2 * width * 4 + width * 4 + 2 * LANES * 4)
        return keys + rows + 3 * self.rows * self.block * 4


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def partial(
    q: jax.Array,
    k: Any,
    v: Any,
    layer: jax.Array,
    q_pos: jax.Array,
    kv_pos: jax.Array,
    visible: Visible,
    scoring: Scoring = PLAIN,
    *,
    ordered: bool = False,
    pages: jax.Array | None = None,
    plan: Plan | None = None,
    interpret: Any = False,
) -> Partial:
    """Compute the attention of q[B, K, T*G, H] over one layer of k, v[L, B, K, S, H], arrays or `Codes`.

    layer: i32[]. q_pos: i32[B, T]. kv_pos: i32[B, S], -1 for a slot that is empty; unused slots must be finite.
    ordered: the keys are the queries' own tokens, and none sees a later one. pages: i32[B, S / page], and then k and v
    are pools [L, pages, K, page, H] which the rows share; a page is a block. S must be a multiple of 128.
    """
    batch, n_kv_heads, _, width = q.shape
    n_tokens, slots = q_pos.shape[1], kv_pos.shape[1]
    group = q.shape[2] // n_tokens
    coded = isinstance(k, Codes)
    codes_k, codes_v = (k.codes, v.codes) if coded else (k, v)
    plan = plan or Plan.of(n_tokens, group, n_kv_heads, slots, width, codes_k.dtype.itemsize)
    if pages is not None:
        page = codes_k.shape[3]
        plan = Plan(plan.tokens, plan.rows, plan.heads, page)
    tokens, rows, heads, block = plan.tokens, plan.rows, plan.heads, plan.block

    q, token_pos, row_pos = query_blocks(q, q_pos, tokens, rows)
    steps = token_pos.shape[1]
    listed = visits(token_pos, kv_pos, visible, block, ordered)
    n = slots // block
    visited = listed.blocks.reshape(-1)
    places = jnp.zeros(1, jnp.int32) if pages is None else pages.reshape(-1).astype(jnp.int32)
    scalars = (visited, listed.total.reshape(-1), places, jnp.asarray(layer, jnp.int32).reshape(1))

    def logical(b, i, j, blocks):
        return blocks[(b * steps + i) * n + j]

    def at_rows(b, g, i, j, *_):
        return b, g, i, 0

    def at_lanes(b, g, i, j, *_):
        return b, 0, i

    def at_keys(b, g, i, j, blocks, count, places, layer):
        where = logical(b, i, j, blocks)
        return (layer[0], b, g, where, 0) if pages is None else (layer[0], places[b * n + where], g, 0, 0)

    def at_scales(*index):
        return at_keys(*index)[:-1]

    def at_positions(b, g, i, j, blocks, *_):
        return b, 0, logical(b, i, j, blocks)

    operands = [row_pos[:, None], kv_pos[:, None]]
    specs = [pl.BlockSpec((None, 1, rows), at_lanes), pl.BlockSpec((None, 1, block), at_positions)]
    if scoring.slopes is not None:
        of_rows = jnp.tile(jnp.asarray(scoring.slopes, jnp.float32).reshape(n_kv_heads, 1, group), (1, 1, tokens))
        operands.append(jnp.pad(of_rows, ((0, 0), (0, 0), (0, rows - tokens * group))))
        specs.append(pl.BlockSpec((heads, 1, rows), lambda b, g, i, j, *_: (g, 0, 0)))
    operands += [q, codes_k, codes_v]
    keys_spec = pl.BlockSpec((None, None, heads, block, width), at_keys)
    specs += [pl.BlockSpec((None, heads, rows, width), at_rows), keys_spec, keys_spec]
    if coded:
        # One row of lanes a head: [L, B, K, 1, S].
        operands += [x.scale[:, :, :, None] for x in (k, v)]
        scales = pl.BlockSpec(
            (None, None, heads, 1, block), lambda *index: (*at_scales(*index)[:3], 0, *at_scales(*index)[3:])
        )
        specs += [scales, scales]

    body = functools.partial(
        _kernel,
        plan=plan,
        group=group,
        steps=steps,
        n=n,
        visible=visible,
        ordered=ordered,
        softcap=scoring.softcap,
        sloped=scoring.slopes is not None,
        coded=coded,
    )
    bytes_read = 2 * batch * n_kv_heads * slots * width * codes_k.dtype.itemsize
    out, lse = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, n_kv_heads // heads, steps, jnp.maximum(jnp.max(listed.total), 1)),
            in_specs=specs,
            out_specs=[
                pl.BlockSpec((None, heads, rows, width), at_rows),
                pl.BlockSpec((None, heads, 1, rows), lambda b, g, i, j, *_: (b, g, 0, i)),
            ],
            scratch_shapes=[
                pltpu.VMEM((rows, LANES), jnp.int32),
                pltpu.VMEM((heads, rows, LANES), jnp.float32),
                pltpu.VMEM((heads, rows, LANES), jnp.float32),
                pltpu.VMEM((heads, rows, width), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct((batch, n_kv_heads, 1, q.shape[2]), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=32 << 20
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * n_kv_heads * q.shape[2] * slots * width,
            transcendentals=batch * n_kv_heads * q.shape[2] * slots,
            bytes_accessed=bytes_read + q.size * (q.dtype.itemsize + 4),
        ),
        interpret=interpret,
        name="flash_attention",
    )(*scalars, *operands)
    given = rows, tokens, n_tokens, group
    return Partial(unblock(out, 2, *given), unblock(lse[:, :, 0], 2, *given))


def _column(lanes: jax.Array) -> jax.Array:
    """Turn [1, rows] into [rows, LANES], the same number along each row."""
    return jnp.broadcast_to(lanes, (LANES, lanes.shape[1])).T


def _kernel(blocks, count, places, layer, *refs, plan, group, steps, n, visible, ordered, softcap, sloped, coded):
    it = iter(refs)
    row_pos, kv_pos = next(it), next(it)
    slopes = next(it) if sloped else None
    q_ref, k_ref, v_ref = next(it), next(it), next(it)
    k_scale, v_scale = (next(it), next(it)) if coded else (k_ref, v_ref)
    out, lse, q_column, top, total, acc = it
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    rows, block = plan.rows, plan.block
    shape = rows, block

    @pl.when(j == 0)
    def _():
        q_column[...] = _column(row_pos[...])
        top[...] = jnp.full(top.shape, FLOOR, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    @pl.when(j < count[b * steps + i])
    def _():
        q_pos = jnp.broadcast_to(q_column[...][:, :1], shape)
        k_pos = jnp.broadcast_to(kv_pos[...], shape)
        mask = visible(q_pos, k_pos)
        if ordered:
            token = lax.div(lax.broadcasted_iota(jnp.int32, shape, 0), jnp.int32(group)) + i * plan.tokens
            slot = lax.broadcasted_iota(jnp.int32, shape, 1) + blocks[(b * steps + i) * n + j] * block
            mask &= slot <= token
        for h in range(plan.heads):
            q, k, v = q_ref[h], k_ref[h], v_ref[h]
            if coded:
                k, v = k.astype(q.dtype), v.astype(q.dtype)
            precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
            dot = functools.partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
            scores = dot(q, k, (((1,), (1,)), ((), ())))
            if coded:
                scores = scores * k_scale[h]
            if softcap:
                scores = softcap * jnp.tanh(scores / softcap)
            if slopes is not None:
                scores = scores + _column(slopes[h])[:, :1] * (k_pos - q_pos).astype(jnp.float32)
            scores = jnp.where(mask, scores, FLOOR)
            before = top[h]
            now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            weights = jnp.where(mask, jnp.exp(scores - now[:, :1]), 0.0)
            shrink = jnp.exp(before - now)
            total[h] = total[h] * shrink + jnp.sum(weights, axis=1, keepdims=True)
            top[h] = now
            if coded:
                weights = weights * v_scale[h]
            acc[h] = acc[h] * shrink[:, :1] + dot(weights.astype(v.dtype), v, (((1,), (0,)), ((), ())))

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        for h in range(plan.heads):
            some = total[h] > 0
            safe = jnp.where(some, total[h], 1.0)
            out[h] = acc[h] / safe[:, :1]
            lse[h] = jnp.where(some, top[h] + jnp.log(safe), -jnp.inf).T[:1]
