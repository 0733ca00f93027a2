"""Loads models: built-in ones, GGUF files, Hugging Face folders and hub ids, Orbax folders. Saves Orbax folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.checkpoint import orbax
from jaxinfer.checkpoint.assemble import Place, assemble_params
from jaxinfer.checkpoint.export import export, save_folder
from jaxinfer.checkpoint.gguf import open_gguf
from jaxinfer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from jaxinfer.checkpoint.huggingface import open_folder, tokenizer_from_folder
from jaxinfer.checkpoint.sources import BUILTINS, locate
from jaxinfer.checkpoint.tokenizer import StreamDecoder, Tokenizer
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, nearest

__all__ = [
    "BUILTINS",
    "Checkpoint",
    "StreamDecoder",
    "Tokenizer",
    "convert",
    "export",
    "load_checkpoint",
    "save_checkpoint",
    "save_folder",
]

DTYPES = ("float32", "bfloat16")
save_checkpoint = orbax.save
convert = orbax.convert


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model as it was loaded: the parameter tree fits `config`; some checkpoints bring no tokenizer."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer | None
    name: str


def load_checkpoint(
    source: str | Path, dtype: Any = "float32", place: Place = jax.device_put, weights: str | None = None
) -> Checkpoint:
    """Load a model.

    `source` is a built-in name (`BUILTINS`), a .gguf file, a Hugging Face folder, a folder that `save_checkpoint`
    wrote, or the id of a model on the hub. Kernels and embedding come in `dtype` (float32 or bfloat16), norm scales in
    float32. `place` takes each finished parameter, a numpy array that is not written to afterwards, to where it will
    live. Beside what is placed, the host holds one parameter at a time. `weights`: a format of `transform.quantize`, to
    which each parameter is rounded once it is placed: no two are there unrounded.

    Raises InputError if there is no such model, if a file is damaged, if the model is not supported, or if its weights
    have another format already.
    """
    from jaxinfer.transform.quantize import check_format, quantize_leaf  # which imports what imports this package

    if weights is not None:
        check_format(weights)

    def finish(parameter: str, leaf: Any) -> Any:
        return leaf if weights is None else quantize_leaf(parameter, leaf, weights)

    dtype = _dtype(dtype)
    path, name = locate(source)
    if path.is_file():
        header, family, config, tensors = open_gguf(path)
        tokenizer = tokenizer_from_gguf(header)
        params = assemble_params(tensors, family, config, "gguf", dtype, place, str(path), finish)
        return Checkpoint(config, params, tokenizer, name)
    if (path / orbax.MANIFEST).exists():
        return Checkpoint(*orbax.load(path, dtype, place, weights))
    family, config, tensors = open_folder(path)
    tokenizer = tokenizer_from_folder(path)
    params = assemble_params(tensors, family, config, "hf", dtype, place, str(path), finish)
    return Checkpoint(config, params, tokenizer, name)


def _dtype(dtype: Any) -> jnp.dtype:
    """A dtype from its name or any other form. Raises InputError if parameters cannot be held in it."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise InputError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}{nearest(str(dtype), DTYPES)}")
    return found
