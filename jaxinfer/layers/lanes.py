"""Products of a few rows with weights that a CPU converts in its registers: int8, int4 and bfloat16.

XLA's matrix products read arrays of one type. A weight in another it converts into a copy first, and the copy takes
longer than reading the weight. Elementwise code has no such copies. So the product is written as one:

    sums[o, r, lane] = sum over j of x[r, j * LANES + lane] * w[o, j * LANES + lane]

with its terms written out, and what is left is the sum over lanes, a product with ones. XLA makes one loop of all
terms, in which neighbouring lanes, that lie side by side in memory, become vectors: load, convert, multiply and add.
Three things must hold: the lanes of a term fit the registers (64 take twice as long), a loop has no more than some 60
terms (128 take eight times as long as two loops of 64), and each term takes its own slice of the stack of layers,
because a layer that several terms share is copied out first. Measured in docs/cpu.md.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.layers.qtensor import Int4, Int8
from jaxinfer.sharding import rules

LANES = 32
ROWS = {"int8": 4, "int4": 3, "bfloat16": 4}  # with more, products of several rows are faster
MOST_INPUTS = 16384  # each term is code to compile
MOST_TERMS = 48  # of one loop
AT_ONCE = 1 << 14  # outputs times rows whose lanes are kept before they are added up

Term = Callable[[int, jax.Array | int, int], jax.Array]


def fits(rows: int, inputs: int, format: str) -> bool:
    """Whether a product of so many rows with a weight of that format is best done here."""
    here = rules.platform() == "cpu" and rules.active() is None
    return here and rows <= ROWS.get(format, 0) and inputs % LANES == 0 and inputs <= MOST_INPUTS


def product(x: jax.Array, n_out: int, term: Term) -> jax.Array:
    """x float32[rows, in] times a weight [n_out, in] -> float32[rows, n_out].

    term(j, start, count) is the weight's part [start : start + count, j * LANES : (j + 1) * LANES] in float32.
    """
    rows, width = x.shape
    x = x.reshape(rows, width // LANES, LANES)

    def some(start: jax.Array | int, count: int) -> jax.Array:
        y = jnp.zeros((count, rows), jnp.float32)
        for terms in np.array_split(range(width // LANES), -(-width // LANES // MOST_TERMS)):
            sums = sum(x[:, j] * term(j, start, count)[:, None] for j in terms.tolist())
            y += jax.lax.dot_general(sums, jnp.ones(LANES, jnp.float32), (((2,), (0,)), ((), ())))
        return y

    most = AT_ONCE // rows
    if n_out <= 2 * most:
        return some(0, n_out).T
    whole = n_out // most
    y = jax.lax.map(lambda i: some(i * most, most), jnp.arange(whole)).reshape(whole * most, rows)
    return (y if n_out % most == 0 else jnp.concatenate([y, some(whole * most, n_out % most)])).T


def _stack(array: jax.Array, n_out: int, layer: jax.Array | None) -> tuple[jax.Array, jax.Array | int]:
    """What a weight holds as [L, n_out, ...], and which layer of these is meant."""
    return array.reshape(1 if layer is None else len(array), n_out, -1), 0 if layer is None else layer


def _part(
    stack: tuple[jax.Array, jax.Array | int], start: jax.Array | int, count: int, at: int, size: int
) -> jax.Array:
    array, layer = stack
    return jax.lax.dynamic_slice(array, (layer, start, at), (1, count, size))[0]


def int8(x: jax.Array, weight: Int8, n_out: int, layer: jax.Array | None) -> jax.Array:
    """x float32[rows, in] times an Int8 [*out, *in], or layer i32[] of a stack of them -> float32[rows, n_out]."""
    codes, (scale, which) = _stack(weight.codes, n_out, layer), _stack(weight.scale, n_out, layer)

    def term(j: int, start: jax.Array | int, count: int) -> jax.Array:
        return _part(codes, start, count, j * LANES, LANES).astype(jnp.float32)

    return product(x, n_out, term) * jax.lax.dynamic_index_in_dim(scale, which, keepdims=False)[:, 0]


def int4(x: jax.Array, weight: Int4, n_out: int, layer: jax.Array | None) -> jax.Array:
    """x float32[rows, P] times an Int4 [*out, P], or layer i32[] of a stack of them -> float32[rows, n_out]."""
    codes, scale, minimum = (_stack(a, n_out, layer) for a in (weight.codes, weight.scale, weight.minimum))
    half, group = weight.codes.shape[-1], weight.group
    x = x.reshape(len(x), 2, -1, LANES).swapaxes(1, 2)  # a term of each half in turn: both are in the same bytes

    def term(j: int, start: jax.Array | int, count: int) -> jax.Array:
        at, high = j // 2 * LANES, j % 2
        both = _part(codes, start, count, at, LANES).astype(jnp.int32)  # widened once for both
        step, least = (_part(a, start, count, (at + high * half) // group, 1) for a in (scale, minimum))
        return (both >> 4 if high else both & 15).astype(jnp.float32) * step + least

    return product(x.reshape(len(x), -1), n_out, term)


def bfloat16(x: jax.Array, bits: jax.Array, n_out: int, layer: jax.Array | None) -> jax.Array:
    """x float32[rows, in] times a bfloat16 weight [*out, in] of which u16 `bits` are given -> float32[rows, n_out].

    The bits are what is sliced: XLA slices bfloat16 by way of a copy in float32.
    """
    stack = _stack(bits, n_out, layer)

    def term(j: int, start: jax.Array | int, count: int) -> jax.Array:
        wide = _part(stack, start, count, j * LANES, LANES).astype(jnp.uint32) << 16
        return jax.lax.bitcast_convert_type(wide, jnp.float32)

    return product(x, n_out, term)
