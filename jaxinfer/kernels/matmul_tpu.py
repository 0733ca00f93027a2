"""Products with weight-only int8 and int4 for TPU (Mosaic), for the few rows of a decode step.

A grid step brings a block of outputs with all of its inputs into VMEM, and multiplies it by x in chunks. Codes become
bfloat16 on the way to the matrix unit, exactly: what 16 bits would lose is only x's own. Scales meet the sums in
float32, an output's whole sum in int8, a group's in int4. For the latter the rows of x stand once for each group
of a chunk, zero outside of it, so that one pass of the chunk's codes through the matrix unit gives the sums of all its
groups apart: few rows leave that unit waiting for weights in any case. Folded into the weights instead, a scale would
cost a multiplication a weight, and the rounding of the result.

    y[r, n] = sum over groups g: scale[n, g] * (sum over k in g: code[n, k] x[r, k]) + minimum[n, g] * (sum of x[r, k])
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxinfer.kernels import blocks
from jaxinfer.kernels.coded import CodedWeight

LANES = 128
UNROLLED = 4  # chunks a turn of the loop over inputs
BUDGET = 24 << 20  # bytes of VMEM for blocks, twice: the next one is on its way


@dataclass(frozen=True)
class Plan:
    """Block sizes of one call."""

    outputs: int  # a grid step
    depth: int  # inputs, or bytes of int4, that are widened at a time

    @staticmethod
    def of(rows: int, weight: CodedWeight, width: int) -> "Plan":
        """The table's sizes, with no more outputs than there are or than fit into VMEM."""
        n_out = math.prod(weight.codes.shape[1:-1])
        sizes = blocks.sizes("tpu", "matmul", f"{weight.format} {8 if rows <= 8 else 64}")
        all_outputs = math.prod(weight.codes.shape[:-1])
        stored = sum(a.dtype.itemsize * math.prod(a.shape) for a in jax.tree.leaves(weight)) // all_outputs  # of one
        most = max(LANES, (BUDGET - 2 * 4 * rows * width) // (2 * stored) // LANES * LANES)
        return Plan(min(sizes["outputs"], most, _round_up(n_out, LANES)), sizes["depth"])


def product(
    x: jax.Array, weight: CodedWeight, layer: jax.Array, plan: Plan | None = None, interpret: Any = False
) -> jax.Array:
    """x[rows, in] times layer i32[] of a stack [L, *out, *in] -> float32[rows, out]. x: bfloat16 or float32."""
    n, width = x.shape
    plan = plan or Plan.of(n, weight, width)
    rows = _round_up(n, 32 // x.dtype.itemsize)
    x = jnp.pad(x, ((0, rows - n), (0, 0)))
    layer = jnp.asarray(layer, jnp.int32).reshape(1)
    if weight.minimum is None:
        return _int8(x, weight, layer, plan, interpret)[:n]
    return _int4(x, weight, layer, plan, interpret)[:n]


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Stack:
    """Arrays of all layers, [L, out, ...], or with `across` [L, ..., out]: the kernel sees a block of one's outputs."""

    array: jax.Array
    across: bool = False

    def spec(self, block: int) -> pl.BlockSpec:
        layers, *shape = self.array.shape
        at = (lambda layer: 0) if layers == 1 else (lambda layer: layer[0])
        if self.across:
            return pl.BlockSpec((None, shape[0], block), lambda n, layer: (at(layer), 0, n))
        return pl.BlockSpec((None, block, shape[1]), lambda n, layer: (at(layer), n, 0))


def _call(
    body: Any,
    name: str,
    layer: jax.Array,
    x: list[jax.Array],
    stacks: list[Stack],
    scratch: list,
    block: int,
    interpret,
) -> jax.Array:
    """The grid over outputs: x's arrays whole, and `block` outputs of the stacks a step."""
    rows, n_out = x[0].shape[0], stacks[0].array.shape[1]
    arrays = [stack.array for stack in stacks]
    if not interpret:
        # The compiler would rather bring a small stack into VMEM as a whole, all of its layers.
        arrays = [pltpu.with_memory_space_constraint(a, pltpu.HBM) for a in arrays]
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(n_out, block),),
            in_specs=[
                *(pl.BlockSpec(a.shape, lambda n, layer: (0, 0)) for a in x),
                *(stack.spec(block) for stack in stacks),
            ],
            out_specs=pl.BlockSpec((rows, block), lambda n, layer: (0, n)),
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((rows, n_out), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=64 << 20),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * n_out * x[0].shape[1],
            transcendentals=0,
            bytes_accessed=sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in arrays) + 4 * rows * n_out,
        ),
        interpret=interpret,
        name=name,
    )(layer, *x, *arrays)


