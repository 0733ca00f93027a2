"""Dispatch: activations to the experts that a router chose, and back, by pure functions of arrays.

N tokens, E experts, k experts a token, C slots an expert. A dispatch is given `ffn(x[R, D], e) -> [R, D]`, one expert's
MLP, with e an i32[].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinfer.config import MoE

Expert = Callable[[jax.Array, jax.Array], jax.Array]

SMALLEST_BLOCK, LARGEST_BLOCK = 8, 256  # rows that one expert computes at a time: measured, docs/cpu.md
SMALLEST_PART = 32  # of a block that is not full


def capacity(n_tokens: int, moe: MoE) -> int:
    """Return the slots of an expert for a batch of that many tokens, at least one."""
    return max(1, math.ceil(moe.capacity_factor * n_tokens * moe.top_k / moe.experts))


def dense(x: jax.Array, gates: jax.Array, experts: jax.Array, ffn: Expert, n_experts: int) -> jax.Array:
    """Compute every expert for every token: x[N, D] -> float32[N, D]. The definition that the others are held to."""

    def add(out, e):
        gate = jnp.sum(jnp.where(experts == e, gates, 0.0), axis=-1, keepdims=True)
        return out + gate * ffn(x, e), None

    return jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), jnp.arange(n_experts))[0]


def slots(experts: jax.Array, n_experts: int, gates: jax.Array | None = None) -> jax.Array:
    """Return i32[N, k]: how many assignments to the same expert come before this one.

    All first choices are placed before any second one (GShard, Lepikhin et al. 2020, Algorithm 1). Tokens come in
    order, or, with `gates` [N, k], those with the largest first gate come first (batch prioritized routing, V-MoE,
    Riquelme et al. 2021, section 4). An expert of `n_experts` is none: padding, which takes no slot.
    """
    order = None if gates is None else jnp.argsort(-gates[:, 0], stable=True)
    ranked = experts if order is None else experts[order]
    by_choice = ranked.T.reshape(-1)  # [k * N]
    ahead = jnp.cumsum(jax.nn.one_hot(by_choice, n_experts, dtype=jnp.int32), axis=0) - 1
    own = jnp.minimum(by_choice, n_experts - 1)
    found = jnp.take_along_axis(ahead, own[:, None], axis=1)[:, 0].reshape(experts.shape[::-1]).T
    return found if order is None else jnp.zeros_like(found).at[order].set(found)


def with_capacity(
    x: jax.Array,
    gates: jax.Array,
    experts: jax.Array,
    ffn: Expert,
    n_experts: int,
    size: int,
    by_gate: bool = False,
    live: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Compute at most `size` tokens an expert: float32[N, D], zeros for what is dropped, and kept bool[N, k].

    Who comes first: see `slots`. Tokens that are not `live` bool[N] take no slot and get zeros.
    """
    n, d = x.shape
    chosen, slot, kept = _placed(gates, experts, live, n_experts, size, by_gate)
    place = jnp.where(kept, chosen * size + slot, n_experts * size)  # outside: dropped
    token = jnp.broadcast_to(jnp.arange(n)[:, None], experts.shape)
    buffer = jnp.zeros((n_experts * size, d), x.dtype).at[place].set(x[token], mode="drop")
    done = _each(buffer.reshape(n_experts, size, d), ffn)
    back = jnp.take(done.reshape(-1, d), place, axis=0, mode="fill", fill_value=0).astype(jnp.float32)
    return jnp.sum(back * gates[..., None], axis=1), kept


def within_capacity(
    gates: jax.Array, experts: jax.Array, live: jax.Array | None, n_experts: int, size: int, by_gate: bool = False
) -> jax.Array:
    """Tell which assignments `with_capacity` computes: bool[N, k]."""
    return _placed(gates, experts, live, n_experts, size, by_gate)[2]


