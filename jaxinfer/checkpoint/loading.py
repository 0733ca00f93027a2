"""Load a model from any source, one parameter at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.checkpoint import orbax
from jaxinfer.checkpoint.assemble import Place, assemble_params
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.checkpoint.gguf import open_gguf
from jaxinfer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from jaxinfer.checkpoint.hf_tokenizer import tokenizer_from_folder
from jaxinfer.checkpoint.huggingface import open_folder
from jaxinfer.checkpoint.override import check_fits, tokenizer_at
from jaxinfer.checkpoint.sources import locate
from jaxinfer.checkpoint.tokenizer import Tokenizer, checked_ids
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.quantize import quantize_leaf

DTYPES = ("float32", "bfloat16")


def load_checkpoint(
    source: str | Path,
    dtype: Any = "float32",
    place: Place = jax.device_put,
    weights: str | None = None,
    tokenizer: str | Path | None = None,
) -> Checkpoint:
    """Load a model.

    `source` is a built-in name (`BUILTINS`), a .gguf file, a Hugging Face folder, a folder that `save_checkpoint`
    wrote, or the id of a model on the hub. Kernels and embedding come in `dtype` (float32 or bfloat16), norm scales in
    float32. `place` takes each finished parameter, a numpy array that is not written to afterwards, to where it will
    live. Beside what is placed, the host holds one parameter at a time. `weights`: a format of `weights.formats`, to
    which each parameter is rounded once it is placed: no two are there unrounded. `tokenizer`: a folder with a
    tokenizer.json, a tokenizer.json, or a GGUF file, whose tokenizer is taken in place of the model's own.

    Raises InputError if there is no such model, if a file is damaged, if the model is not supported, or if its weights
    have another format already.
    """
    if weights is not None:
        FORMATS.find(weights, "weights")

    def finish(parameter: str, leaf: Any) -> Any:
        return leaf if weights is None else quantize_leaf(parameter, leaf, weights)

    dtype = _dtype(dtype)
    path, name = locate(source)
    other = None if tokenizer is None else tokenizer_at(tokenizer)

    def chosen(config: ModelConfig, own: Callable[[], Tokenizer | None]) -> Tokenizer | None:
        """Return the model's own tokenizer, or the other, if it fits."""
        if other is None:
            return own()
        check_fits(other, config, tokenizer or "")
        return other

    if not path.is_dir():
        header, family, config, tensors = open_gguf(path)
        found = chosen(config, lambda: tokenizer_from_gguf(header))
        if found is not None:
            checked_ids(found.settings.eos_ids, f"{path}: the end tokens in the metadata", config.vocab_size)
        params = assemble_params(tensors, family, config, "gguf", dtype, place, str(path), finish)
        return Checkpoint(config, params, found, name)
    if (path / orbax.MANIFEST).exists():
        config, params, own, name = orbax.load(path, dtype, place, weights)
        return Checkpoint(config, params, chosen(config, lambda: own), name)
    family, config, tensors = open_folder(path)
    found = chosen(config, lambda: tokenizer_from_folder(path, config.vocab_size))
    params = assemble_params(tensors, family, config, "hf", dtype, place, str(path), finish)
    return Checkpoint(config, params, found, name)


def read_config(source: str | Path) -> ModelConfig:
    """Read what a model is, and none of its weights. `source` and errors are those of `load_checkpoint`."""
    path, _ = locate(source)
    if not path.is_dir():
        return open_gguf(path)[2]
    return orbax.read_config(path) if (path / orbax.MANIFEST).exists() else open_folder(path)[1]


def _dtype(dtype: Any) -> jnp.dtype:
    """Return a dtype from its name or any other form. Raises InputError if parameters cannot be held in it."""
    try:
        found = jnp.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # numpy parses what it is given
        found = None
    if found is None or found.name not in DTYPES:
        raise InputError(f"dtype={shown(dtype)} must be one of {', '.join(DTYPES)}{nearest(str(dtype), DTYPES)}")
    return found
