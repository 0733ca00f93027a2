"""Which experts a token goes to, and how its activations get there and back: pure functions of arrays.

N tokens, E experts, k experts a token, C slots an expert. A dispatch is given `ffn(x[R, D], e) -> [R, D]`, one expert's
MLP, with e an i32[].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinfer.config import MoE

Expert = Callable[[jax.Array, jax.Array], jax.Array]

LARGEST_BLOCK = 128  # rows that one expert computes at a time


def route(logits: jax.Array, moe: MoE) -> tuple[jax.Array, jax.Array]:
    """Router logits [N, E] -> gates float32[N, k] and experts i32[N, k], the likeliest first."""
    logits = logits.astype(jnp.float32)
    if moe.router == "topk":
        top, experts = jax.lax.top_k(logits, moe.top_k)
        return jax.nn.softmax(top, axis=-1), experts
    gates, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), moe.top_k)
    return (gates / jnp.sum(gates, axis=-1, keepdims=True) if moe.normalize else gates), experts


def load_balance_loss(logits: jax.Array, experts: jax.Array) -> jax.Array:
    """float32[]: E * sum of (share of tokens) x (mean probability) over experts; 1 if balanced (Switch, eq. 4)."""
    n_experts = logits.shape[-1]
    share = jnp.mean(jax.nn.one_hot(experts, n_experts), axis=(0, 1))
    return n_experts * jnp.sum(share * jnp.mean(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), axis=0))


def z_loss(logits: jax.Array) -> jax.Array:
    """float32[]: the mean squared log-partition of the router (ST-MoE, Zoph et al. 2022, eq. 5)."""
    return jnp.mean(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) ** 2)


def capacity(n_tokens: int, moe: MoE) -> int:
    """Slots of an expert for a batch of that many tokens, at least one."""
    return max(1, math.ceil(moe.capacity_factor * n_tokens * moe.top_k / moe.experts))


def dense(x: jax.Array, gates: jax.Array, experts: jax.Array, ffn: Expert, n_experts: int) -> jax.Array:
    """Every expert for every token: x[N, D] -> float32[N, D]. The definition that the other two are held to."""

    def add(out, e):
        gate = jnp.sum(jnp.where(experts == e, gates, 0.0), axis=-1, keepdims=True)
        return out + gate * ffn(x, e), None

    return jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), jnp.arange(n_experts))[0]


def slots(experts: jax.Array, n_experts: int) -> jax.Array:
    """i32[N, k]: how many assignments to the same expert come before this one, tokens in order, first choices first.

    GShard (Lepikhin et al. 2020, Algorithm 1): all first choices are placed before any second one.
    """
    by_choice = experts.T.reshape(-1)  # [k * N]
    ahead = jnp.cumsum(jax.nn.one_hot(by_choice, n_experts, dtype=jnp.int32), axis=0) - 1
    return jnp.take_along_axis(ahead, by_choice[:, None], axis=1)[:, 0].reshape(experts.shape[::-1]).T


def with_capacity(
    x: jax.Array, gates: jax.Array, experts: jax.Array, ffn: Expert, n_experts: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """At most `size` tokens an expert: float32[N, D], zeros for what is dropped, and kept bool[N, k]."""
    n, d = x.shape
    slot = slots(experts, n_experts)
    kept = slot < size
    place = jnp.where(kept, experts * size + slot, n_experts * size)  # outside: dropped
    token = jnp.broadcast_to(jnp.arange(n)[:, None], experts.shape)
    buffer = jnp.zeros((n_experts * size, d), x.dtype).at[place].set(x[token], mode="drop")
    done = jax.lax.map(lambda args: ffn(*args), (buffer.reshape(n_experts, size, d), jnp.arange(n_experts)))
    back = jnp.take(done.reshape(-1, d), place, axis=0, mode="fill", fill_value=0).astype(jnp.float32)
    return jnp.sum(back * gates[..., None], axis=1), kept


def dropless(x: jax.Array, gates: jax.Array, experts: jax.Array, ffn: Expert, n_experts: int) -> jax.Array:
    """Each token's own experts and no others: float32[N, D], whatever the load (MegaBlocks, Gale et al. 2022).

    Assignments are sorted by expert and taken in blocks of one expert each. Only blocks that hold tokens run, so few
    tokens read few experts; memory is a block and the output. The number of blocks is known at run time only, so there
    is no gradient in reverse: train with one of the other two.
    """
    n, k = experts.shape
    size = min(LARGEST_BLOCK, max(1, 1 << (n * k // n_experts).bit_length() - 1)) if n * k > n_experts else 1
    order = jnp.argsort(experts.reshape(-1), stable=True)
    counts = jnp.bincount(experts.reshape(-1), length=n_experts)
    starts = jnp.cumsum(counts) - counts
    blocks = -(-counts // size)  # of each expert
    last = jnp.cumsum(blocks)
    flat_gates = gates.reshape(-1)

    def block(i, out):
        e = jnp.searchsorted(last, i, side="right").astype(jnp.int32)
        within = (i - (last[e] - blocks[e])) * size + jnp.arange(size)
        index = jnp.take(order, jnp.minimum(starts[e] + within, n * k - 1))
        gate = jnp.where(within < counts[e], flat_gates[index], 0.0)
        rows = index // k
        return out.at[rows].add(gate[:, None] * ffn(x[rows], e).astype(jnp.float32))

    return jax.lax.fori_loop(0, last[-1], block, jnp.zeros(x.shape, jnp.float32))
