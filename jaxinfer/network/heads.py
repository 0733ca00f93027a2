"""Trained heads on a frozen backbone: their parts, whatever their kind."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError
from jaxinfer.layers.linear import matmul
from jaxinfer.weights.qtensor import take

Kind = Literal["medusa", "hydra", "eagle"]
KINDS: tuple[Kind, ...] = ("medusa", "hydra", "eagle")
MOST_COUNT = 16  # tokens ahead that heads guess


@dataclass(frozen=True)
class HeadsConfig:
    """The shape of heads, and the backbone that they are for.

    Heads guess among `draft_vocab` tokens only, those that the backbone writes most (FR-Spec, Zhao et al. 2025): a
    guess costs a product with that many rows of the unembedding, in training and in drafting. What is written does not
    change, since the backbone verifies against its whole vocabulary.
    """

    kind: Kind
    backbone: str  # its name
    d_model: int  # its width
    vocab_size: int  # its vocabulary
    draft_vocab: int
    count: int = 1  # how many tokens ahead they guess; eagle: 1, over and over
    # eagle's layer
    n_heads: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    d_ff: int = 0
    rope_theta: float = 10_000.0
    eps: float = 1e-5

    @classmethod
    def of(cls, kind: Kind, backbone: str, cfg: ModelConfig, draft_vocab: int, count: int = 4) -> "HeadsConfig":
        """Make the configuration for a backbone of this one. Raises InputError for a number that cannot be."""
        if kind not in KINDS:
            raise InputError(f"kind={kind!r} is no kind of heads: {', '.join(KINDS)}")
        if not 1 <= count <= MOST_COUNT:
            raise InputError(f"count={count} must be from 1 to {MOST_COUNT}: how many tokens ahead the heads guess")
        if not 2 <= draft_vocab <= cfg.vocab_size:
            raise InputError(f"draft_vocab={draft_vocab} must be from 2 to the {cfg.vocab_size} tokens of {backbone}")
        common: dict[str, Any] = dict(
            kind=kind, backbone=backbone, d_model=cfg.d_model, vocab_size=cfg.vocab_size, eps=cfg.norm_eps
        )
        if kind != "eagle":
            return cls(**common, draft_vocab=draft_vocab, count=count)
        width = cfg.head_dim - cfg.head_dim % 2
        ropes = [layer.rope.theta for layer in cfg.kinds if layer.rope]
        return cls(
            **common,
            draft_vocab=draft_vocab,
            n_heads=cfg.n_heads,
            n_kv_heads=cfg.n_kv_heads,
            head_dim=width,
            d_ff=cfg.d_ff or 2 * cfg.d_model,
            rope_theta=ropes[-1] if ropes else 10_000.0,
        )


@struct.dataclass
class Heads:
    """Trained heads. `model.attach(heads=heads)` gives them to the methods that draft with them."""

    params: Any
    vocab: jax.Array  # i32[M]: the tokens that can be guessed
    cfg: HeadsConfig = struct.field(pytree_node=False)


def unembedding(params: Mapping[str, Any], vocab: jax.Array) -> jax.Array:
    """Return [M, D]: the backbone's own rows for these tokens i32[M], of its tied embedding or of its head.

    Every head shares them. Medusa's heads have an unembedding each (section 2.1.1), which here would be 84 times as
    large as the rest of a head: SmolLM2 has 49,152 tokens and a width of 576.
    """
    table = params["head"]["kernel"] if "head" in params else params["embed"]["embedding"]
    return take(table, vocab).astype(jnp.float32)


def embed(params: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
    """Map tokens i32[...] -> [..., D], the backbone's embeddings at root mean square 1: the direction counts."""
    x = take(params["embed"]["embedding"], tokens, mode="clip").astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-12)


def scores(features: jax.Array, rows: jax.Array) -> jax.Array:
    """Score features[..., D] by rows[M, D] -> float32[..., M]: logits, up to the backbone's scale and soft cap."""
    return matmul(features, rows, rows.shape)


def frequent(tokens: np.ndarray, vocab_size: int, count: int) -> np.ndarray:
    """Return int32[count]: the most frequent tokens of a text, in order; after those that occur, the lowest ids."""
    counts = np.bincount(tokens, minlength=vocab_size)
    return np.argsort(-counts, kind="stable")[:count].astype(np.int32)


def check_fits(heads: Any, kinds: tuple[str, ...], method: str, model: Any) -> None:
    """Raise InputError unless `heads` are of one of these kinds, and for this model (an `api.Model`)."""
    if not isinstance(heads, Heads):
        kind = type(heads).__name__
        raise InputError(f"method {method} needs heads={kind} to be Heads: what jaxinfer.heads.load(folder) gives")
    cfg = heads.cfg
    if cfg.kind not in kinds:
        raise InputError(f"method {method} drafts with {' or '.join(kinds)} heads, and these are {cfg.kind} heads")
    ours, theirs = (model.name, model.config.d_model, model.config.vocab_size), dataclasses.astuple(cfg)[1:4]
    if ours[1:] != theirs[1:]:
        raise InputError(f"{cfg.kind} heads are for {_describe(*theirs)}, and this model is {_describe(*ours)}")


def _describe(name: str, d_model: int, vocab_size: int) -> str:
    return f"{name} (d_model {d_model}, vocabulary {vocab_size})"
