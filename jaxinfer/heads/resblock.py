"""Heads that each guess one token further ahead: Medusa's, and Hydra's, which know the guesses before theirs.

Head k guesses the token k places behind the next one, from the hidden state of the last token that is known
(Medusa, Cai et al. 2024, section 2.1.1):

    feature_k = P_k (SiLU(W_k x + b_k) + hidden)

x is the hidden state; in Hydra (Ankner et al. 2024, section 3) the embeddings of the k tokens in between follow it. The
paper's unembedding of head k is here the backbone's own times P_k, [D, D]. At first W_k = 0 and P_k = 1: the backbone.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.heads.heads import HeadsConfig


def init(cfg: HeadsConfig) -> dict[str, Any]:
    """Parameters of heads 1 to `count`, which guess what the backbone itself does."""

    def one(k: int) -> dict[str, jax.Array]:
        d, seen = cfg.d_model, k if cfg.kind == "hydra" else 0
        return {"up": jnp.zeros((d, d * (1 + seen))), "bias": jnp.zeros(d), "turn": jnp.eye(d)}

    return {f"head_{k}": one(k) for k in range(1, cfg.count + 1)}


def feature(head: dict[str, jax.Array], hidden: jax.Array, between: jax.Array | None = None) -> jax.Array:
    """hidden[..., D], and for Hydra the embeddings between[..., k, D] -> what the unembedding reads, [..., D]."""
    x = hidden if between is None else jnp.concatenate([hidden, between.reshape(*between.shape[:-2], -1)], axis=-1)
    return (jax.nn.silu(x @ head["up"].T + head["bias"]) + hidden) @ head["turn"].T
