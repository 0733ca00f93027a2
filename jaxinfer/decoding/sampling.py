"""From logits to the distribution that is sampled: penalties, temperature, truncation.

All settings are traced arrays, one value a row, so that no setting ever retraces, and one `distribution` serves both
proposal and acceptance. Where the usual implementation sorts the vocabulary, this one looks for the threshold that a
sort would give, bit by bit: 32 sums over the vocabulary instead of a sort, and exact (ties at the threshold all stay).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.errors import InputError

Setting = float | Sequence[float]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Each field is a number, or a list with one number for each row.

    Applied in the order of the fields below, from the penalties on, as transformers does: penalties, temperature,
    top-k, top-p, min-p. Raises InputError for a value out of range.
    """

    temperature: Setting = 1.0  # 0: the most likely token
    top_k: int | Sequence[int] = 0  # keep the k most likely tokens (Fan et al. 2018); 0: all
    top_p: Setting = 1.0  # keep the smallest set with this much mass (nucleus, Holtzman et al. 2020)
    min_p: Setting = 0.0  # keep tokens at least this likely relative to the likeliest (Nguyen et al. 2024)
    repetition_penalty: Setting = 1.0  # divides positive logits of seen tokens, prompt included (CTRL, Keskar 2019)
    presence_penalty: Setting = 0.0  # subtracted from the logits of generated tokens, once
    frequency_penalty: Setting = 0.0  # subtracted from the logits of generated tokens, as often as they occurred

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            low, high, rule = RANGES[field.name]
            for x in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(x, bool) or not isinstance(x, (int, float, np.number)) or not low <= x <= high:
                    raise InputError(f"{field.name}={x!r} must be {rule}")
                if field.name == "top_k" and x != int(x):
                    raise InputError(f"{field.name}={x!r} must be {rule}")

    def rows(self, name: str, batch: int) -> np.ndarray:
        """One field as an array with a value for each row. Raises InputError if the lengths differ."""
        value = getattr(self, name)
        if isinstance(value, tuple) and len(value) != batch:
            raise InputError(f"{name} has {len(value)} values for {batch} prompts: give one number, or one a prompt")
        return np.broadcast_to(np.asarray(value, np.int32 if name == "top_k" else np.float32), (batch,))


_HUGE = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).tiny)
RANGES = {
    "temperature": (0.0, _HUGE, "0 (the most likely token) or a positive number"),
    "top_k": (0, 2**31 - 1, "a whole number, 0 (no limit) or above"),
    "top_p": (_TINY, 1.0, "above 0 and at most 1"),
    "min_p": (0.0, 1.0, "between 0 and 1"),
    "repetition_penalty": (_TINY, _HUGE, "above 0 (1: none)"),
    "presence_penalty": (-_HUGE, _HUGE, "a finite number (0: none)"),
    "frequency_penalty": (-_HUGE, _HUGE, "a finite number (0: none)"),
}


