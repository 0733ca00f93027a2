"""Multi-token-prediction modules (DeepSeek-V3, DeepSeek-AI 2024, section 2.2): what they are, and where they come from.

Module k joins what module k - 1 made of a token (module 0 is the backbone) with the embedding of the k-th token behind
it, by one projection of both behind their norms, and sends that through one block of the backbone's own kind:

    h^k_i = block_k(M_k [norm(h^(k-1)_i); norm(embedding(t_(i+k)))])        (equations 21 and 22)

The backbone's unembedding, behind a norm of the module's, gives token i + k + 1 of it. h^0 is the backbone's hidden
state behind its last norm, h^k for k > 0 that in front of the module's: so vLLM and SGLang run DeepSeek-V3's module.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from jaxinfer.cache.store import Cache
from jaxinfer.checkpoint.assemble import assemble_params
from jaxinfer.checkpoint.huggingface import CONFIG, open_folder
from jaxinfer.checkpoint.mapping import Tensor
from jaxinfer.config import ModelConfig, Segment
from jaxinfer.errors import InputError
from jaxinfer.layers.attention import Place, Step
from jaxinfer.layers.norm import Norm
from jaxinfer.model import Block, Transformer, init_params, likeliest_token, logits_of

if TYPE_CHECKING:
    from jaxinfer.api import Model

OURS = {"join": "eh_proj", "embed_norm": "enorm", "hidden_norm": "hnorm"}  # our names, and DeepSeek-V3's
SHARED = ("embed_tokens.", "shared_head.")


@struct.dataclass
class Modules:
    """One tree of parameters a module: join [D, 2 D], embed_norm and hidden_norm [D], block, final_norm."""

    params: tuple[dict[str, Any], ...]
    cfg: ModelConfig = struct.field(pytree_node=False)  # of a model of one module's block
    backbone: str = struct.field(pytree_node=False, default="")  # its name


def of_one_block(cfg: ModelConfig) -> ModelConfig:
    """The backbone's configuration with its last layer alone, and of the vocabulary a token: modules have none."""
    return cfg.replace(segments=(Segment((cfg.layers[-1],), 1),), vocab_size=1, tie_embeddings=True)


def random(model: "Model", count: int = 1, seed: int = 0) -> Modules:
    """Random modules for a model: to train, or for tests."""
    cfg, made = of_one_block(model.config), []
    for key in jax.random.split(jax.random.key(seed), count):
        block, join = jax.random.split(key)
        params = init_params(cfg, jnp.dtype(model.dtype), block)
        width = cfg.d_model
        made.append(
            {
                "join": jax.random.normal(join, (width, 2 * width), model.dtype) * (2 * width) ** -0.5,
                "embed_norm": jnp.ones(width),
                "hidden_norm": jnp.ones(width),
                **_parts(params),
            }
        )
    return Modules(tuple(made), cfg, model.name)


def load(folder: str | Path, model: "Model") -> Modules:
    """The modules of a Hugging Face folder of DeepSeek-V3's kind, for the model that was loaded from it.

    Raises InputError if the folder has none, or they do not fit the model.
    """
    family, cfg, tensors = open_folder(Path(folder))
    count = len({name.split(".")[1] for name in tensors if name.startswith("mtp.")})
    if not count:
        raise InputError(f"{folder}: holds no multi-token-prediction modules (num_nextn_predict_layers)")
    if cfg != model.config:
        raise InputError(f"{folder}: its modules are for the model of that folder, and this one is {model.name}")
    one, width = of_one_block(cfg), cfg.d_model
    unread = Tensor((1, width), lambda start, stop: np.zeros((stop - start, width), np.float32))
    made = []
    for k in range(count):
        own = {name.removeprefix(f"mtp.{k}."): x for name, x in tensors.items() if name.startswith(f"mtp.{k}.")}
        outer = {}
        for name, theirs in OURS.items():
            shape = (width, 2 * width) if name == "join" else (width,)
            tensor = own.pop(f"{theirs}.weight", None)
            if tensor is None or tensor.shape != shape:
                found = "is missing" if tensor is None else f"has shape {tensor.shape}"
                raise InputError(f"{folder}: {theirs}.weight of module {k} {found}, expected {shape}")
            dtype = model.dtype if name == "join" else "float32"
            outer[name] = jnp.asarray(tensor.rows(0, shape[0])).astype(dtype)
        # Both ends are the backbone's own; a file may hold them once more.
        named = {f"model.layers.0.{name}": x for name, x in own.items() if not name.startswith(SHARED)}
        named["model.embed_tokens.weight"] = unread
        if "shared_head.norm.weight" in own:
            named["model.norm.weight"] = own["shared_head.norm.weight"]
        block = assemble_params(named, family, one, "hf", jnp.dtype(model.dtype), jax.device_put, str(folder))
        made.append({**outer, **_parts(block)})
    return Modules(tuple(made), one, model.name)


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder is a model's, and not one of heads that `jaxinfer train heads` wrote."""
    return (Path(folder).expanduser() / CONFIG).is_file()


def _parts(params: dict[str, Any]) -> dict[str, Any]:
    return {"block": params["segment_0"]["layer_0"], "final_norm": params["final_norm"]}


def embed(model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """The backbone's embeddings [B, T, D]."""
    return cast(jax.Array, model.apply({"params": params}, tokens, positions, method=lambda m, *args: m.embed(*args)))


def guess_of(model: Transformer, params: Any, module: dict[str, Any], hidden: jax.Array) -> jax.Array:
    """The likeliest token i32[B], by what a module made of the one before it, [B, D]."""
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
    """One module over tokens that follow those in its cache: [B, T, D], and their keys and values, to commit.

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
