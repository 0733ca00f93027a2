"""Products with weight-only int8 and int4 for NVIDIA Hopper (Pallas on Mosaic GPU), for the few rows of a decode step.

The weights are the left operand: a warpgroup has a block of outputs, whose codes a ring of TMA copies brings in, 128
bytes of each at a time. They become 16-bit numbers in registers, exactly, on the way into wgmma, whose other operand is
x, transposed, in shared memory. As on TPU (`matmul_tpu.py`), scales meet the sums of their groups in float32. Where
outputs are few, the inputs are cut into pieces, so that every processor has one, and XLA adds the pieces' sums.

A byte of int4 is never shifted. Its high code h comes as (byte & 240) ^ 128, which as a signed number is 16 h - 128:

    scale (sum of h x) + minimum (sum of x) = scale / 16 (sum of (16 h - 128) x) + (minimum + 8 scale) (sum of x)
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxinfer.kernels import blocks
from jaxinfer.kernels.coded import CodedWeight
from jaxinfer.kernels.gpu import LAYOUT, OF_ROWS, OF_SLOTS, WAVE, _load, _tiled, _transposed

CHUNK = 128  # bytes of each output in a slot of the ring: the widest row of a swizzled tile


def product(
    x: jax.Array, weight: CodedWeight, layer: jax.Array, plan: dict[str, int] | None = None, interpret: Any = None
) -> jax.Array:
    """`matmul_tpu.product` for Hopper. x in 16 bits; outputs a multiple of 64, inputs of 256."""
    rows, eight = len(x), weight.minimum is None
    plan = plan or blocks.sizes("gpu", "matmul", f"{weight.format} {8 if rows <= 8 else 64}")
    n_out, width = math.prod(weight.codes.shape[1:-1]), weight.codes.shape[-1]
    outputs = plan["outputs"] if n_out % plan["outputs"] == 0 else 64
    group, halves = (CHUNK, 1) if eight else (weight.group, 2)
    tile = min(group, 64)  # inputs of x in a row of its tiles
    padded = -(-rows // 8) * 8
    chunks = width // CHUNK
    splits = max(1, min(chunks, WAVE // (n_out // outputs)))

    x = jnp.pad(x, ((0, padded - rows), (0, 0)))
    tiles = jnp.moveaxis(x.reshape(padded, -1, tile), 1, 0)  # [inputs / tile, rows, tile]
    stack = weight.codes.shape[0]
    operands = [jnp.asarray(layer, jnp.int32).reshape(1), weight.codes.reshape(stack, n_out, width), tiles]
    scratch: dict[str, Any] = dict(
        codes_s=plgpu.SMEM((plan["stages"], outputs, CHUNK), weight.codes.dtype, transforms=_tiled(CHUNK, jnp.int8)),
        x_s=plgpu.SMEM(
            (plan["stages"], halves * CHUNK // tile, padded, tile), x.dtype, transforms=_tiled(tile, x.dtype)
        ),
        out_s=plgpu.SMEM((outputs, padded), jnp.float32),
        ready=plgpu.Barrier(num_arrivals=1 + (1 if eight else 4), num_barriers=plan["stages"]),
    )
    if weight.minimum is not None:
        sums = jnp.sum(x.reshape(padded, -1, group).astype(jnp.float32), axis=-1).T  # [groups, rows]
        sums = jnp.pad(sums, ((0, 0), (0, max(0, 32 - padded))))  # a copy moves 128 bytes at the least
        operands += [sums, *(a.reshape(stack, n_out, -1) for a in (weight.scale, weight.minimum))]
        scratch |= dict(sums_s=plgpu.SMEM((plan["stages"], halves * CHUNK // group, sums.shape[1]), jnp.float32))
    body = functools.partial(
        _kernel, outputs=outputs, chunks=chunks, splits=splits, group=group, eight=eight, real=interpret is None
    )
    names = tuple(scratch)
    n = len(operands) + 1
    run = plgpu.kernel(
        lambda *refs: body(refs[:n], dict(zip(names, refs[n:], strict=True))),
        out_type=jax.ShapeDtypeStruct((splits, n_out, padded), jnp.float32),
        scratch_types=list(scratch.values()),
        grid=(n_out // outputs, splits),
        grid_names=("block", "piece"),
        **({} if interpret is None else dict(interpret=interpret)),
    )
    y = jnp.sum(run(*operands), axis=0).T[:rows]
    if not eight:
        return y
    return y * lax.dynamic_index_in_dim(weight.scale.reshape(stack, -1), operands[0][0], keepdims=False)


def _kernel(refs, s, *, outputs, chunks, splits, group, eight, real):
    layer_ref, codes_ref, x_ref, *of_groups, out_ref = refs
    codes_s, x_s, out_s, ready = (s[name] for name in ("codes_s", "x_s", "out_s", "ready"))
    (stages, _, padded, tile) = x_s.shape
    shape = outputs, padded
    copy = plgpu.copy_gmem_to_smem
    layer = layer_ref[0]
    block, piece = lax.axis_index("block"), lax.axis_index("piece")
    here = pl.ds(block * outputs, outputs)
    start = lax.div(piece * chunks, jnp.int32(splits))
    todo = lax.div((piece + 1) * chunks, jnp.int32(splits)) - start
    tiles, groups = CHUNK // tile, CHUNK // group  # of a chunk, or of one half's codes in it

    def fetch(j, slot):
        chunk = start + j
        copy(codes_ref.at[layer, here, pl.ds(chunk * CHUNK, CHUNK)], codes_s.at[slot], ready.at[slot])
        for half in range(1 if eight else 2):
            at = half * chunks + chunk
            to = pl.ds(half * tiles, tiles)
            copy(x_ref.at[pl.ds(at * tiles, tiles)], x_s.at[slot, to], ready.at[slot])
            if not eight:
                to = pl.ds(half * groups, groups)
                copy(of_groups[0].at[pl.ds(at * groups, groups)], s["sums_s"].at[slot, to], ready.at[slot])

    for stage in range(stages):
        pl.when(stage < todo)(functools.partial(fetch, jnp.int32(stage), stage))

    def of_output(ref, at):
        """A number for each output, float32[outputs], along the rows of an accumulator."""
        if not real:
            return ref[layer, here, at]
        return _load(ref.at[layer, here, at], OF_ROWS, optimized=False)

    def rows(a):
        return lax.broadcast_in_dim(a, shape, [0])

    def numbers(codes):
        """int8[outputs, CHUNK] -> x's 16 bits, in the layout of a left operand."""
        codes = codes.astype(x_s.dtype)
        return plgpu.layout_cast(codes, LAYOUT) if real else codes

    def multiplied(w, slot, first):
        """w[outputs, n tiles of inputs] by those of x, from number `first` on: float32[outputs, rows]."""
        n = w.shape[1] // tile

        def part(t):
            return w[:, t * tile : (t + 1) * tile], x_s.at[slot, first + t]

        if not real:  # the interpreter has no wgmma
            contract = (((1,), (1,)), ((), ()))
            return sum(
                lax.dot_general(a, b[...], contract, preferred_element_type=jnp.float32) for a, b in map(part, range(n))
            )

        def multiply(acc):
            for a, b in map(part, range(n)):
                plgpu.wgmma(acc, a, _transposed(b))
            return acc[...]

        return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))

    def step(j, acc):
        slot = lax.rem(j, jnp.int32(stages))
        plgpu.barrier_wait(ready.at[slot])
        codes = _load(codes_s.at[slot], plgpu.Layout.WGMMA_UPCAST_2X) if real else codes_s[slot]
        if eight:
            acc += multiplied(numbers(codes), slot, 0)
        else:
            _, scale_ref, minimum_ref = of_groups
            low = lax.bitcast_convert_type(codes & jnp.uint8(15), jnp.int8)
            high = lax.bitcast_convert_type((codes & jnp.uint8(240)) ^ jnp.uint8(128), jnp.int8)
            for half, w in enumerate((numbers(low), numbers(high))):
                for g in range(groups):
                    at = (half * chunks + start + j) * groups + g
                    scale, minimum = of_output(scale_ref, at), of_output(minimum_ref, at)
                    total = _load(s["sums_s"].at[slot, half * groups + g, pl.ds(0, padded)], OF_SLOTS)
                    if half:
                        scale, minimum = scale * (1 / 16), minimum + scale * 8.0
                    first = half * tiles + g * group // tile
                    sums = multiplied(w[:, g * group : (g + 1) * group], slot, first)
                    acc += rows(scale) * sums + rows(minimum) * lax.broadcast_in_dim(total, shape, [1])
        plgpu.commit_smem()  # every warp has read the slot before TMA fills it again
        pl.when(j + stages < todo)(lambda: fetch(j + stages, slot))
        return acc

    acc = lax.fori_loop(0, todo, step, plgpu.layout_cast(jnp.zeros(shape, jnp.float32), LAYOUT))
    out_s[...] = acc
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out_s, out_ref.at[piece, here])
    plgpu.wait_smem_to_gmem(0)
