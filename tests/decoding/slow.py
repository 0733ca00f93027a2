"""References for truncation that sort, in float64, and states to try it on."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import Sampling
from jaxinfer.decoding.sampling.settings import SamplingState

VOCAB = 12


def softmax(x):
    with np.errstate(invalid="ignore"):
        weights = np.exp(x - np.max(x))
    return weights / weights.sum()


def slow_top_k(logits, k):
    """bool[V]: not below the k-th of the sorted logits."""
    k = len(logits) if k == 0 else min(k, len(logits))
    return logits >= np.sort(logits)[::-1][k - 1]


def slow_top_p(probs, p):
    """bool[V]: whole groups of equally likely tokens, likeliest first, until their mass is p."""
    kept = np.zeros(len(probs), bool)
    for value in sorted(set(probs.tolist()), reverse=True):
        kept |= probs == value
        if p < 1 and probs[kept].sum() >= p:
            break
    return kept


def slow_mirostat(logits, mu):
    """llama.cpp's mirostat 2 in float64: drop from the first token that surprises by more than mu bits, but never all.

    The probabilities that are left, renormalized.
    """
    probs = softmax(np.asarray(logits, np.float64))
    order = np.argsort(-probs, kind="stable")
    size = next((i for i, token in enumerate(order) if -np.log2(probs[token]) > mu), len(order))
    probs[order[max(size, 1) :]] = 0
    return probs / probs.sum()


def state_of(prompts=None, batch=1, vocab=VOCAB, **fields):
    """The state behind the prompts, on the device."""
    state = SamplingState.of(Sampling(**fields), prompts or [[0]] * batch, vocab)
    return jax.tree.map(jnp.asarray, state)
