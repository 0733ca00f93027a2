"""Where training begins: the best linear guess, found in closed form.

A linear map from what a head reads to the hidden state that it should give is a ridge regression on the corpus: a few
seconds, against many steps of gradient descent on few tokens. What is not linear begins near zero and is learned.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.heads import resblock, store
from jaxinfer.heads.data import Corpus
from jaxinfer.heads.heads import HeadsConfig, embed

RIDGE = 0.02  # of the mean variance of what is read
SMALL = 0.05  # how EAGLE's attention and MLP begin, next to their usual size
MOST = 50_000  # tokens


def begin(cfg: HeadsConfig, params: Any, corpus: Corpus, texts: np.ndarray, seed: int) -> dict[str, Any]:
    """Parameters to train from, for a backbone with these `params`; these texts of a corpus say the linear part."""
    scale = params["final_norm"].get("scale")
    heads = store.init_params(cfg, seed, scale)

    def pairs(ahead: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in the corpus, and hidden states f32[n, D] so many tokens further."""
        within = [np.arange(corpus.offsets[i], max(corpus.offsets[i + 1] - ahead, corpus.offsets[i])) for i in texts]
        at = np.concatenate(within)[:MOST]
        return at, np.asarray(corpus.features[at + ahead], np.float32)

    def read(at: np.ndarray, tokens: int) -> tuple[jax.Array, jax.Array]:
        hidden = jnp.asarray(corpus.features[at], jnp.float32)
        behind = corpus.tokens[at[:, None] + np.arange(1, tokens + 1)]
        return hidden, embed({"embed": params["embed"]}, jnp.asarray(behind))

    if cfg.kind == "eagle":
        at, wanted = pairs(1)
        hidden, embedded = read(at, 1)
        hidden *= jax.lax.rsqrt(jnp.mean(hidden**2, axis=-1, keepdims=True) + cfg.eps)
        final = heads["final_norm"]
        wanted = wanted / jnp.where(jnp.abs(final) < SMALL, SMALL, final)  # in front of the final norm
        join = ridge(jnp.concatenate([embedded[:, 0], hidden], axis=-1), wanted)
        return {**heads, "join": join, "o": SMALL * heads["o"], "down": SMALL * heads["down"]}
    for k in range(1, cfg.count + 1):
        at, wanted = pairs(k)
        heads[f"head_{k}"]["line"] = ridge(resblock.reads(*read(at, resblock.known(cfg, k))), wanted)
    return heads


def ridge(x: Any, y: Any) -> jax.Array:
    """[E, D]: the matrix A for which A x is nearest to y, of x f32[n, D] and y f32[n, E]."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    moments = x.T @ x
    moments += RIDGE * jnp.trace(moments) / len(moments) * jnp.eye(len(moments))
    return jnp.linalg.solve(moments, x.T @ y).T
