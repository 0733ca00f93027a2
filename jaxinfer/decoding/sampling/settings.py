"""From logits to the distribution that is sampled: settings, their state on the device, temperature and truncation.

All settings are traced arrays, one value a row, so that no setting ever retraces, and one `distribution` serves both
proposal and acceptance. There are two programs at most: with what RARE settings take, and without. What changes logits
by the text so far is in `penalties`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.decoding.sampling.truncation import (
    eta_cutoff,
    keep_likely,
    keep_top_k,
    keep_top_n_sigma,
    keep_top_p,
    keep_typical,
)
from jaxinfer.errors import InputError, shown

Setting = float | Sequence[float]
Count = int | Sequence[int]


@dataclass(frozen=True)
class Sampling:
    """The way to draw the next token. Each field is a number, or a list with one number for each row.

    `logit_bias` and `bad_words` hold for all rows. First comes what changes logits: logit_bias, the penalties,
    no_repeat_ngram, bad_words. Then temperature, top-n-sigma, top-k, top-p, min-p, typical, epsilon, eta, mirostat:
    transformers' order, and each sees what the ones before it have left. Raises InputError for a value out of range.
    """

    temperature: Setting = 1.0  # 0: the most likely token
    top_k: Count = 0  # keep the k most likely tokens (Fan et al. 2018); 0: all
    top_p: Setting = 1.0  # keep the smallest set with this much mass (nucleus, Holtzman et al. 2020)
    min_p: Setting = 0.0  # keep tokens at least this likely relative to the likeliest (Nguyen et al. 2024)
    typical_p: Setting = 1.0  # keep this much mass whose surprise is nearest the entropy (Meister et al. 2022)
    epsilon: Setting = 0.0  # drop tokens less likely than this (Hewitt et al. 2022)
    eta: Setting = 0.0  # the same, and less strict where the entropy is high (Hewitt et al. 2022)
    top_n_sigma: Setting = 0.0  # keep logits within n standard deviations of the largest (Tang et al. 2024); 0: all
    mirostat_tau: Setting = 0.0  # hold the surprise of a token at this many bits (mirostat 2, Basu et al. 2021); 0: off
    mirostat_eta: Setting = 0.1  # how fast mirostat corrects its bound
    repetition_penalty: Setting = 1.0  # divides positive logits of seen tokens, prompt included (CTRL, Keskar 2019)
    presence_penalty: Setting = 0.0  # subtracted from the logits of generated tokens, once
    frequency_penalty: Setting = 0.0  # subtracted from the logits of generated tokens, as often as they occurred
    no_repeat_ngram: Count = 0  # no n tokens in a row come twice, prompt included (Paulus et al. 2018); 0: off
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()  # token id -> added to its logit; -inf bans it
    bad_words: Iterable[Sequence[int]] = ()  # sequences of token ids that are never completed, stop tokens too

    def __post_init__(self):
        for name, (low, high, rule) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, list) or getattr(value, "ndim", 0) == 1:
                value = tuple(value)
                object.__setattr__(self, name, value)
            for x in value if isinstance(value, tuple) else (value,):
                if not _is_number(x) or not low <= x <= high or (0 < x < _TINY):
                    raise InputError(f"{name}={shown(x)} must be {rule}")
                if name in WHOLE and x != int(x):
                    raise InputError(f"{name}={shown(x)} must be {rule}")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        object.__setattr__(self, "bad_words", _checked_words(self.bad_words))

    def rows(self, name: str, batch: int) -> np.ndarray:
        """Give one field as an array with a value for each row. Raises InputError if the lengths differ."""
        value = getattr(self, name)
        if isinstance(value, tuple) and len(value) != batch:
            raise InputError(f"{name} has {len(value)} values for {batch} prompts: give one number, or one a prompt")
        return np.broadcast_to(np.asarray(value, np.int32 if name in WHOLE else np.float32), (batch,))

    def check_leaves(self, vocab_size: int) -> None:
        """Raise InputError if every token is banned, by `logit_bias` and by `bad_words` of one token.

        A step of which nothing is left would draw as if nothing were banned. (It does so among what a constraint
        leaves.)
        """
        bias: Any = self.logit_bias
        words: Any = self.bad_words
        banned = {token for token, value in bias if value == -np.inf} | {word[0] for word in words if len(word) == 1}
        if len(banned) >= vocab_size and banned >= set(range(vocab_size)):
            raise InputError("logit_bias and bad_words ban every token: leave at least one")

    def check_width(self, width: int) -> None:
        """Raise InputError if a method that scores this many tokens a step cannot keep to these settings.

        Mirostat's bound moves with every token: within a draft each would need the bound that those before it left.
        """
        if width > 1 and np.any(np.asarray(self.mirostat_tau) > 0):
            raise InputError(
                f"mirostat_tau={self.mirostat_tau!r} needs a method that scores one token a step, such as Sample; "
                f"this one scores {width}"
            )


_HUGE = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).tiny)
WHOLE = ("top_k", "no_repeat_ngram")
RANGES = {
    "temperature": (0.0, _HUGE, "0 (the most likely token) or a positive number, at least 1.2e-38"),
    "top_k": (0, 2**31 - 1, "a whole number, 0 (no limit) or above"),
    "top_p": (_TINY, 1.0, "above 0 and at most 1"),
    "min_p": (0.0, 1.0, "between 0 and 1"),
    "typical_p": (_TINY, 1.0, "above 0 and at most 1 (all)"),
    "epsilon": (0.0, 1.0, "between 0 (off) and 1"),
    "eta": (0.0, 1.0, "between 0 (off) and 1"),
    "top_n_sigma": (0.0, _HUGE, "0 (off) or a positive number of standard deviations"),
    "mirostat_tau": (0.0, _HUGE, "0 (off) or a positive number of bits"),
    "mirostat_eta": (0.0, _HUGE, "0 or a positive number"),
    "repetition_penalty": (_TINY, _HUGE, "above 0 (1: none)"),
    "presence_penalty": (-_HUGE, _HUGE, "a finite number (0: none)"),
    "frequency_penalty": (-_HUGE, _HUGE, "a finite number (0: none)"),
    "no_repeat_ngram": (0, 2**31 - 1, "a whole number of tokens, 0 (off) or above"),
}
RARE = ("typical_p", "epsilon", "eta", "top_n_sigma", "mirostat_tau", "no_repeat_ngram", "logit_bias", "bad_words")
LEAST_BIASES, LEAST_WORDS, LEAST_LENGTH = 8, 8, 4  # of padded settings: up to these, all share a program


def _checked_bias(bias: Any) -> tuple[tuple[int, float], ...]:
    pairs = bias.items() if isinstance(bias, Mapping) else bias
    try:
        pairs = [(token, float(value) if _is_number(value) else None) for token, value in pairs]
        if any(value is None for _, value in pairs):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"logit_bias={shown(bias)} must map token ids to numbers, such as {{50: -2.5}}") from None
    seen: set[int] = set()
    for token, value in pairs:
        if not _is_token(token):
            raise InputError(f"logit_bias names token {shown(token)}: a token id is a whole number from 0")
        if not -_HUGE <= value <= _HUGE and value != -np.inf:
            raise InputError(f"logit_bias of token {token} is {value!r}: it must be a finite number, or -inf to ban it")
        if token in seen:
            raise InputError(f"logit_bias names token {token} twice")
        seen.add(token)
    return tuple((int(token), value) for token, value in pairs)


def _checked_words(words: Any) -> tuple[tuple[int, ...], ...]:
    try:
        words = tuple(tuple(word) for word in words)
    except TypeError:
        raise InputError(
            f"bad_words={shown(words)} must be a list of lists of token ids, such as [[50, 7], [9]]"
        ) from None
    for word in words:
        if not word or not all(map(_is_token, word)):
            raise InputError(f"bad_words holds {shown(list(word))}: it must hold lists of at least one token id from 0")
    return tuple(tuple(map(int, word)) for word in words)


def _is_token(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool) and int(x) >= 0


def _is_number(x: Any) -> bool:
    """Tell whether it is a real number, of Python, numpy or JAX, and no truth value."""
    if getattr(x, "ndim", 1) == 0:
        return x.dtype.kind in "iuf"
    return isinstance(x, (int, float)) and not isinstance(x, bool)


NEUTRAL = Sampling()


@struct.dataclass
class SamplingState:
    """Settings f32[B] (those in WHOLE i32[B]), and what is known of the text so far."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    typical_p: jax.Array
    epsilon: jax.Array
    eta: jax.Array
    top_n_sigma: jax.Array
    mirostat_tau: jax.Array
    mirostat_eta: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    no_repeat_ngram: jax.Array
    bias_tokens: jax.Array  # i32[B, K], padded with V
    bias_values: jax.Array  # f32[B, K]
    bad_words: jax.Array  # i32[B, W, L], each padded with -1 at its end
    in_prompt: jax.Array  # bool[B, V]
    counts: jax.Array  # i32[B, V]: occurrences among the generated tokens
    mirostat_mu: jax.Array  # f32[B]: the most surprise that a token may have, in bits
    rare: bool = struct.field(pytree_node=False)  # whether what RARE settings take is compiled at all

    @classmethod
    def of(cls, sampling: Sampling, prompts: Sequence[Sequence[int]], vocab_size: int) -> "SamplingState":
        """Make the state after the prompts, still on the host (numpy). Raises InputError for an unknown token id."""
        batch = len(prompts)
        in_prompt = np.zeros((batch, vocab_size), bool)
        for row, prompt in enumerate(prompts):
            in_prompt[row, np.asarray(prompt)] = True
        fields: dict[str, Any] = {name: sampling.rows(name, batch) for name in RANGES}
        fields |= _padded(sampling, batch, vocab_size)
        fields |= {"in_prompt": in_prompt, "counts": np.zeros((batch, vocab_size), np.int32)}
        rare = any(getattr(sampling, name) != getattr(NEUTRAL, name) for name in RARE)
        return cls(**fields, mirostat_mu=2 * fields["mirostat_tau"], rare=rare)


