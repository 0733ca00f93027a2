"""Sampled texts of three tokens: how often each came, how often it should have, and how far apart these are."""

from itertools import product

import numpy as np
from scipy.stats import chi2

from jaxinfer import LayerKind, Model, Segment

VOCAB = 8
SMALL = dict(vocab_size=VOCAB, d_model=16, d_ff=32, n_heads=2, n_kv_heads=1, head_dim=8, max_positions=64)
PROMPT = [1, 5, 1]  # lookup has a guess


def disagreeing_pair(model):
    """A target and a draft of one layer each, of a model's kind, that disagree often."""
    config = model.config.replace(segments=(Segment((LayerKind(),), 1),), **SMALL)
    return Model.random(config, seed=3), Model.random(config, seed=4)


def texts_of(target, method, sampling, rows=4096, calls=2):
    """How often each text of three tokens came, of rows * calls."""
    counts = np.zeros((VOCAB,) * 3)
    for call in range(calls):
        seeds = [call * rows + row for row in range(rows)]
        tokens = target.generate([PROMPT] * rows, max_new_tokens=3, method=method, sampling=sampling, seed=seeds).tokens
        np.add.at(counts, tuple(np.array(tokens).T), 1)
    return counts


def exact(target, temperature, top_k):
    """The probability of each text of three tokens."""
    texts = np.array([[*PROMPT, *tail] for tail in product(range(VOCAB), repeat=2)])
    logits = np.asarray(target.logits(texts), np.float64)[:, len(PROMPT) - 1 :]
    probs = truncated(logits, temperature, top_k).reshape(VOCAB, VOCAB, 3, VOCAB)
    one, two, three = probs[0, 0, 0], probs[:, 0, 1], probs[:, :, 2]
    return one[:, None, None] * two[:, :, None] * three


def truncated(logits, temperature, top_k, top_p=1.0):
    """Probabilities [..., V] of the top_k likeliest tokens, and of these the fewest that have top_p of the mass."""
    logits = logits / temperature
    logits[logits < np.sort(logits, axis=-1)[..., -top_k, None]] = -np.inf
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    order = np.argsort(-probs, axis=-1, kind="stable")
    falling = np.take_along_axis(probs, order, axis=-1)
    beyond = np.cumsum(falling, axis=-1) - falling >= top_p  # what is likelier has that much already
    np.put_along_axis(probs, order, np.where(beyond, 0, falling), axis=-1)
    return probs / probs.sum(-1, keepdims=True)


def pairs_of(target, method, sampling, rows=2048, new=51):
    """How often two tokens followed a third, [V, V, V], in rows of `new` tokens each, without overlap."""
    prompts = [[row % VOCAB] for row in range(rows)]
    tokens = target.generate(prompts, max_new_tokens=new, method=method, sampling=sampling).tokens
    texts = np.array(tokens)[:, : new // 3 * 3].reshape(-1, 3)
    counts = np.zeros((VOCAB,) * 3)
    np.add.at(counts, tuple(texts.T), 1)
    return counts


def excess(counts, probs):
    """Chi-square over its threshold: a correct method is below 1 but for one seed in 100,000."""
    if counts[probs == 0].any():
        return np.inf  # what has been truncated away must not come at all
    observed, expected = counts.ravel(), counts.sum() * probs.ravel()
    often = expected >= 5
    observed, expected = (np.append(x[often], x[~often].sum()) for x in (observed, expected))
    used = expected >= 1
    return np.sum((observed - expected)[used] ** 2 / expected[used]) / chi2.isf(1e-5, used.sum() - 1)