@struct.dataclass
class SamplingState:
    """Settings f32[B] (top_k i32[B]) and what the penalties have to know."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    in_prompt: jax.Array  # bool[B, V]
    counts: jax.Array  # i32[B, V]: occurrences among the generated tokens

    @classmethod
    def of(cls, sampling: Sampling, prompts: Sequence[Sequence[int]], vocab_size: int) -> "SamplingState":
        """The state behind the prompts, still on the host (numpy)."""
        batch = len(prompts)
        in_prompt = np.zeros((batch, vocab_size), bool)
        for row, prompt in enumerate(prompts):
            in_prompt[row, np.asarray(prompt)] = True
        fields: dict[str, Any] = {name: sampling.rows(name, batch) for name in RANGES}
        fields |= {"in_prompt": in_prompt, "counts": np.zeros((batch, vocab_size), np.int32)}
        return cls(**fields)


def observe(state: SamplingState, emit: jax.Array, n: jax.Array) -> SamplingState:
    """Count the first n[B] of the emitted tokens i32[B, E]."""
    batch, width = emit.shape
    rows = jnp.arange(batch)[:, None]
    counted = (jnp.arange(width) < n[:, None]).astype(jnp.int32)
    return dataclasses.replace(state, counts=state.counts.at[rows, emit].add(counted, mode="drop"))


def penalize(state: SamplingState, logits: jax.Array, draft: jax.Array, path: jax.Array | None = None) -> jax.Array:
    """Penalties on logits[B, T, V], at each position for the draft tokens i32[B, T] up to it as well.

    draft[:, 0] is the pending token, which is counted already. path bool[B, T, T]: which columns stand before each
    column or are it, if the draft is a tree.
    """

    def apply(logits):
        vocab = logits.shape[-1]
        if path is None:
            ahead = jnp.cumsum(jax.nn.one_hot(draft, vocab, dtype=jnp.int32).at[:, 0].set(0), axis=1)
        else:
            guesses = jax.nn.one_hot(draft, vocab).at[:, 0].set(0.0)
            ahead = (path.astype(jnp.float32) @ guesses).astype(jnp.int32)
        counts = state.counts[:, None] + ahead
        seen = state.in_prompt[:, None] | (counts > 0)
        repetition = _column(state.repetition_penalty)
        scaled = jnp.where(logits > 0, logits / repetition, logits * repetition)
        logits = jnp.where(seen, scaled, logits)
        logits = logits - _column(state.presence_penalty) * (counts > 0)
        return logits - _column(state.frequency_penalty) * counts

    used = (state.repetition_penalty != 1) | (state.presence_penalty != 0) | (state.frequency_penalty != 0)
    return jax.lax.cond(jnp.any(used), apply, lambda logits: logits, logits)


def distribution(state: SamplingState, logits: jax.Array) -> jax.Array:
    """Penalized logits[B, T, V] -> probabilities float32[B, T, V] after temperature, top-k, top-p and min-p.

    A row at temperature 0 gives all its mass to the most likely token.
    """
    best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.float32)
    greedy = _column(state.temperature) == 0
    below = logits - jnp.max(logits, axis=-1, keepdims=True)  # at most 0: no temperature makes the largest overflow
    scaled = below / jnp.where(greedy, 1.0, _column(state.temperature))
    scaled = jax.lax.cond(jnp.any(state.top_k > 0), lambda x: keep_top_k(x, state.top_k[:, None]), lambda x: x, scaled)
    probs = jax.nn.softmax(scaled, axis=-1)
    probs = jax.lax.cond(jnp.any(state.top_p < 1), lambda p: keep_top_p(p, state.top_p[:, None]), lambda p: p, probs)
    probs = jnp.where(probs >= _column(state.min_p) * jnp.max(probs, axis=-1, keepdims=True), probs, 0.0)
    return jnp.where(greedy, best, probs / jnp.sum(probs, axis=-1, keepdims=True))


def keep_top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    """logits[..., V] with all but the k[...] largest at -inf; k = 0 keeps all."""
    order = _ordered_bits(logits)
    k = jnp.where(k > 0, k, logits.shape[-1])
    threshold = _largest_threshold(lambda t: jnp.sum(order >= t[..., None], axis=-1) >= k, order.shape[:-1])
    return jnp.where(order >= threshold[..., None], logits, -jnp.inf)


def keep_top_p(probs: jax.Array, p: jax.Array) -> jax.Array:
    """probs[..., V] with zeros outside the smallest set of likeliest tokens whose mass reaches p[...]."""
    order = _ordered_bits(probs)

    def reaches(t):
        return jnp.sum(jnp.where(order >= t[..., None], probs, 0.0), axis=-1) >= p

    kept = jnp.where(order >= _largest_threshold(reaches, order.shape[:-1])[..., None], probs, 0.0)
    return jnp.where(p[..., None] >= 1, probs, kept)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """float32 -> uint32 in the same order, -0.0 with 0.0."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x).astype(jnp.float32), jnp.uint32)
    return bits ^ jnp.where(bits >> 31 == 1, jnp.uint32(0xFFFFFFFF), jnp.uint32(0x80000000))


def _largest_threshold(holds: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The largest uint32 for which `holds`, which is true below some threshold and false above it."""

    def set_bit(i, threshold):
        candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, threshold)

    return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros(shape, jnp.uint32))


def _column(x: jax.Array) -> jax.Array:
    return x[:, None, None]