def _padded(sampling: Sampling, batch: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Pad the settings that are lists, each to a power of two, and repeat them for every row."""
    bias: Any = sampling.logit_bias
    words: Any = sampling.bad_words
    for name, ids in (("logit_bias", [token for token, _ in bias]), ("bad_words", [x for word in words for x in word])):
        if max(ids, default=0) >= vocab_size:
            raise InputError(f"{name} holds token id {shown(max(ids))}: ids go from 0 to {vocab_size - 1}")
    biases = bucket(len(bias), LEAST_BIASES)
    tokens, values = np.full(biases, vocab_size, np.int32), np.zeros(biases, np.float32)
    tokens[: len(bias)] = [token for token, _ in bias]
    values[: len(bias)] = [value for _, value in bias]
    longest = bucket(max(map(len, words), default=0), LEAST_LENGTH)
    padded = np.full((bucket(len(words), LEAST_WORDS), longest), -1, np.int32)
    for row, word in enumerate(words):
        padded[row, : len(word)] = word
    arrays = {"bias_tokens": tokens, "bias_values": values, "bad_words": padded}
    return {name: np.broadcast_to(x, (batch, *x.shape)) for name, x in arrays.items()}


def bucket(n: int, least: int = 1) -> int:
    """Give the smallest power of two that holds n, and at least `least`."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def observe(state: SamplingState, emit: jax.Array, n: jax.Array, surprise: jax.Array | None = None) -> SamplingState:
    """Count the first n[B] of the emitted tokens i32[B, E], and correct mirostat's bound by the surprise of the first.

    surprise f32[B] in bits, under the distribution that the token was drawn from; None leaves the bound as it is.
    """
    batch, width = emit.shape
    rows = jnp.arange(batch)[:, None]
    counted = (jnp.arange(width) < n[:, None]).astype(jnp.int32)
    state = dataclasses.replace(state, counts=state.counts.at[rows, emit].add(counted, mode="drop"))
    if surprise is None:
        return state
    corrected = state.mirostat_mu - state.mirostat_eta * (surprise - state.mirostat_tau)
    moves = (state.mirostat_tau > 0) & (n > 0)
    return dataclasses.replace(state, mirostat_mu=jnp.where(moves, corrected, state.mirostat_mu))


def distribution(state: SamplingState, logits: jax.Array) -> jax.Array:
    """Map penalized logits[B, T, V] -> probabilities float32[B, T, V] after temperature and every truncation.

    A row at temperature 0 gives all its mass to the most likely token. What no row asks for is not computed.
    """
    best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.float32)
    greedy = state.temperature[:, None, None] == 0
    below = logits - jnp.max(logits, axis=-1, keepdims=True)  # at most 0: no temperature makes the largest overflow
    if state.rare:
        n_sigma = state.top_n_sigma[:, None]
        below = jax.lax.cond(jnp.any(n_sigma > 0), lambda x: keep_top_n_sigma(x, n_sigma), lambda x: x, below)
    scaled = below / jnp.where(greedy, 1.0, state.temperature[:, None, None])
    scaled = jax.lax.cond(jnp.any(state.top_k > 0), lambda x: keep_top_k(x, state.top_k[:, None]), lambda x: x, scaled)
    probs = jax.nn.softmax(scaled, axis=-1)
    probs = jax.lax.cond(jnp.any(state.top_p < 1), lambda p: keep_top_p(p, state.top_p[:, None]), lambda p: p, probs)
    probs = jnp.where(probs >= state.min_p[:, None, None] * jnp.max(probs, axis=-1, keepdims=True), probs, 0.0)
    if state.rare:
        used = (state.typical_p < 1) | (state.epsilon > 0) | (state.eta > 0) | (state.mirostat_tau > 0)
        probs = jax.lax.cond(jnp.any(used), lambda p: _keep_by_surprise(state, p), lambda p: p, probs)
    return jnp.where(greedy, best, _normalize(probs))


def _keep_by_surprise(state: SamplingState, probs: jax.Array) -> jax.Array:
    """Apply the truncations that ask how likely a token is in itself, not only next to others, each renormalized."""
    probs, mass = _normalize(probs), state.typical_p[:, None]
    probs = jax.lax.cond(jnp.any(mass < 1), lambda p: _normalize(keep_typical(p, mass)), lambda p: p, probs)
    probs = _normalize(keep_likely(probs, state.epsilon[:, None]))
    probs = _normalize(keep_likely(probs, eta_cutoff(probs, state.eta[:, None])))
    return keep_likely(probs, jnp.where(state.mirostat_tau > 0, jnp.exp2(-state.mirostat_mu), 0.0)[:, None])


def _normalize(probs: jax.Array) -> jax.Array:
    return probs / jnp.sum(probs, axis=-1, keepdims=True)
