"""The start of training: the best linear guess, found in closed form.

A linear map from what a head reads to the hidden state that it should give is a ridge regression on the corpus: a few
seconds, against many steps of gradient descent on few tokens. What is not linear begins near zero and is learned.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.heads import store
from jaxinfer.heads.data import Corpus
from jaxinfer.network import resblock
from jaxinfer.network.heads import HeadsConfig, embed

RIDGE = 0.02  # of the mean variance of what is read
SMALL = 0.05  # how EAGLE's attention and MLP begin, next to their usual size
CHUNK = 8192  # tokens at a time

Read = Callable[[jax.Array, jax.Array], jax.Array]
"""(hidden states [n, D], embeddings [n, k, D] of the tokens after each) -> what a head reads, [n, E]."""


def begin(cfg: HeadsConfig, params: Any, corpus: Corpus, texts: np.ndarray, seed: int) -> dict[str, Any]:
    """Make parameters to train from, for a backbone with these `params`; these texts fix the linear part."""
    heads = store.init_params(cfg, seed, params["final_norm"].get("scale"))
    embedding = {"embed": params["embed"]}
    if cfg.kind != "eagle":
        for k in range(1, cfg.count + 1):
            line = _line(embedding, corpus, texts, k, resblock.known(cfg, k), resblock.reads)
            heads[f"head_{k}"]["line"] = line
        return heads

    def reads(hidden: jax.Array, between: jax.Array) -> jax.Array:
        unit = hidden * jax.lax.rsqrt(jnp.mean(hidden**2, axis=-1, keepdims=True) + cfg.eps)
        return jnp.concatenate([between[:, 0], unit], axis=-1)

    final = heads["final_norm"]  # the map ends in front of it
    join = _line(embedding, corpus, texts, 1, 1, reads) / jnp.where(jnp.abs(final) < SMALL, SMALL, final)[:, None]
    return {**heads, "join": join, "o": SMALL * heads["o"], "down": SMALL * heads["down"]}


def _line(embedding: Any, corpus: Corpus, texts: np.ndarray, ahead: int, known: int, reads: Read) -> jax.Array:
    """Fit [D, E]: the map to the hidden state `ahead` tokens on, from this one and the `known` tokens after it."""
    within = [np.arange(corpus.offsets[i], max(corpus.offsets[i + 1] - ahead, corpus.offsets[i])) for i in texts]
    at = np.concatenate(within)
    squares: Any = 0.0
    products: Any = 0.0
    for start in range(0, len(at), CHUNK):
        part = at[start : start + CHUNK]
        later = jnp.asarray(corpus.tokens[part[:, None] + np.arange(1, known + 1)])
        x = reads(jnp.asarray(corpus.features[part], jnp.float32), embed(embedding, later))
        squares, products = squares + x.T @ x, products + x.T @ jnp.asarray(corpus.features[part + ahead], jnp.float32)
    return ridge(squares, products)


def ridge(squares: jax.Array, products: jax.Array) -> jax.Array:
    """Return [E, D]: the A for which A x is nearest to y, of the sums of x x^T [D, D] and of x y^T [D, E]."""
    strength = RIDGE * jnp.trace(squares) / len(squares)
    return jnp.linalg.solve(squares + strength * jnp.eye(len(squares)), products).T
