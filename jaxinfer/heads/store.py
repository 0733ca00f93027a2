"""Heads as a folder: heads.safetensors holds the arrays, heads.json says what they are and for which model.

The checksums of both are beside them (`checkpoint.checksums`). Folders of format 2, which have none, are read with a
warning.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxinfer.checkpoint import checksums
from jaxinfer.checkpoint.assemble import flatten, unflatten
from jaxinfer.checkpoint.config_json import from_json
from jaxinfer.checkpoint.finite import warn_of_others
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import foreign_writer, new_folder, path_of, read_json, shown_error
from jaxinfer.network import eagle, resblock
from jaxinfer.network.heads import MOST_COUNT, Heads, HeadsConfig

ARRAYS, MANIFEST, FORMAT = "heads.safetensors", "heads.json", 3
_READ = (2, 3)


def init_params(cfg: HeadsConfig, seed: int = 0, final_scale: Any = None) -> dict[str, Any]:
    """Make parameters to begin training with."""
    key = jax.random.key(seed)
    return eagle.init(cfg, key, final_scale) if cfg.kind == "eagle" else resblock.init(cfg, key)


def save(heads: Heads, path: str | Path) -> None:
    """Write heads into a new folder: all of it, or nothing. Raises InputError if it exists or cannot be written."""
    if not isinstance(heads, Heads):
        raise InputError(f"{shown(heads)} is no Heads: what training gives, and jaxinfer.heads.load(folder)")
    with new_folder(path) as draft:
        write(heads, draft)


def write(heads: Heads, folder: Path) -> None:
    """Write both files and their checksums into a folder that is there. Raises OSError."""
    arrays = {"vocab": heads.vocab, **{f"params/{name}": leaf for name, leaf in flatten(heads.params).items()}}
    manifest = {"format": FORMAT, **dataclasses.asdict(heads.cfg)}
    with foreign_writer():
        save_file({name: np.ascontiguousarray(np.asarray(x)) for name, x in arrays.items()}, folder / ARRAYS)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        checksums.write(folder)


def load(path: str | Path) -> Heads:
    """Load heads that `save` or `jaxinfer train heads` wrote. Raises InputError for anything else or damaged."""
    folder = path_of(path, "heads")
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: holds no {MANIFEST}; give a folder that `jaxinfer train heads` wrote")
    has_checksums = checksums.verify(folder, (MANIFEST, ARRAYS))
    cfg = _read_config(folder / MANIFEST, has_checksums)
    try:
        arrays = load_file(folder / ARRAYS)
    except (OSError, SafetensorError, TypeError, KeyError) as error:  # the last two: of a dtype that numpy has not
        raise InputError(f"{folder / ARRAYS}: cannot be read: {shown_error(error)}") from None
    _check_shapes(folder, cfg, arrays)
    vocab = arrays.pop("vocab")
    if vocab.dtype.kind not in "iu":
        raise InputError(f"{folder / ARRAYS}: 'vocab' holds {vocab.dtype}, not whole numbers")
    if vocab.min() < 0 or vocab.max() >= cfg.vocab_size:
        raise InputError(f"{folder / ARRAYS}: 'vocab' holds ids beyond the {cfg.vocab_size} tokens of {cfg.backbone}")
    for name, x in arrays.items():
        if x.dtype.kind not in "fV":  # V: bfloat16
            raise InputError(f"{folder / ARRAYS}: {name!r} holds {x.dtype}, not numbers with a point")
    warn_of_others(arrays, str(folder / ARRAYS), "array")
    params = {name.removeprefix("params/"): jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    return Heads(unflatten(params), jnp.asarray(vocab.astype(np.int32)), cfg)


def _check_shapes(folder: Path, cfg: HeadsConfig, arrays: dict[str, np.ndarray]) -> None:
    """Raise InputError unless the arrays are those of the configuration, which is not built if they are too few."""
    numbers = sum(x.size for x in arrays.values())
    for name in ("d_model", "draft_vocab", "n_heads", "n_kv_heads", "head_dim", "d_ff"):
        if getattr(cfg, name) > numbers:
            size = getattr(cfg, name)
            raise InputError(
                f"{folder / MANIFEST}: {name}={size} is more than all that {ARRAYS} holds: {numbers} numbers"
            )
    wanted = flatten(jax.eval_shape(lambda: init_params(cfg)))
    shapes = {"vocab": (cfg.draft_vocab,), **{f"params/{name}": leaf.shape for name, leaf in wanted.items()}}
    for name, shape in shapes.items():
        if name not in arrays:
            raise InputError(f"{folder / ARRAYS}: {name!r} of shape {shape} is missing")
        if arrays[name].shape != shape:
            raise InputError(f"{folder / ARRAYS}: {name!r} has shape {arrays[name].shape}, expected {shape}")
    if extra := sorted(set(arrays) - set(shapes)):
        raise InputError(f"{folder / ARRAYS}: {shown(extra[0])} has no place in {cfg.kind} heads")


def _read_config(file: Path, has_checksums: bool) -> HeadsConfig:
    fields = read_json(file)
    format = fields.pop("format", None)
    if isinstance(format, bool) or format not in _READ:
        supported = " and ".join(map(str, _READ))
        raise InputError(f"{file}: is of another format; this version reads formats {supported}")
    if not has_checksums and format > 2:
        raise InputError(f"{file.with_name(checksums.CHECKSUMS)}: no such file, and heads of format {format} have one")
    if not has_checksums:
        warnings.warn(f"{file.parent} was written without checksums: damage to it would not be seen", stacklevel=4)
    cfg = from_json(HeadsConfig, fields, str(file))
    if cfg.count > MOST_COUNT:
        raise InputError(f"{file}: count: {cfg.count} must be from 1 to {MOST_COUNT}")
    if not 2 <= cfg.draft_vocab <= cfg.vocab_size:
        raise InputError(f"{file}: draft_vocab: {cfg.draft_vocab} must be from 2 to the vocabulary of {cfg.vocab_size}")
    if cfg.kind == "eagle":
        for name in ("n_heads", "n_kv_heads", "head_dim", "d_ff"):
            if getattr(cfg, name) < 1:
                raise InputError(f"{file}: {name}: {getattr(cfg, name)} must be at least 1")
        if cfg.n_heads % cfg.n_kv_heads or cfg.head_dim % 2:
            raise InputError(
                f"{file}: n_heads={cfg.n_heads} must be a multiple of n_kv_heads={cfg.n_kv_heads}, "
                f"and head_dim={cfg.head_dim} even"
            )
    return cfg
