"""Whole texts through a model, for analysis: logits of every token, and what routers do with them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache import CachePolicy
from jaxinfer.decoding.sampling.settings import bucket
from jaxinfer.runtime import prefill
from jaxinfer.runtime.hypotheses import pairs
from jaxinfer.runtime.placed import PlacedModel
from jaxinfer.sharding import across

JUDGED = 64  # tokens of a prompt whose logits are held at a time


def logits(placed: PlacedModel, policy: CachePolicy, tokens: np.ndarray) -> jax.Array:
    """Map tokens int32[B, T] -> float32[B, T, V], chunk by chunk."""
    return _chunked(prefill.logits, placed, policy, tokens)


def features(placed: PlacedModel, policy: CachePolicy, tokens: np.ndarray) -> jax.Array:
    """Map tokens int32[B, T] -> [B, T, D], the hidden states after the final norm, chunk by chunk."""
    return _chunked(prefill.hidden, placed, policy, tokens)


def prompt_logprobs(
    placed: PlacedModel, policy: CachePolicy, prompts: Sequence[Sequence[int]], count: int
) -> tuple[list[list[float]], list[list[list[tuple[int, float]]]] | None]:
    """Give the log-probability of every token of each prompt but the first, and the `count` likeliest in its place."""
    lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
    longest = int(lengths.max())
    tokens = np.zeros((len(prompts), longest + 1 + JUDGED), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    cache = placed.empty_cache(policy, lengths + 1, bucket(longest + JUDGED, JUDGED))
    give = prefill.LogProbs(count)
    found: list[Any] = []
    for start in range(0, longest, JUDGED):
        part, following = (tokens[:, at : at + JUDGED] for at in (start, start + 1))
        cache, new, _ = placed.read_chunk(cache, part, np.clip(lengths - start, 0, JUDGED), give, following)
        found.append(across.fetch(new))
    if not found:
        return [[] for _ in prompts], [[] for _ in prompts] if count else None
    own, best = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *found)
    values = [row[:n].tolist() for row, n in zip(own, lengths, strict=True)]
    if best is None:
        return values, None
    return values, [pairs(ids[:n], worth[:n]) for ids, worth, n in zip(*best, lengths, strict=True)]


def routing(placed: PlacedModel, policy: CachePolicy, tokens: np.ndarray) -> dict[str, Any]:
    """Map tokens int32[B, T], as one batch -> by layer kind, `layers.moe.RouterStats` of numpy arrays [L, ...]."""
    batch, length = tokens.shape
    whole = np.zeros((batch, max(8, 1 << (length - 1).bit_length())), np.int32)
    whole[:, :length] = tokens
    n = np.full(batch, length)
    _, found, _ = placed.read_chunk(placed.empty_cache(policy, n, whole.shape[1]), whole, n, prefill.routing)
    return across.fetch(found)


def _chunked(give: prefill.Give, placed: PlacedModel, policy: CachePolicy, tokens: np.ndarray) -> jax.Array:
    """Join what a function gives of all tokens i32[B, T]: [B, T, ...]."""
    batch, length = tokens.shape
    n = np.full(batch, length)
    _, parts, _ = placed.prefill(placed.empty_cache(policy, n, length), tokens, n, give)
    return across.readable(jnp.concatenate(parts, axis=1)[:, :length])
