"""Load a model from any source, one parameter at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.checkpoint import orbax
from jaxinfer.checkpoint.assemble import Assembly, Place, assemble_params, flatten
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.checkpoint.gguf import open_gguf
from jaxinfer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from jaxinfer.checkpoint.hf_tokenizer import tokenizer_from_folder
from jaxinfer.checkpoint.huggingface import open_folder
from jaxinfer.checkpoint.mapping import Family, Format, Tensors
from jaxinfer.checkpoint.override import check_fits, tokenizer_at
from jaxinfer.checkpoint.presets import shape_of
from jaxinfer.checkpoint.random_weights import random_params
from jaxinfer.checkpoint.sharded import OnMesh, Progress, Target, fill
from jaxinfer.checkpoint.sources import locate
from jaxinfer.checkpoint.tokenizer import Tokenizer, checked_ids
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.network.transformer import param_axes
from jaxinfer.sharding import MeshShape, Rules, Sharding, rules_of, settled
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.qtensor import is_quantized
from jaxinfer.weights.quantize import quantize_leaf

DTYPES = ("float32", "bfloat16")


def load_checkpoint(
    source: str | Path,
    dtype: Any = "float32",
    place: Place = jax.device_put,
    weights: str | None = None,
    tokenizer: str | Path | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Load a model.

    `source` is a built-in name (`BUILTINS`), a .gguf file, a Hugging Face folder, a folder that `save_checkpoint`
    wrote, or the id of a model on the hub. Kernels and embedding come in `dtype` (float32 or bfloat16), norm scales in
    float32. `place` takes each finished parameter, a numpy array that is not written to afterwards, to where it will
    live. Beside what is placed, the host holds one parameter at a time. `weights`: a format of `weights.formats`, to
    which each parameter is rounded once it is placed: no two are there unrounded. `tokenizer`: a folder with a
    tokenizer.json, a tokenizer.json, or a GGUF file, whose tokenizer is taken in place of the model's own. `target`:
    the devices of a mesh whose shards are read, and nothing else of the parameters; `place` is not called then.
    `progress` is told of bytes done and of all of them after each parameter that is read so.

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

    def filled(tensors: Tensors, family: Family, config: ModelConfig, fmt: Format) -> dict:
        if target is None:
            return assemble_params(tensors, family, config, fmt, dtype, place, str(path), finish)
        assembly = Assembly(tensors, family, config, fmt, dtype, str(path))
        return fill(assembly, flatten(param_axes(config)), target, weights, progress)

    if not path.is_dir():
        header, family, config, tensors = open_gguf(path)
        found = chosen(config, lambda: tokenizer_from_gguf(header))
        if found is not None:
            checked_ids(found.settings.eos_ids, f"{path}: the end tokens in the metadata", config.vocab_size)
        params = filled(tensors, family, config, "gguf")
        return Checkpoint(config, params, found, name)
    if (path / orbax.MANIFEST).exists():
        config, params, own, name = orbax.load(path, dtype, place, weights, target, progress)
        return Checkpoint(config, params, chosen(config, lambda: own), name)
    family, config, tensors = open_folder(path)
    found = chosen(config, lambda: tokenizer_from_folder(path, config.vocab_size))
    params = filled(tensors, family, config, "hf")
    return Checkpoint(config, params, found, name)


def load_sharded(
    source: str | Path,
    dtype: Any,
    weights: str | None,
    tokenizer: str | Path | None,
    mesh: jax.sharding.Mesh,
    rules: Rules | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Load a model onto a mesh, each process what its own devices hold: the arrays that `Model.shard` would make.

    A shape (`random:llama-3-8b`) gets the weights that it has without a mesh. Raises InputError as `load_checkpoint`
    and `Model.shard` do, the latter before anything is read.
    """
    rules = rules_of(getattr(mesh, "axis_names", ())) if rules is None else rules
    layout = Sharding(settled(mesh, rules), rules)
    config = shape_of(str(source))
    if config is None:
        target = OnMesh(layout)
        return load_checkpoint(source, dtype, weights=weights, tokenizer=tokenizer, target=target, progress=progress)
    other = None if tokenizer is None else tokenizer_at(tokenizer)
    if other is not None:
        check_fits(other, config, tokenizer or "")
    return Checkpoint(config, random_params(config, _dtype(dtype), weights, layout), other, str(source))


def read_shards(
    source: str | Path,
    layout: Sharding | MeshShape,
    devices: Sequence[int],
    dtype: Any = "float32",
    weights: str | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[int, np.ndarray]]:
    """Read what some devices of a mesh hold of a model, the others need not be here: by path, then by device.

    layout: the mesh with its rules, or a `MeshShape`, which has those of its axes. devices: their places in the mesh,
    flattened. Arrays of a quantized weight stand below its path, by name. What a process of a larger machine reads when
    it loads, and the memory that it takes, is seen so on one machine. `source`, `dtype`, `weights` and errors are those
    of `load_checkpoint`.
    """
    target = Target(layout, devices)
    params = load_checkpoint(source, dtype, weights=weights, target=target, progress=progress).params
    found: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in flatten(params).items():
        own = {f"{path}/{name}": x for name, x in leaf.arrays().items()} if is_quantized(leaf) else {path: leaf}
        found |= {name: dict(shards) for name, shards in own.items()}
    return found


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
