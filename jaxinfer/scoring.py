"""Whole texts through a model, for analysis: logits of every token, and what routers do with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import engine
from jaxinfer.cache import CachePolicy
from jaxinfer.errors import InputError
from jaxinfer.programs import program
from jaxinfer.target import Target, chunks


def check_batch(tokens: Any) -> np.ndarray:
    """tokens as int32[B, T]. Raises InputError if they are not that, or empty."""
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2 or not tokens.size:
        raise InputError(f"tokens has shape {tokens.shape}: give int[B, T] with at least one token")
    return tokens


def logits(target: Target, policy: CachePolicy, tokens: np.ndarray) -> jax.Array:
    """tokens int32[B, T] -> float32[B, T, V], chunk by chunk."""
    return _chunked(engine.score, target, policy, tokens)


def features(target: Target, policy: CachePolicy, tokens: np.ndarray) -> jax.Array:
    """tokens int32[B, T] -> [B, T, D], the hidden states behind the final norm, chunk by chunk."""
    return _chunked(engine.features, target, policy, tokens)


def _chunked(fun, target: Target, policy: CachePolicy, tokens: np.ndarray) -> jax.Array:
    batch, length = tokens.shape
    cache = target.empty_cache(policy, np.full(batch, length), length)
    parts, done = [], 0
    for width in chunks(length):
        size = min(width, length - done)
        cache, part = _call(fun, target, cache, tokens[:, done : done + size], width)
        parts.append(part[:, :size])
        done += size
    return jnp.concatenate(parts, axis=1)


def routing(target: Target, policy: CachePolicy, tokens: np.ndarray) -> dict[str, Any]:
    """tokens int32[B, T] -> by layer kind, `layers.moe.RouterStats` of numpy arrays [L, ...]. As one batch."""
    batch, length = tokens.shape
    width = max(8, 1 << (length - 1).bit_length())
    _, found = _call(engine.routing, target, target.empty_cache(policy, np.full(batch, length), width), tokens, width)
    return jax.tree.map(np.asarray, found)


def _call(fun, target: Target, cache: Any, tokens: np.ndarray, width: int) -> tuple[Any, Any]:
    """fun(model, params, cache, tokens padded to `width`, n) -> cache, result."""
    batch, size = tokens.shape
    padded = np.zeros((batch, width), np.int32)
    padded[:, :size] = tokens
    n = target.place(np.full(batch, size, np.int32), "batch")
    args = (target.params, cache, target.place(padded, "batch", "tokens"), n)
    call, _ = program(fun, (target.model,), args, carry=1, layout=target.layout)
    return call.call(*args)
