"""Heads as a folder: heads.safetensors holds the arrays, heads.json says what they are and for which model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxinfer.checkpoint.assemble import flatten, unflatten
from jaxinfer.checkpoint.huggingface import read_json
from jaxinfer.checkpoint.orbax import new_folder
from jaxinfer.errors import InputError
from jaxinfer.heads import eagle, resblock
from jaxinfer.heads.heads import KINDS, Heads, HeadsConfig

ARRAYS, MANIFEST, FORMAT = "heads.safetensors", "heads.json", 2


def init_params(cfg: HeadsConfig, seed: int = 0, final_scale: Any = None) -> dict[str, Any]:
    """Parameters to begin training with."""
    key = jax.random.key(seed)
    return eagle.init(cfg, key, final_scale) if cfg.kind == "eagle" else resblock.init(cfg, key)


def save(heads: Heads, path: str | Path) -> None:
    """Write heads into a new folder: all of it, or nothing. Raises InputError if it exists or cannot be written."""
    with new_folder(path) as draft:
        write(heads, draft)


def write(heads: Heads, folder: Path) -> None:
    """Both files, into a folder that is there."""
    arrays = {"vocab": heads.vocab, **{f"params/{name}": leaf for name, leaf in flatten(heads.params).items()}}
    save_file({name: np.ascontiguousarray(np.asarray(x)) for name, x in arrays.items()}, folder / ARRAYS)
    manifest = {"format": FORMAT, **dataclasses.asdict(heads.cfg)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path) -> Heads:
    """Heads that `save` or `jaxinfer train heads` wrote. Raises InputError for anything else, or what is damaged."""
    folder = Path(path).expanduser()
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: holds no {MANIFEST}; give a folder that `jaxinfer train heads` wrote")
    cfg = _read_config(folder / MANIFEST)
    try:
        arrays = load_file(folder / ARRAYS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / ARRAYS}: cannot be read: {error}") from None
    wanted = flatten(jax.eval_shape(lambda: init_params(cfg)))
    shapes = {"vocab": (cfg.draft_vocab,), **{f"params/{name}": leaf.shape for name, leaf in wanted.items()}}
    for name, shape in shapes.items():
        if name not in arrays:
            raise InputError(f"{folder / ARRAYS}: {name!r} of shape {shape} is missing")
        if arrays[name].shape != shape:
            raise InputError(f"{folder / ARRAYS}: {name!r} has shape {arrays[name].shape}, expected {shape}")
    if extra := sorted(set(arrays) - set(shapes)):
        raise InputError(f"{folder / ARRAYS}: {extra[0]!r} has no place in {cfg.kind} heads")
    vocab = arrays.pop("vocab").astype(np.int32)
    if vocab.min() < 0 or vocab.max() >= cfg.vocab_size:
        raise InputError(f"{folder / ARRAYS}: 'vocab' holds ids beyond the {cfg.vocab_size} tokens of {cfg.backbone}")
    params = {name.removeprefix("params/"): jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    return Heads(unflatten(params), jnp.asarray(vocab), cfg)


def _read_config(file: Path) -> HeadsConfig:
    fields = read_json(file)
    if fields.pop("format", None) != FORMAT:
        raise InputError(f"{file}: is of another format; this version reads format {FORMAT}")
    known = {field.name: type(field.default) for field in dataclasses.fields(HeadsConfig)}
    for name in fields:
        if name not in known:
            raise InputError(f"{file}: {name!r} is no field of heads")
    try:
        cfg = HeadsConfig(**fields)
    except TypeError as error:
        raise InputError(f"{file}: {error}") from None
    if cfg.kind not in KINDS:
        raise InputError(f"{file}: kind {cfg.kind!r} is unknown; known: {', '.join(KINDS)}")
    for field in dataclasses.fields(HeadsConfig):
        value, textual = getattr(cfg, field.name), field.name in ("kind", "backbone")
        real = field.name in ("rope_theta", "eps")
        if not isinstance(value, str if textual else (int, float) if real else int) or isinstance(value, bool):
            raise InputError(f"{file}: {field.name}={value!r} is not {'text' if textual else 'a number'}")
    return cfg