def _placed(
    gates: jax.Array, experts: jax.Array, live: jax.Array | None, n_experts: int, size: int, by_gate: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return, all [N, k], the expert of each assignment, its slot there, and whether there is one."""
    chosen = experts if live is None else jnp.where(live[:, None], experts, n_experts)
    slot = slots(chosen, n_experts, gates if by_gate else None)
    return chosen, slot, (slot < size) & (chosen < n_experts)


def dropless(
    x: jax.Array,
    gates: jax.Array,
    experts: jax.Array,
    ffn: Expert,
    n_experts: int,
    sizes: tuple[int, ...] | None = None,
    agree: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Compute each token's own experts and no others: float32[N, D], whatever the load (MegaBlocks, Gale et al. 2022).

    Assignments are sorted by expert and taken in blocks of one expert each. Only blocks that hold tokens run, so few
    tokens read few experts; an expert's last block computes no more rows than the next smaller size that holds it.
    Memory is a block and the output. The number of blocks is known at run time only, so there is no gradient in
    reverse: train with one of the other two. An expert of `n_experts` is none, and is not computed. sizes: as
    `block_sizes` gives them; default, for experts that all are here. agree: makes of the number of blocks that of the
    device with most, where devices must run as many, of one size; blocks past a device's own add nothing.
    """
    n, k = experts.shape
    sizes = sizes or block_sizes(n, k, n_experts)
    sizes = sizes[-1:] if agree else sizes
    size = sizes[-1]
    order, counts = _sorted(experts.reshape(-1), n_experts)
    starts = jnp.cumsum(counts) - counts
    blocks = -(-counts // size)  # of each expert
    last = jnp.cumsum(blocks)
    flat_gates = gates.reshape(-1)

    def first(rows: int) -> Expert:
        return lambda x, e: jnp.pad(ffn(x[:rows], e).astype(jnp.float32), ((0, size - rows), (0, 0)))

    def block(i, out):
        e = jnp.searchsorted(last, i, side="right").astype(jnp.int32)
        e = jnp.minimum(e, n_experts - 1) if agree else e
        before = (i - (last[e] - blocks[e])) * size
        within = before + jnp.arange(size)
        index = jnp.take(order, jnp.minimum(starts[e] + within, n * k - 1))
        gate = jnp.where(within < counts[e], flat_gates[index], 0.0)
        rows = index // k
        fits = jnp.searchsorted(jnp.array(sizes), jnp.minimum(counts[e] - before, size))
        y = jax.lax.switch(fits, [first(rows) for rows in sizes], x[rows], e)
        return out.at[rows].add(gate[:, None] * y)

    count = agree(last[-1]) if agree else last[-1]
    return jax.lax.fori_loop(0, count, block, jnp.zeros(x.shape, jnp.float32))


def block_sizes(n: int, k: int, n_experts: int) -> tuple[int, ...]:
    """List the rows that a block of `dropless` may compute, fewest first, the last of which is a whole block.

    It is about what an expert gets if all get as much. It takes as long as some 8 rows to bring an expert's
    weights to the product, so blocks are not smaller than that; nor larger than n, all that an expert may get.
    """
    average = 1 << (3 * n * k // (2 * n_experts)).bit_length() >> 1
    whole = min(1 << (n - 1).bit_length(), max(SMALLEST_BLOCK, min(LARGEST_BLOCK, average)))
    parts = whole // 8, whole // 4, whole // 2, whole // 4 * 3
    return (*(rows for rows in parts if rows >= SMALLEST_PART), whole)


def computed(load: jax.Array, n: int, k: int) -> jax.Array:
    """Count the rows that `dropless` computes for experts that have `load` [E] of n tokens' k assignments each."""
    sizes = jnp.array(block_sizes(n, k, len(load)))
    rest = load % sizes[-1]
    last = jnp.where(rest > 0, sizes[jnp.searchsorted(sizes, rest)], 0)
    return jnp.sum(load - rest + last)


def _sorted(experts: jax.Array, n_experts: int) -> tuple[jax.Array, jax.Array]:
    """Order assignments i32[A] by expert i32[A], those of one expert as they came; count those of each, i32[E].

    Those to none, an expert of `n_experts`, come last and are not counted.
    """
    n = len(experts)
    if (n_experts + 1) * n < 1 << 31:  # one number says both: a sort of numbers is six times as fast as one of pairs
        order = jnp.sort(experts * n + jnp.arange(n, dtype=jnp.int32)) % n
    else:
        order = jnp.argsort(experts, stable=True)
    return order, jnp.bincount(experts, length=n_experts)


def chosen_by_experts(x: jax.Array, gates: jax.Array, tokens: jax.Array, ffn: Expert) -> jax.Array:
    """Send x[N, D] to the tokens i32[E, C] that each expert chose, and back with its gates [E, C]: float32[N, D]."""
    done = _each(x[tokens], ffn).astype(jnp.float32)
    return jnp.zeros(x.shape, jnp.float32).at[tokens].add(done * gates[..., None])


def soft(
    x: jax.Array, logits: jax.Array, ffn: Expert, live: jax.Array | None = None, back: jax.Array | None = None
) -> jax.Array:
    """Compute slots that are weighted means of all tokens: x[N, D], logits [N, E, P] -> float32[N, D].

    A token gets back a weighted mean of what came out of all slots (Soft MoE, Puigcerver et al. 2023, section 2.1).
    Every token is in every slot, those that follow it in the text too: not causal. back: the weights of the way back,
    where there are other slots too; default, the softmax over these.
    """
    n = len(x)
    logits = logits.astype(jnp.float32)
    to_slots = logits if live is None else jnp.where(live[:, None, None], logits, -jnp.inf)
    into = jnp.einsum("nd,nep->epd", x.astype(jnp.float32), jax.nn.softmax(to_slots, axis=0)).astype(x.dtype)
    done = _each(into, ffn).astype(jnp.float32).reshape(-1, x.shape[1])
    shares = jax.nn.softmax(logits.reshape(n, -1), axis=-1) if back is None else back.reshape(n, -1)
    return shares @ done


def _each(rows: jax.Array, ffn: Expert) -> jax.Array:
    """Compute every expert over its own rows: [E, C, D] -> [E, C, D]."""
    return jax.lax.map(lambda args: ffn(*args), (rows, jnp.arange(len(rows), dtype=jnp.int32)))
