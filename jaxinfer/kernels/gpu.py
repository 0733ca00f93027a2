"""Flash attention for NVIDIA Hopper (Pallas on Mosaic GPU): one kernel for prefill, decode and verification.

A warpgroup holds 64 rows, the T tokens times the G queries that share a key/value head, and goes over blocks of keys
that a ring of TMA copies brings in; both products are wgmma, and the online softmax stays in registers. The blocks that
a row visits are listed in a table (`schedule.py`). Where rows are few the list is cut into pieces, so that every
processor has one, and the pieces' partials are merged (Flash-Decoding, Dao et al. 2023).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxinfer.cache.codes import Codes
from jaxinfer.kernels import blocks
from jaxinfer.kernels.contract import FEW, FLOOR, PLAIN, Partial, Scoring, Visible
from jaxinfer.kernels.schedule import query_blocks, unblock, visits

ROWS = 64  # of a wgmma
WAVE = 2 * 132  # blocks of work that an H100 or H200 runs at once, two on each processor
WIDTHS = (64, 96, 128, 256)
LAYOUT = plgpu.Layout.WGMMA
OF_ROWS, OF_SLOTS = LAYOUT.reduce(1), LAYOUT.reduce(0)

_SINCE_011 = tuple(map(int, jax.__version__.split(".")[:2])) >= (0, 11)


def _load(ref: Any, layout: Any, **options: Any) -> jax.Array:
    return plgpu.load(ref, *(() if _SINCE_011 else ((),)), layout=layout, **options)


def _transposed(ref: Any) -> Any:
    return ref.transpose((1, 0)) if _SINCE_011 else plgpu.transpose_ref(ref, (1, 0))


def _tiled(width: int, dtype: Any) -> tuple[Any, ...]:
    """Return the layout of a matrix with rows of that width in shared memory: the widest swizzle that divides a row."""
    size = jnp.dtype(dtype).itemsize
    swizzle = next(s for s in (128, 64, 32) if width * size % s == 0)
    return plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle)


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
    splits: int | None = None,
    plan: dict[str, int] | None = None,
    interpret: Any = None,
) -> Partial:
    """Compute `tpu.partial` on Hopper: the same arguments. q in 16 bits; a page is a multiple of 64 slots; S likewise.

    plan: slots a block and blocks in the ring, if not those of the table.
    """
    batch, n_kv_heads, _, width = q.shape
    n_tokens, slots = q_pos.shape[1], kv_pos.shape[1]
    group = q.shape[2] // n_tokens
    coded = isinstance(k, Codes)
    codes_k, codes_v = (k.codes, v.codes) if coded else (k, v)
    page = slots if pages is None else codes_k.shape[3]
    pools = batch if pages is None else codes_k.shape[1]
    plan = plan or blocks.sizes("gpu", "attention", "decode" if n_tokens <= FEW else "prefill")
    block, stages = math.gcd(math.gcd(plan["block"], page), slots), plan["stages"]

    tokens = min(n_tokens, ROWS // group)
    q, token_pos, row_pos = query_blocks(q, q_pos, tokens, ROWS)
    steps = token_pos.shape[1]
    listed = visits(token_pos, kv_pos, visible, block, ordered)
    n = slots // block
    if splits is None:
        splits = max(1, min(n, -(-WAVE // (batch * n_kv_heads * steps))))
    # Where a block begins: which [page, H] matrix of head 0, and which of its rows.
    first = listed.blocks * block
    if pages is None:
        pool = jnp.broadcast_to(jnp.arange(batch, dtype=jnp.int32)[:, None, None], first.shape)
    else:
        at = (first // page).reshape(batch, -1)
        pool = jnp.take_along_axis(pages.astype(jnp.int32), at, axis=1).reshape(first.shape)
    matrix = (jnp.asarray(layer, jnp.int32) * pools + pool) * n_kv_heads

    order = jnp.arange(steps * tokens, dtype=jnp.int32).reshape(steps, tokens)
    order = jnp.pad(jnp.repeat(order, group, axis=1), ((0, 0), (0, ROWS - tokens * group)), mode="edge")
    sloped = scoring.slopes is not None
    operands = [listed.total, listed.blocks, matrix, row_pos, order.reshape(-1), kv_pos]
    if sloped:
        of_rows = jnp.tile(jnp.asarray(scoring.slopes, jnp.float32).reshape(n_kv_heads, group), (1, tokens))
        operands.append(jnp.pad(of_rows, ((0, 0), (0, ROWS - tokens * group))))
    operands += [q, *(x.reshape(-1, page, width) for x in (codes_k, codes_v))]
    if coded:
        operands += [x.scale.reshape(-1, page) for x in (k, v)]

    body = functools.partial(
        _kernel,
        splits=splits,
        block=block,
        stages=stages,
        page=page,
        visible=visible,
        ordered=ordered,
        softcap=scoring.softcap,
        sloped=sloped,
        coded=coded,
        real=interpret is None,
    )
    ring = plgpu.SMEM((stages, block, width), codes_k.dtype, transforms=_tiled(width, codes_k.dtype))
    staged = plgpu.SMEM((ROWS, width), jnp.float32, transforms=_tiled(width, jnp.float32))
    matrix_of = functools.partial(plgpu.SMEM, (block, width), q.dtype, transforms=_tiled(width, q.dtype))
    scratch: dict[str, Any] = dict(
        q_s=plgpu.SMEM((ROWS, width), q.dtype, transforms=_tiled(width, q.dtype)),
        # The output leaves through the ring of keys, which is finished by then.
        **(dict(keys_or_out=plgpu.RefUnion(ring, staged)) if interpret is None else dict(k_s=ring, out_s=staged)),
        v_s=ring,
        lse_s=plgpu.SMEM((ROWS,), jnp.float32),
        pos_s=plgpu.SMEM((ROWS,), jnp.int32),
        order_s=plgpu.SMEM((ROWS,), jnp.int32),
        kv_pos_s=plgpu.SMEM((stages, block), jnp.int32),
        q_bar=plgpu.Barrier(num_arrivals=3 + sloped),
        k_bar=plgpu.Barrier(num_arrivals=2 + coded, num_barriers=stages),
        v_bar=plgpu.Barrier(num_arrivals=1 + coded, num_barriers=stages),
    )
    if sloped:
        scratch |= dict(slopes_s=plgpu.SMEM((ROWS,), jnp.float32))
    if coded:
        scales = plgpu.SMEM((stages, block), jnp.float32)
        scratch |= dict(wide_k=matrix_of(), wide_v=matrix_of(), k_scale_s=scales, v_scale_s=scales)
    names = tuple(scratch)
    out_rows = (splits, batch, n_kv_heads, steps * ROWS)
    run = plgpu.kernel(
        lambda *refs: body(refs[: len(operands) + 2], dict(zip(names, refs[len(operands) + 2 :], strict=True))),
        out_type=[jax.ShapeDtypeStruct((*out_rows, width), jnp.float32), jax.ShapeDtypeStruct(out_rows, jnp.float32)],
        scratch_types=list(scratch.values()),
        grid=(steps * splits, n_kv_heads, batch),
        grid_names=("piece", "head", "row"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **({} if interpret is None else dict(interpret=interpret)),
    )
    out, lse = join(*run(*operands))
    given = ROWS, tokens, n_tokens, group
    return Partial(unblock(out, 2, *given), unblock(lse, 2, *given))


def join(out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Merge the partials of all pieces, on axis 0, into one."""
    if out.shape[0] == 1:
        return out[0], lse[0]
    top = jnp.maximum(jnp.max(lse, axis=0), FLOOR)
    weights = jnp.exp(lse - top)
    total = jnp.sum(weights, axis=0)
    safe = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    return jnp.sum(out * weights[..., None], axis=0) / safe[..., None], top + jnp.log(total)


