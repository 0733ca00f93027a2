"""Heads that each guess one token further ahead: Medusa's, and Hydra's, which know the guesses before theirs.

Head k guesses the token k places after the pending one, from the hidden state of the last token that is known
(Medusa, Cai et al. 2024, section 2.1.1):

    feature_k = L_k x + D_k SiLU(U_k x + b_k)

x is that state, and the embedding of the pending token, which is known too; in Hydra (Ankner et al. 2024, section 3)
those of the guesses in between follow. Medusa's residual block and its unembedding of each head are this with
L_k = D_k, on the state alone; here the backbone's own unembedding reads the feature. At first D_k = 0.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.network.heads import HeadsConfig

INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=-1, out_axis=-2)


def known(cfg: HeadsConfig, k: int) -> int:
    """Count the tokens after the hidden state whose embeddings head k reads."""
    return k if cfg.kind == "hydra" else 1


def init(cfg: HeadsConfig, key: jax.Array) -> dict[str, Any]:
    """Make parameters of heads 1 to `count`: each guesses what the backbone does, and is not linear at random."""

    def one(k: int, key: jax.Array) -> dict[str, jax.Array]:
        d, read = cfg.d_model, cfg.d_model * (1 + known(cfg, k))
        line = jnp.eye(d, read)
        return {"line": line, "up": INIT(key, (d, read)), "bias": jnp.zeros(d), "down": jnp.zeros((d, d))}

    keys = jax.random.split(key, cfg.count)
    return {f"head_{k}": one(k, keys[k - 1]) for k in range(1, cfg.count + 1)}


def reads(hidden: jax.Array, between: jax.Array) -> jax.Array:
    """Join what a head reads, [..., D (1 + n)]: hidden[..., D] at root mean square 1, embeddings between[..., n, D]."""
    unit = hidden * jax.lax.rsqrt(jnp.mean(hidden * hidden, axis=-1, keepdims=True) + 1e-12)
    return jnp.concatenate([unit, between.reshape(*between.shape[:-2], -1)], axis=-1)


def feature(head: dict[str, jax.Array], hidden: jax.Array, between: jax.Array) -> jax.Array:
    """Map hidden[..., D] and the embeddings between[..., n, D] to the input of the unembedding, [..., D]."""
    x = reads(hidden, between)
    return x @ head["line"].T + jax.nn.silu(x @ head["up"].T + head["bias"]) @ head["down"].T
