"""The contract of attention: the arguments and the result of every formulation.

Attention is the softmax over two sets of keys: the committed cache, and the T fresh tokens of this step. Each set gives
a `Partial`, its output and log-sum-exp, and partials merge (Flash-Decoding, Dao et al. 2023; Milakov and Gimelshein
2018). Queries come folded: [B, K, R, H] with R = T * G rows, token-major, one matrix for each key/value head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

FEW = 64  # fresh tokens whose own attention is left to XLA: a matrix of 64 x 64 scores a head
FLOOR = -1e30  # a finite minus infinity: differences of two of them are 0, not NaN

Visible = Callable[[jax.Array, jax.Array], jax.Array]
"""(q_pos, kv_pos), i32 arrays that broadcast -> bool: what a query sees. Elementwise, and closed over no array, so that
a kernel can call it on its own blocks."""

Decode = Callable[[Any, jnp.dtype], jax.Array]
"""(stored, dtype) -> [..., S, H]: a policy's storage format back to numbers."""


class Scoring(NamedTuple):
    """The changes to a score before the softmax."""

    softcap: float | None = None  # cap * tanh(score / cap) (Gemma 2)
    slopes: Any = None  # float32[N]: by how much a head's scores fall with each token of distance (ALiBi)
    sinks: Any = None  # float32[N]: a score for each head that weighs in the softmax and brings no value (gpt-oss)
    value_width: int | None = None  # values are that many first columns of the keys (latent attention)


PLAIN = Scoring()


class Partial(NamedTuple):
    """out float32[B, K, R, H] normalized over its part; lse float32[B, K, R]. Nothing visible: 0 and -inf."""

    out: jax.Array
    lse: jax.Array


def fold_heads(q: jax.Array, n_kv_heads: int) -> jax.Array:
    """Fold q[B, T, N, H] -> [B, K, T*G, H]: queries that share a key/value head are rows of one matrix (GQA)."""
    return rearrange(q, "b t (k g) h -> b k (t g) h", k=n_kv_heads)


def unfold_heads(out: jax.Array, n_tokens: int) -> jax.Array:
    """Undo `fold_heads`: [B, K, T*G, H] -> [B, T, N, H]."""
    return rearrange(out, "b k (t g) h -> b t (k g) h", t=n_tokens)


def rows_of(per_head: Any, n_kv_heads: int, n_tokens: int) -> jax.Array:
    """Repeat a number for each head, [N], as one for each folded row, float32[K, T*G]."""
    return jnp.tile(jnp.asarray(per_head, jnp.float32).reshape(n_kv_heads, -1), (1, n_tokens))


def chain_or(tree: jax.Array | None, width: int) -> jax.Array:
    """Return the tree mask, or that of a chain: bool[B or 1, T, T]."""
    return jnp.tril(jnp.ones((1, width, width), bool)) if tree is None else tree


def merge(a: Partial, b: Partial) -> jax.Array:
    """Merge the softmax over both parts: float32[B, K, R, H]. A row that sees nothing in either gives 0."""
    return merged(a, b).out


def merged(a: Partial, b: Partial) -> Partial:
    """Return both parts as one."""
    top = jnp.maximum(jnp.maximum(a.lse, b.lse), FLOOR)
    weight_a, weight_b = jnp.exp(a.lse - top), jnp.exp(b.lse - top)
    total = weight_a + weight_b
    safe = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    out = a.out * (weight_a / safe)[..., None] + b.out * (weight_b / safe)[..., None]
    return Partial(out, top + jnp.log(total))


def with_sinks(part: Partial, sinks: jax.Array | None, n_tokens: int) -> jax.Array:
    """Return the output once each head's learned sink, float32[N], has taken its share of the weight."""
    if sinks is None:
        return part.out
    sink = rows_of(sinks, part.lse.shape[1], n_tokens)[None]
    return part.out * jax.nn.sigmoid(part.lse - sink)[..., None]
