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
from jaxinfer.cache.contract import check_capacity
from jaxinfer.errors import InputError, shown
from jaxinfer.network.transformer import Output, Transformer, logits_of
from jaxinfer.runtime.compiled import program
from jaxinfer.runtime.placed import chunks
from jaxinfer.runtime.prefill import prefill

ROWS = 64  # tokens whose logits are held at once: a window's would be gigabytes for a large vocabulary
MOST_NLL = 709.0  # nats, of which exp is a float


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean cross-entropy, and what it was taken over."""

    value: float
    windows: int
    tokens: int  # labels scored
    nll: float  # mean cross-entropy, nats per label
    window: int  # tokens of the text in a window
    stride: int  # tokens from the start of a window to that of the next
    bos: bool  # whether each window stands after a BOS token

    @property
    def protocol(self) -> str:
        """Say what the windows were: figures of another protocol do not compare."""
        return f"windows of {self.window} {'after' if self.bos else 'without'} BOS, stride {self.stride}"


def perplexity(
    model: Model,
    tokens: Sequence[int],
    window: int = 2048,
    max_windows: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    policy: CachePolicy | None = None,
    stride: int | None = None,
    bos: bool | None = None,
) -> Perplexity:
    """Compute the perplexity of a text, given as the tokens of the whole of it.

    The text is cut into windows of `window` tokens, of which one begins every `stride` tokens, and a tail that fills
    none is dropped. Each window stands alone. stride: default `window`, disjoint windows (the protocol of GPTQ and
    AWQ); with less of it windows overlap, and each token is scored once, in the first window that holds it, where its
    context is the longest (transformers, "Perplexity of fixed-length models").

    bos: whether every window stands after a BOS token, as a text does on which the model was trained; its first token
    is scored then, too. Without one the first token of the first window, and of each disjoint one, is no label.
    Default: where the model's tokenizer puts BOS before a text. Without it the perplexity of Gemma 3 270M is several
    times as high, in windows of 256.

    Comparable between runs with the same `protocol` and tokenizer only. `max_windows`: only the first so many.
    `progress(done, total, running)` is called after each window with the perplexity so far. policy: what the tokens of
    a window are kept in; default: the exact one that suits the model.

    Raises InputError for a window below 2 or beyond the model's context, a stride beyond the window, fewer tokens than
    one window, and a model whose logits are no numbers.
    """
    if bos not in (None, True, False):
        raise InputError(f"bos={shown(bos)} must be True, False, or None: as the tokenizer has it")
    first = bos_of(model) if bos or bos is None else None
    if bos and first is None:
        raise InputError(f"bos=True: {model.name} has no BOS token; leave it out")
    if bos is None and not adds_bos(model):
        first = None
    try:
        if isinstance(tokens, str):
            raise TypeError
        tokens = list(tokens)
    except TypeError:
        raise InputError(f"tokens={shown(tokens)} must be the ids of a text: model.tokenizer.encode(text)") from None
    if first is not None and tokens[:1] == [first]:
        tokens = tokens[1:]  # it stands before every window, the first one too
    stride = window if stride is None else stride
    count = _count(model, len(tokens), window, stride, max_windows)
    windows = [model.encode(tokens[i * stride : i * stride + window], f"window {i}") for i in range(count)]
    total, labels = 0.0, 0
    for done, ids in enumerate(windows, start=1):
        given = ids if first is None else [first, *ids]
        nll = token_nll(model, np.array([given], np.int32), policy=policy)[0]
        scored = nll if done == 1 else nll[-stride:]
        if np.isnan(scored).any():
            where = f"window {done - 1} of the text"
            raise InputError(
                f"{model.name}: its logits are no numbers in {where}: are there NaN or inf in the weights?"
            )
        total, labels = total + float(scored.sum()), labels + len(scored)
        if progress:
            progress(done, count, _exp(total / labels))
    return Perplexity(_exp(total / labels), count, labels, total / labels, window, stride, first is not None)


def bos_of(model: Model) -> int | None:
    """Give the token that begins a text of this model; None if it has none."""
    return getattr(model.tokenizer, "bos_id", None)


def adds_bos(model: Model) -> bool:
    """Tell whether the model's tokenizer puts BOS before a text."""
    first = bos_of(model)
    return first is not None and list(model.tokenizer.encode("a")[:1]) == [first]


def _exp(nll: float) -> float:
    """Compute exp, infinite where it is beyond all numbers."""
    return math.exp(nll) if nll < MOST_NLL else math.inf


def _count(model: Model, length: int, window: int, stride: int, max_windows: int | None) -> int:
    """Count the windows to score. Raises InputError if it cannot be done."""
    for name, value, least in (("window", window, 2), ("stride", stride, 1), ("max_windows", max_windows, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InputError(f"{name}={shown(value)} must be a whole number, {least} or above")
    if stride > window:
        raise InputError(f"stride={stride} must be at most the window of {window}: tokens between them would be lost")
    limit = model.config.max_positions
    if window > limit:
        raise InputError(f"window={window} is longer than the context of {model.name}: {limit} tokens")
    if length < window:
        raise InputError(f"tokens: {length} of them, fewer than one window of {window}; use a smaller window")
    count = 1 + (length - window) // stride
    return count if max_windows is None else min(count, max_windows)


def token_nll(
    model: Model,
    ids: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
    policy: CachePolicy | None = None,
) -> np.ndarray:
    """Compute the cross-entropy of ids int32[B, W] in nats, of every token but each row's first: float64[B, W-1].

    `progress(done, total)` is called now and then with the number of tokens scored in each row.
    """
    placed, (batch, length) = model.placed, (ids.shape[0], ids.shape[1] - 1)
    policy, lengths = policy or Window(), np.full(batch, length)
    check_capacity(policy, length, f"a window of {length + 1} tokens needs")
    policy.check_room(model.config, lengths, lengths + 1)
    cache = placed.empty_cache(policy, lengths, length)
    parts: list[np.ndarray] = []
    done = 0
    for width in chunks(length):
        size = min(width, length - done)
        pair = np.zeros((2, batch, width), np.int32)
        pair[:, :, :size] = ids[:, done : done + size], ids[:, done + 1 : done + size + 1]
        inputs, labels = (placed.place(x, "batch", "tokens") for x in pair)
        n = placed.place(np.full(batch, size, np.int32), "batch")
        args = (placed.params, cache, inputs, n, labels, n)
        cache, nll = program(prefill, (placed.model, cross_entropy), args, carry=1, layout=placed.layout)[0].call(*args)
        parts.append(np.asarray(nll, np.float64)[:, :size])
        done += size
        if progress:
            progress(done, length)
    return np.concatenate(parts, axis=1)


def cross_entropy(model: Transformer, params: Any, output: Output, labels: jax.Array, n: jax.Array) -> jax.Array:
    """Give, after `prefill`, the cross-entropy of n[B] labels i32[B, T]: float32[B, T], zero after them.

    Logits exist for `ROWS` tokens of a row at a time.
    """
    hidden = output.hidden
    counted = jnp.arange(labels.shape[1]) < n[:, None]

    def block(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        hidden, labels, counted = part
        logits = logits_of(model, params, hidden)
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        return jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)

    parts = jax.tree.map(_blocks, (hidden, labels, counted))
    return jnp.moveaxis(jax.lax.map(block, parts), 0, 1).reshape(labels.shape)


def _blocks(x: jax.Array) -> jax.Array:
    """Map [B, T, ...] -> [T / rows, B, rows, ...]; T is a power of two."""
    rows = min(ROWS, x.shape[1])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, rows, *x.shape[2:]), 1, 0)