def _kernel(refs, s, *, block, stages, splits, page, visible, ordered, softcap, sloped, coded, real):
    it = iter(refs)
    count, visited, matrix, row_pos, order, kv_pos = (next(it) for _ in range(6))
    slopes = next(it) if sloped else None
    q_ref, k_ref, v_ref = (next(it) for _ in range(3))
    k_scale, v_scale = (next(it), next(it)) if coded else (k_ref, v_ref)
    out, lse = it
    k_s, out_s = s["keys_or_out"] if real else (s["k_s"], s["out_s"])
    q_s, v_s, q_bar, k_bar, v_bar = (s[name] for name in ("q_s", "v_s", "q_bar", "k_bar", "v_bar"))
    width, dtype = q_s.shape[1], q_s.dtype
    tile = ROWS, block
    copy = plgpu.copy_gmem_to_smem

    piece, head, b = (lax.axis_index(name) for name in ("piece", "head", "row"))
    i, split = lax.div(piece, jnp.int32(splits)), lax.rem(piece, jnp.int32(splits))
    share = lax.div(count[b, i] + splits - 1, jnp.int32(splits))  # of the visited blocks, not of all
    start = split * share
    todo = jnp.maximum(jnp.minimum(share, count[b, i] - start), 0)
    here = pl.ds(i * ROWS, ROWS)

    def fetch(j, slot):
        number = visited[b, i, start + j]
        source, offset = matrix[b, i, start + j] + head, lax.rem(number * block, jnp.int32(page))
        copy(k_ref.at[source, pl.ds(offset, block)], k_s.at[slot], k_bar.at[slot])
        copy(v_ref.at[source, pl.ds(offset, block)], v_s.at[slot], v_bar.at[slot])
        copy(kv_pos.at[b, pl.ds(number * block, block)], s["kv_pos_s"].at[slot], k_bar.at[slot])
        if coded:
            copy(k_scale.at[source, pl.ds(offset, block)], s["k_scale_s"].at[slot], k_bar.at[slot])
            copy(v_scale.at[source, pl.ds(offset, block)], s["v_scale_s"].at[slot], v_bar.at[slot])

    copy(q_ref.at[b, head, here], q_s, q_bar)
    copy(row_pos.at[b, here], s["pos_s"], q_bar)
    copy(order.at[here], s["order_s"], q_bar)
    if slopes is not None:
        copy(slopes.at[head], s["slopes_s"], q_bar)
    for stage in range(stages):
        pl.when(stage < todo)(functools.partial(fetch, jnp.int32(stage), stage))
    plgpu.barrier_wait(q_bar)
    q_pos = _load(s["pos_s"], OF_ROWS)
    tokens = _load(s["order_s"], OF_ROWS) if ordered else None
    slope = _load(s["slopes_s"], OF_ROWS) if sloped else None

    def rows(x):
        return lax.broadcast_in_dim(x, tile, [0])

    def columns(x):
        return lax.broadcast_in_dim(x, tile, [1])

    def widened(codes, into):
        """Widen 8-bit codes to the 16 bits that wgmma multiplies, in registers on the way between two places."""
        x = _load(codes, plgpu.Layout.WGMMA_UPCAST_2X) if real else codes[...]
        if jnp.issubdtype(x.dtype, jnp.floating):  # the hardware converts 8-bit floats to float16 alone; all exact
            x = x.astype(jnp.float16).astype(jnp.float32)
        x = x.astype(dtype)
        into[...] = plgpu.layout_cast(x, LAYOUT) if real else x
        plgpu.commit_smem()
        return into

    def scores_of(keys):
        if not real:  # the interpreter has no wgmma
            return lax.dot_general(q_s[...], keys[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

        def multiply(acc):
            plgpu.wgmma(acc, q_s, _transposed(keys))
            return acc[...]

        return pl.run_scoped(multiply, plgpu.ACC(tile, jnp.float32))

    def add_values(acc, weights, values):
        if not real:
            return acc + jnp.dot(weights, values[...], preferred_element_type=jnp.float32)
        return pl.run_state(lambda ref: plgpu.wgmma(ref, weights, values))(plgpu.ACC.init(acc))

    def step(j, carry):
        acc, top, total = carry
        slot = lax.rem(j, jnp.int32(stages))
        plgpu.barrier_wait(k_bar.at[slot])
        scores = scores_of(widened(k_s.at[slot], s["wide_k"]) if coded else k_s.at[slot])
        k_pos = columns(_load(s["kv_pos_s"].at[slot], OF_SLOTS))
        if coded:
            scores = scores * columns(_load(s["k_scale_s"].at[slot], OF_SLOTS))
        if softcap:
            scores = softcap * jnp.tanh(scores * (1 / softcap))
        if slope is not None:
            scores = scores + rows(slope) * (k_pos - rows(q_pos)).astype(jnp.float32)
        mask = visible(rows(q_pos), k_pos)
        if ordered:
            at = plgpu.broadcasted_iota(jnp.int32, tile, 1, layout=LAYOUT) + visited[b, i, start + j] * block
            mask &= at <= rows(tokens)
        scores = jnp.where(mask, scores, FLOOR)
        now = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(mask, jnp.exp(scores - rows(now)), 0.0)
        shrink = jnp.exp(top - now)
        total = total * shrink + jnp.sum(weights, axis=1)
        acc = acc * lax.broadcast_in_dim(shrink, acc.shape, [0])
        plgpu.barrier_wait(v_bar.at[slot])
        if coded:
            weights = weights * columns(_load(s["v_scale_s"].at[slot], OF_SLOTS))
        values = widened(v_s.at[slot], s["wide_v"]) if coded else v_s.at[slot]
        acc = add_values(acc, weights.astype(dtype), values)
        plgpu.commit_smem()  # every warp has read the slot before TMA fills it again
        pl.when(j + stages < todo)(lambda: fetch(j + stages, slot))
        return acc, now, total

    zeros = plgpu.layout_cast(jnp.zeros((ROWS, width), jnp.float32), LAYOUT)
    floor = plgpu.layout_cast(jnp.full((ROWS,), FLOOR, jnp.float32), OF_ROWS)
    none = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), OF_ROWS)
    acc, top, total = lax.fori_loop(0, todo, step, (zeros, floor, none))
    some = total > 0.0
    safe = jnp.where(some, total, 1.0)
    out_s[...] = acc * lax.broadcast_in_dim(jnp.where(some, 1.0 / safe, 0.0), acc.shape, [0])
    s["lse_s"][...] = jnp.where(some, top + jnp.log(safe), -jnp.inf)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out_s, out.at[split, b, head, here])
    plgpu.copy_smem_to_gmem(s["lse_s"], lse.at[split, b, head, here])
    plgpu.wait_smem_to_gmem(0)
