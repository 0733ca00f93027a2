"""The lessons of heads: batches, losses and accuracies, as functions of arrays. The backbone's weights do not move.

All of them learn the backbone's distribution q over the tokens that can be guessed, which says more than a text's own
tokens do (distillation, Hinton et al. 2015). A head's logits are W f, so its cross entropy against q is

    logsumexp(W f) - f . sum_i q_i w_i

and of q only the mean row of the unembedding is needed: `said`, one vector a token, which is found once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinfer.heads.data import Corpus
from jaxinfer.network import eagle
from jaxinfer.network.heads import HeadsConfig, embed
from jaxinfer.network.resblock import feature, known

RANKS = 8  # accuracies are kept for that many best guesses
DISCOUNT = 0.8  # the loss of a head counts so much of that of the one before (Medusa, section 2.2.1)
OWN = 2  # times that EAGLE's layer goes on with its own states before it learns
SHARE = 0.5  # of the states that it then reads, those that are its own
WINDOW = 128  # pairs of a text that EAGLE learns from at a time
CLIP = 1.0  # norm of a gradient


class Frozen(NamedTuple):
    """The parts of the backbone that training uses."""

    embedding: dict[str, Any]  # as in its parameters: {"embed": {"embedding": [V, D]}}
    rows: jax.Array  # f32[M, D]: the unembedding of the tokens that can be guessed
    place: jax.Array  # i32[V]: which of the M rows a token has, -1 for none


class Batch(NamedTuple):
    """Texts cut at some place: hidden[b, T, D] of tokens, and tokens i32[b, T'] from the one after the first on.

    Medusa and Hydra: T = 1. EAGLE: T pairs and one more hidden state, that of the last pair's token.
    """

    hidden: Any  # arrays of numpy, or of a program
    tokens: Any
    said: Any  # f32[b, K, D]: of the backbone, after each of the K guesses: see `teach`
    live: Any  # bool[b, T]: which are learned from


@dataclass(frozen=True)
class Lesson:
    """A corpus, and what the backbone says after each of its tokens."""

    corpus: Corpus
    said: np.ndarray  # float16[N, D]


def place_of(vocab: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return int32[V]: the index of each token in vocab [M], -1 where it is not."""
    place = np.full(vocab_size, -1, np.int32)
    place[vocab] = np.arange(len(vocab), dtype=np.int32)
    return place


def teach(corpus: Corpus, rows: jax.Array, size: int = 1024) -> Lesson:
    """Return what the backbone says after each token: the mean of rows [M, D], as likely as their tokens are."""

    @jax.jit
    def mean(hidden):
        return (jax.nn.softmax(hidden.astype(jnp.float32) @ rows.T, axis=-1) @ rows).astype(jnp.float16)

    said = np.zeros(corpus.features.shape, np.float16)
    for at in range(0, len(said), size):
        part = corpus.features[at : at + size]
        said[at : at + size] = mean(np.pad(part, ((0, size - len(part)), (0, 0))))[: len(part)]
    return Lesson(corpus, said)


def batches(cfg: HeadsConfig, lesson: Lesson, texts: np.ndarray, size: int, seed: int, start: int) -> Iterator[Batch]:
    """Yield random batches of some of the texts, endlessly, from number `start` on: functions of seed and number.

    `size` counts the tokens that are learned from: of EAGLE whole windows. Raises nothing.
    """
    number = start
    while True:
        rng = np.random.default_rng([seed, number])
        if cfg.kind == "eagle":
            rows = rng.choice(texts, max(1, size // WINDOW))
            yield windows(lesson, rows, rng)
        else:
            yield pieces(cfg, lesson, rng.choice(places(cfg, lesson.corpus, texts), size))
        number += 1


def places(cfg: HeadsConfig, corpus: Corpus, texts: np.ndarray) -> np.ndarray:
    """Find those of the N tokens that have `count` + 1 tokens of an answer after them."""
    found = [
        np.arange(corpus.offsets[i] + max(corpus.starts[i] - 1, 0), corpus.offsets[i + 1] - cfg.count - 1)
        for i in texts
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


def pieces(cfg: HeadsConfig, lesson: Lesson, at: np.ndarray) -> Batch:
    """Return the hidden states at these places, each with the count + 1 tokens after it."""
    corpus, later = lesson.corpus, at[:, None] + np.arange(1, cfg.count + 2)
    hidden = np.asarray(corpus.features[at], np.float32)[:, None]
    said = np.asarray(lesson.said[later[:, :-1]], np.float32)
    return Batch(hidden, corpus.tokens[later], said, np.ones((len(at), 1), bool))


def windows(lesson: Lesson, texts: np.ndarray, rng: np.random.Generator) -> Batch:
    """Return a window of each of these texts: the end of it is filled up if the text is shorter."""
    corpus = lesson.corpus
    hidden = np.zeros((len(texts), WINDOW + 1, corpus.features.shape[1]), np.float32)
    said = np.zeros_like(hidden[:, 1:])
    tokens, live = np.zeros((len(texts), WINDOW + 1), np.int32), np.zeros((len(texts), WINDOW), bool)
    for row, text in enumerate(texts):
        begin, end = corpus.offsets[text], corpus.offsets[text + 1]
        first = begin + rng.integers(0, max(end - begin - WINDOW - 2, 0) + 1)
        n = min(WINDOW + 2, end - first)  # tokens
        hidden[row, : min(n, WINDOW + 1)] = corpus.features[first : first + min(n, WINDOW + 1)]
        said[row, : n - 2] = lesson.said[first + 1 : first + n - 1]
        tokens[row, : n - 1] = corpus.tokens[first + 1 : first + n]
        answered = first + np.arange(WINDOW) + 2 >= begin + corpus.starts[text]
        live[row] = answered & (np.arange(WINDOW) < n - 2)
    return Batch(hidden, tokens, said, live)


def guesses(params: Any, cfg: HeadsConfig, frozen: Frozen, batch: Batch, key: jax.Array | None = None):
    """Return features [b, K, D], the tokens i32[b, K] that each should give, and bool[b, K]: which count.

    K is the number of heads; for EAGLE that of pairs. With a key EAGLE reads some of its own states: `_with_own`.
    """
    tokens = batch.tokens
    if cfg.kind == "eagle":
        hidden, embedded = batch.hidden[:, :-1], embed(frozen.embedding, tokens[:, :-1])
        positions = jnp.broadcast_to(jnp.arange(hidden.shape[1]), hidden.shape[:2])
        sees = jnp.tril(jnp.ones((1, hidden.shape[1], hidden.shape[1]), bool))

        def read(params: Any, hidden: jax.Array) -> jax.Array:
            return eagle.layer(params, cfg, hidden, embedded, positions, sees)[0]

        if key is not None:
            hidden = _with_own(partial(read, jax.lax.stop_gradient(params)), hidden, key)
        return read(params, hidden), tokens[:, 1:], batch.live
    between = embed(frozen.embedding, tokens)
    each = [
        feature(params[f"head_{k}"], batch.hidden[:, 0], between[:, : known(cfg, k)]) for k in range(1, cfg.count + 1)
    ]
    labels = tokens[:, 1:]
    return jnp.stack(each, axis=1), labels, jnp.broadcast_to(batch.live, labels.shape)


def _with_own(read: Callable[[jax.Array], jax.Array], hidden: jax.Array, key: jax.Array) -> jax.Array:
    """Return hidden states [b, T, D], a random share of which are what the layer itself expected there.

    That is what it reads when it drafts more than one token; the second time, what it expected after such states
    (scheduled sampling, Bengio et al. 2015; EAGLE-3's training-time test, Li et al. 2025, section 3.2).
    """
    mixed = hidden
    for once in jax.random.split(key, OWN):
        expected = jnp.concatenate([hidden[:, :1], read(mixed)[:, :-1]], axis=1)
        own = jax.random.uniform(once, hidden.shape[:2]) < SHARE
        mixed = jnp.where(own[..., None], expected, hidden)
    return jax.lax.stop_gradient(mixed)


def loss(params: Any, cfg: HeadsConfig, frozen: Frozen, batch: Batch, key: jax.Array) -> jax.Array:
    """Compute the cross entropy against what the backbone says; a token that cannot be guessed teaches nothing.

    EAGLE learns the hidden states too, by a smooth L1 distance in units of their root mean square (section 3.2).
    """
    found, labels, live = guesses(params, cfg, frozen, batch, key)
    live = live & (frozen.place[labels] >= 0)
    half = found.astype(jnp.bfloat16), frozen.rows.astype(jnp.bfloat16)  # twice as fast, and precise enough to learn
    logits = jnp.einsum("...d,md->...m", *half, preferred_element_type=jnp.float32)
    entropy = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(found * batch.said, axis=-1)
    if cfg.kind == "eagle":
        wanted = batch.hidden[:, 1:]
        size = jnp.sqrt(jnp.mean(wanted**2, where=live[..., None]))
        distance = jnp.mean(optax.losses.huber_loss(found / size, wanted / size), axis=-1)
        return jnp.sum(jnp.where(live, distance + entropy, 0)) / jnp.maximum(jnp.sum(live), 1)
    weights = live * DISCOUNT ** jnp.arange(cfg.count, dtype=jnp.float32)
    return jnp.sum(entropy * weights) / jnp.maximum(jnp.sum(live) / cfg.count, 1)


@partial(jax.jit, static_argnums=(0,))
def hits(cfg: HeadsConfig, params: Any, frozen: Frozen, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Count how often the label was the r-th best guess, f32[K, RANKS], and of how many, f32[K]; K is 1 for EAGLE."""
    found, labels, live = guesses(params, cfg, frozen, batch)
    logits, place = found @ frozen.rows.T, frozen.place[labels]
    own = jnp.take_along_axis(logits, jnp.maximum(place, 0)[..., None], axis=-1)
    rank = jnp.where((place >= 0) & live, jnp.sum(logits > own, axis=-1), RANKS)
    right = jax.nn.one_hot(rank, RANKS)
    if cfg.kind == "eagle":
        return jnp.sum(right, axis=(0, 1))[None], jnp.sum(live)[None]
    return jnp.sum(right, axis=0), jnp.sum(live, axis=0)


def optimizer(steps: int, learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Return AdamW with a twentieth of warm-up and a cosine down to zero."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), max(2, steps))
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(schedule, weight_decay=weight_decay))


def make_update(cfg: HeadsConfig, tx: optax.GradientTransformation):
    """Make update(params, opt_state, frozen, batch, key) -> params, opt_state, loss; the first two are donated."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, frozen: Frozen, batch: Batch, key: jax.Array):
        value, gradient = jax.value_and_grad(loss)(params, cfg, frozen, batch, key)
        changes, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, changes), opt_state, value

    return update