def _dot(x: jax.Array, w: jax.Array, along: int = 1) -> jax.Array:
    """[rows, in] times [out, in], or [in, out] along its axis 0, summed in float32."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot_general(x, w, (((1,), (along,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _in_chunks(total: int, depth: int, add: Any) -> None:
    """add(start, width) for all of 0 to `total`, `depth` at a time: a loop, `UNROLLED` chunks a turn, then the rest."""
    turn = UNROLLED * depth
    turns = total // turn

    def several(i, carry):
        for u in range(UNROLLED):
            add(pl.multiple_of(i * turn + u * depth, math.gcd(depth, LANES)), depth)
        return carry

    if turns > 1:
        lax.fori_loop(0, turns, several, 0)
    for start in range(turns * turn if turns > 1 else 0, total, depth):
        add(start, min(depth, total - start))


def _int8(x, weight: CodedWeight, layer, plan: Plan, interpret) -> jax.Array:
    stack, width = weight.codes.shape[0], x.shape[1]
    codes = weight.codes.reshape(stack, -1, width)
    body = functools.partial(_int8_kernel, depth=plan.depth)
    y = _call(body, "int8_product", layer, [x], [Stack(codes)], [], plan.outputs, interpret)
    return y * lax.dynamic_index_in_dim(weight.scale.reshape(stack, -1), layer[0], keepdims=False)


def _int8_kernel(layer, x, codes, out, *, depth):
    out[...] = jnp.zeros(out.shape, jnp.float32)

    def add(start, width):
        here = pl.ds(start, width)
        out[...] += _dot(x[:, here], codes[:, here].astype(x.dtype))

    _in_chunks(x.shape[1], depth, add)


def _int4(x, weight: CodedWeight, layer, plan: Plan, interpret) -> jax.Array:
    assert weight.minimum is not None
    stack, half, groups = weight.codes.shape[0], weight.codes.shape[-1], weight.scale.shape[-1]
    codes, by_output = weight.codes.reshape(stack, -1, half), (weight.scale, weight.minimum)
    x = jnp.pad(x, ((0, 0), (0, 2 * half - x.shape[1])))
    by_group = jnp.sum(x.reshape(len(x), -1, weight.group).astype(jnp.float32), axis=-1)
    # XLA lays arrays out so that padding is least. Groups that fill no lanes have the outputs there, and to say so is
    # free, if these are one axis and the groups fill sublanes. Otherwise a slice of the layer is turned around.
    across = groups % LANES != 0
    if across and (groups % 8 or weight.scale.ndim > 3):
        by_output = tuple(lax.dynamic_index_in_dim(a, layer[0]) for a in by_output)
    scale, minimum = (a.reshape(a.shape[0], -1, groups) for a in by_output)
    of_groups = [Stack(jnp.swapaxes(a, 1, 2) if across else a, across) for a in (scale, minimum)]
    depth = max(plan.depth // weight.group, 1) * weight.group
    body = functools.partial(_int4_kernel, group=weight.group, depth=depth, across=across)
    of_x, stacks = [x[:, :half], x[:, half:], by_group], [Stack(codes), *of_groups]
    scratch = [] if across else [pltpu.VMEM((groups, plan.outputs), jnp.float32)]
    return _call(body, "int4_product", layer, of_x, stacks, scratch, plan.outputs, interpret)


def _int4_kernel(layer, low, high, by_group, codes, scale, minimum, out, *scratch, group, depth, across):
    rows, half = low.shape
    if across:
        by_output = scale
        out[...] = _dot(by_group[...], minimum[...], along=0)
    else:
        (by_output,) = scratch
        by_output[...] = scale[...].T
        out[...] = _dot(by_group[...], minimum[...])

    def add(start, width):
        here, groups = pl.ds(start, width), width // group
        packed = codes[:, here].astype(jnp.int32)
        acc = jnp.zeros(out.shape, jnp.float32)
        for x, nibbles, first in ((low, packed & 15, 0), (high, packed >> 4, half // group)):
            chunk = x[:, here]
            of_lane = lax.div(lax.broadcasted_iota(jnp.int32, chunk.shape, 1), jnp.int32(group))
            apart = [jnp.where(of_lane == g, chunk, 0) for g in range(groups)]
            sums = _dot(jnp.concatenate(apart), nibbles.astype(jnp.float32).astype(x.dtype))
            first += lax.div(jnp.int32(start), jnp.int32(group))
            for g in range(groups):
                acc += sums[g * rows : (g + 1) * rows] * by_output[pl.ds(first + g, 1)]
        out[...] += acc

    _in_chunks(half, depth, add)
