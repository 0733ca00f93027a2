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

from jaxinfer.sharding import choices, layouts

LANES = 32
BFLOAT16_ROWS = 4  # with more, products of several rows are faster
MOST_INPUTS = 16384  # each term is code to compile
MOST_TERMS = 48  # of one loop
AT_ONCE = 1 << 14  # outputs times rows whose lanes are kept before they are added up

Stack = tuple[jax.Array, jax.Array | int]
Term = Callable[[int, jax.Array | int, int], jax.Array]


def fits(rows: int, inputs: int, most_rows: int) -> bool:
    """Tell whether a product of so many rows, of a format that takes up to `most_rows`, is best done here."""
    here = choices.CONVERT_IN_REGISTERS.here() and layouts.active() is None
    return here and rows <= most_rows and inputs % LANES == 0 and inputs <= MOST_INPUTS


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


def stack(array: jax.Array, n_out: int, layer: jax.Array | None) -> Stack:
    """An array of a weight as [L, n_out, ...], and which layer of these is meant."""
    return array.reshape(1 if layer is None else len(array), n_out, -1), 0 if layer is None else layer


def part(of: Stack, start: jax.Array | int, count: int, at: int, size: int) -> jax.Array:
    """[count, size] of one layer: outputs from `start`, and along the last axis from `at`."""
    array, layer = of
    return jax.lax.dynamic_slice(array, (layer, start, at), (1, count, size))[0]


def bfloat16(x: jax.Array, bits: jax.Array, n_out: int, layer: jax.Array | None) -> jax.Array:
    """x float32[rows, in] times a bfloat16 weight [*out, in] of which u16 `bits` are given -> float32[rows, n_out].

    The bits are what is sliced: XLA slices bfloat16 by way of a copy in float32.
    """
    codes = stack(bits, n_out, layer)

    def term(j: int, start: jax.Array | int, count: int) -> jax.Array:
        wide = part(codes, start, count, j * LANES, LANES).astype(jnp.uint32) << 16
        return jax.lax.bitcast_convert_type(wide, jnp.float32)

    return product(x, n_out, term)
