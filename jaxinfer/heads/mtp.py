"""Multi-token-prediction modules of a checkpoint, or random ones; `network.mtp` defines them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.api import Model
from jaxinfer.checkpoint.assemble import assemble_params
from jaxinfer.checkpoint.huggingface import CONFIG, open_folder
from jaxinfer.checkpoint.mapping import Tensor
from jaxinfer.errors import InputError
from jaxinfer.host.files import path_of
from jaxinfer.network.mtp import Modules, of_one_block
from jaxinfer.network.transformer import init_params

OURS = {"join": "eh_proj", "embed_norm": "enorm", "hidden_norm": "hnorm"}  # our names, and DeepSeek-V3's
SHARED = ("embed_tokens.", "shared_head.")


def random(model: Model, count: int = 1, seed: int = 0) -> Modules:
    """Make random modules for a model: to train, or for tests."""
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


def load(folder: str | Path, model: Model) -> Modules:
    """Load the modules of a Hugging Face folder of DeepSeek-V3's kind, for the model that was loaded from it.

    Raises InputError if the folder has none, or they do not fit the model.
    """
    folder = path_of(folder, "heads")
    family, cfg, tensors = open_folder(folder)
    count = len({name.split(".")[1] for name in tensors if name.startswith("mtp.")})
    if not count:
        raise InputError(f"{folder}: holds no multi-token-prediction modules (num_nextn_predict_layers)")
    own_heads = model.config.replace(n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads)  # a mesh may have grouped them
    if cfg != (model.config if model.layout is None else own_heads):
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
    """Tell whether a folder is a model's, and not one of heads that `jaxinfer train heads` wrote."""
    return (path_of(folder, "heads") / CONFIG).is_file()


def _parts(params: dict[str, Any]) -> dict[str, Any]:
    return {"block": params["segment_0"]["layer_0"], "final_norm": params["final_norm"]}
