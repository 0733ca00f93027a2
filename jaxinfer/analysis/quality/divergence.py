"""The distance of a model's distributions from another's on the same texts: KL divergence and agreement."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.analysis.quality.continuations import Progress
from jaxinfer.api import Model
from jaxinfer.cache import CachePolicy
from jaxinfer.cache.contract import check_capacity
from jaxinfer.decoding.sampling.settings import bucket
from jaxinfer.errors import InputError, shown
from jaxinfer.runtime import prefill

WIDTH = 64  # tokens of a row whose logits are held at once
HELD = 1 << 26  # bytes of logits of one model that are held at once


@dataclass(frozen=True)
class Divergence:
    """Mean KL(first || second) in nats a token, the share of tokens whose likeliest is the same, and their number."""

    kl: float
    agreement: float
    tokens: int


def divergence(
    model_a: Model,
    model_b: Model,
    tokens: Sequence[Sequence[int]],
    policy_a: CachePolicy | None = None,
    policy_b: CachePolicy | None = None,
    starts: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Compare the distributions of two models on texts, lists of token ids: both read what stands there.

    Mean over positions of sum_v p_a(v) log(p_a(v) / p_b(v)), from float32 logits, and how often both have the same
    likeliest token. A position is counted if the token after it stands in the text; with `starts`, if that token is the
    starts[i]-th of text i or a later one, such as the first after a prompt. policy_a, policy_b: what each keeps its
    tokens in; default, the exact one that suits it. Logits exist for some tokens at a time, whatever the texts.
    `progress(done, total)` is called with texts. Raises InputError for models of different vocabularies, texts that are
    none, and logits that are no numbers.
    """
    if isinstance(tokens, str):
        raise InputError(f"tokens={shown(tokens)} must be lists of token ids: [model.tokenizer.encode(text)]")
    if model_a.config.vocab_size != model_b.config.vocab_size:
        sizes = f"{model_a.config.vocab_size} and {model_b.config.vocab_size}"
        raise InputError(f"{model_a.name} and {model_b.name} have vocabularies of different sizes: {sizes}")
    texts = [model_b.encode(model_a.encode(text, f"text {i}"), f"text {i}") for i, text in enumerate(tokens)]
    firsts = [1] * len(texts) if starts is None else [max(1, start) for start in starts]
    if len(firsts) != len(texts):
        raise InputError(f"starts: {len(firsts)} of them for {len(texts)} texts")
    rows = max(1, min(8, HELD // (4 * WIDTH * model_a.config.vocab_size)))
    kl, same, count = 0.0, 0, 0
    for at in range(0, len(texts), rows):
        part, begin = texts[at : at + rows], np.array(firsts[at : at + rows])
        lengths = np.array([len(text) for text in part])
        both = zip(_logits(model_a, policy_a, part), _logits(model_b, policy_b, part), strict=True)
        for chunk, (a, b) in enumerate(both):
            places = chunk * WIDTH + np.arange(WIDTH)[None] + 1  # of the tokens that are spoken about
            counted = (places >= begin[:, None]) & (places < lengths[:, None])
            each, agree = (np.asarray(x) for x in _compare(jnp.asarray(a), jnp.asarray(b)))
            if np.isnan(each[counted]).any():
                raise InputError(
                    f"{model_a.name}, {model_b.name}: logits are no numbers: are there NaN in the weights?"
                )
            kl += float(each[counted].astype(np.float64).sum())
            same, count = same + int(agree[counted].sum()), count + int(counted.sum())
        if progress:
            progress(min(at + rows, len(texts)), len(texts))
    if not count:
        raise InputError("tokens: there is no token to compare; a text has at least two")
    return Divergence(kl / count, same / count, count)


def _logits(model: Model, policy: CachePolicy | None, texts: Sequence[Sequence[int]]) -> Iterator[Any]:
    """Give the logits of texts, `WIDTH` tokens of each at a time: float32[B, WIDTH, V]."""
    placed, policy = model.placed, model.default_policy(policy)
    lengths = np.array([len(text) for text in texts], np.int32)
    longest = int(lengths.max())
    check_capacity(policy, longest, "the longest text needs")
    policy.check_room(model.config, lengths, lengths)
    tokens = np.zeros((len(texts), longest + WIDTH), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    cache = placed.empty_cache(policy, lengths, bucket(longest + WIDTH, WIDTH))
    for start in range(0, longest, WIDTH):
        n = np.clip(lengths - start, 0, WIDTH)
        cache, logits, _ = placed.read_chunk(cache, tokens[:, start : start + WIDTH], n, prefill.logits)
        # On a mesh an array lies on many devices: the other model's may lie on one.
        yield logits if model.layout is None else np.asarray(logits)


@jax.jit
def _compare(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Map logits [B, T, V] of two models -> KL(a || b) f32[B, T], and whether the likeliest is the same, bool[B, T]."""
    p, q = jax.nn.log_softmax(a, axis=-1), jax.nn.log_softmax(b, axis=-1)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1), jnp.argmax(a, axis=-1) == jnp.argmax(b, axis=-1)
