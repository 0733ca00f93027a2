"""Quality of a model on text: perplexity."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.api import Model
from jaxinfer.cache import CachePolicy, Window
from jaxinfer.cache.store import Cache
from jaxinfer.engine import forward, logits_of, positions_of
from jaxinfer.errors import InputError
from jaxinfer.model import Transformer
from jaxinfer.programs import program
from jaxinfer.target import chunks

ROWS = 64  # tokens whose logits are held at once: a window's would be gigabytes for a large vocabulary


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean cross-entropy, and what it was taken over."""

    value: float
    windows: int
    tokens: int  # labels scored: window - 1 in each window
    nll: float  # mean cross-entropy, nats per label


def perplexity(
    model: Model,
    tokens: Sequence[int],
    window: int = 2048,
    max_windows: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    policy: CachePolicy | None = None,
) -> Perplexity:
    """Perplexity of a text, given as the tokens of the whole of it (the protocol of GPTQ and AWQ).

    The tokens are cut into disjoint windows and the tail is dropped. Each window stands alone: its first token is no
    label, each other one is predicted from those before it in the window. Comparable between runs with the same
    window and the same tokenizer only. `max_windows`: only the first so many. `progress(done, total, running)` is
    called behind each window with the perplexity so far. policy: what the tokens of a window are kept in; default: the
    exact one that suits the model.

    Raises InputError for a window below 2 or beyond the model's context, and for fewer tokens than one window.
    """
    count = _count(model, len(tokens), window, max_windows)
    windows = [model.encode(tokens[i * window : (i + 1) * window], f"window {i}") for i in range(count)]
    total = 0.0
    for done, ids in enumerate(windows, start=1):
        total += float(token_nll(model, np.array([ids], np.int32), policy=policy).sum())
        if progress:
            progress(done, count, math.exp(total / (done * (window - 1))))
    labels = count * (window - 1)
    return Perplexity(math.exp(total / labels), count, labels, total / labels)


def _count(model: Model, length: int, window: int, max_windows: int | None) -> int:
    """How many windows there are to score. Raises InputError if it cannot be done."""
    for name, value, least in (("window", window, 2), ("max_windows", max_windows, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InputError(f"{name}={value!r} must be a whole number, {least} or above")
    limit = model.config.max_positions
    if window > limit:
        raise InputError(f"window={window} is longer than the context of {model.name}: {limit} tokens")
    if length < window:
        raise InputError(f"tokens: {length} of them, fewer than one window of {window}; use a smaller window")
    count = length // window
    return count if max_windows is None else min(count, max_windows)


def token_nll(
    model: Model,
    ids: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
    policy: CachePolicy | None = None,
) -> np.ndarray:
    """Cross-entropy of ids int32[B, W] in nats, of every token but the first of each row: float64[B, W-1].

    `progress(done, total)` is called now and then with the number of tokens scored in each row.
    """
    target, (batch, length) = model.target, (ids.shape[0], ids.shape[1] - 1)
    policy, lengths = policy or Window(), np.full(batch, length)
    if hasattr(policy, "check_room"):
        policy.check_room(model.config, lengths, lengths + 1)
    cache = target.empty_cache(policy, lengths, length)
    parts: list[np.ndarray] = []
    done = 0
    for width in chunks(length):
        size = min(width, length - done)
        pair = np.zeros((2, batch, width), np.int32)
        pair[:, :, :size] = ids[:, done : done + size], ids[:, done + 1 : done + size + 1]
        inputs, labels = (target.place(x, "batch", "tokens") for x in pair)
        n = target.place(np.full(batch, size, np.int32), "batch")
        args = (target.params, cache, inputs, labels, n)
        cache, nll = program(cross_entropy, (target.model,), args, carry=1, layout=target.layout)[0].call(*args)
        parts.append(np.asarray(nll, np.float64)[:, :size])
        done += size
        if progress:
            progress(done, length)
    return np.concatenate(parts, axis=1)


def cross_entropy(
    model: Transformer, params: Any, cache: Cache, tokens: jax.Array, labels: jax.Array, n: jax.Array
) -> tuple[Cache, jax.Array]:
    """Commit the first n[B] of tokens i32[B, T], and give the cross-entropy of their labels i32[B, T]: float32[B, T].

    Zero behind the first n. Logits exist for `ROWS` tokens of a row at a time.
    """
    output = forward(model, params, tokens, positions_of(cache, tokens), cache, n=n)
    cache = cache.policy.commit(cache, output.fresh, None, n, output.stats)
    return cache, of_labels(model, params, output.hidden, labels, n)


def of_labels(model: Transformer, params: Any, hidden: jax.Array, labels: jax.Array, n: jax.Array) -> jax.Array:
    """Cross-entropy of the first n[B] of labels i32[B, T], from hidden[B, T, D]: float32[B, T], zero behind them."""
    counted = jnp.arange(labels.shape[1]) < n[:, None]

    def block(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        hidden, labels, counted = part
        logits = logits_of(model, params, hidden)
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        return jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)

    parts = jax.tree.map(_blocks, (hidden, labels, counted))
    return jnp.moveaxis(jax.lax.map(block, parts), 0, 1).reshape(labels.shape)


def _blocks(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [T / rows, B, rows, ...]; T is a power of two."""
    rows = min(ROWS, x.shape[1])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, rows, *x.shape[2:]), 1, 0)
