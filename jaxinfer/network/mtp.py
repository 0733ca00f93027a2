"""Multi-token-prediction modules (DeepSeek-V3, DeepSeek-AI 2024, section 2.2).

Module k joins what module k - 1 made of a token (module 0 is the backbone) with the embedding of the k-th token after
it, by one projection of both after their norms, and sends that through one block of the backbone's own kind:

    h^k_i = block_k(M_k [norm(h^(k-1)_i); norm(embedding(t_(i+k)))])        (equations 21 and 22)

The backbone's unembedding, after a norm of the module's, gives token i + k + 1 of it. h^0 is the backbone's hidden
state after its last norm, h^k for k > 0 that in front of the module's: so vLLM and SGLang run DeepSeek-V3's module.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxinfer.cache.store import Cache
from jaxinfer.config import ModelConfig, Segment
from jaxinfer.layers.attention import Place, Step
from jaxinfer.layers.norm import Norm
from jaxinfer.network.transformer import Block, Transformer, likeliest_token, logits_of


@struct.dataclass
class Modules:
    """One tree of parameters a module: join [D, 2 D], embed_norm and hidden_norm [D], block, final_norm."""

    params: tuple[dict[str, Any], ...]
    cfg: ModelConfig = struct.field(pytree_node=False)  # of a model of one module's block
    backbone: str = struct.field(pytree_node=False, default="")  # its name


def of_one_block(cfg: ModelConfig) -> ModelConfig:
    """Cut the backbone's configuration to its last layer, and the vocabulary to one token: modules have none."""
    return cfg.replace(segments=(Segment((cfg.layers[-1],), 1),), vocab_size=1, tie_embeddings=True)


def embed(model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Return the backbone's embeddings [B, T, D]."""
    return cast(jax.Array, model.apply({"params": params}, tokens, positions, method=lambda m, *args: m.embed(*args)))


def guess_of(model: Transformer, params: Any, module: dict[str, Any], hidden: jax.Array) -> jax.Array:
    """Return the likeliest token i32[B], by what a module made of the one before it, [B, D]."""
    cfg = model.cfg
    normed = Norm(cfg.norm_eps, cfg.norm, cfg.norm_bias).apply({"params": module["final_norm"]}, hidden[:, None])
    return likeliest_token(logits_of(model, params, cast(jax.Array, normed))[:, 0])


def read(
    cfg: ModelConfig,
    dtype: Any,
    module: dict[str, Any],
    hidden: jax.Array,
    embedded: jax.Array,
    tokens: jax.Array,
    cache: Cache,
    n: jax.Array,
    decoding: bool,
) -> tuple[jax.Array, Any]:
    """Run one module over tokens that follow those in its cache: [B, T, D], and their keys and values, to commit.

    hidden[B, T, D]: what the module before it made of each; embedded[B, T, D] of the tokens i32[B, T] that go with
    them; n i32[B]: how many of them count.
    """

    def normed(name: str, x: jax.Array) -> jax.Array:
        return cast(jax.Array, Norm(cfg.norm_eps).apply({"params": {"scale": module[name]}}, x))

    both = jnp.concatenate([normed("embed_norm", embedded), normed("hidden_norm", hidden)], axis=-1)
    x = (both @ module["join"].T).astype(dtype)
    kind = cfg.layers[0]
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    step = Step.of(tokens, positions, n, None, cache, decoding)
    first = Place(jnp.int32(0), jnp.int32(0))
    block: nn.Module = Block(cfg, kind, 1, dtype)
    y, fresh, _ = cast(Any, block.apply({"params": module["block"]}, x, first, step))
    return y, {kind.name: jax.tree.map(partial(jnp.expand_dims, axis=0), fresh)}
