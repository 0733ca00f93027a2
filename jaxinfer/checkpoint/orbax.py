"""Orbax checkpoints of this package: stacked parameters, with configuration and tokenizer beside them.

A folder holds `params/` (Orbax), `jaxinfer.json` (format, name, dtype, weights, configuration), if the model has a
tokenizer, `tokenizer.json` and `tokenizer_settings.json`, and checksums of them all (see `checksums`). Folders of
format 1 are read too, with a warning: they have no checksums.
"""

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import jax

from jaxinfer.checkpoint import checksums
from jaxinfer.checkpoint.assemble import Place, flatten, unflatten
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.checkpoint.config_json import config_from_json, config_to_json, from_json
from jaxinfer.checkpoint.finite import warn_of_others
from jaxinfer.checkpoint.hf_tokenizer import read_backend
from jaxinfer.checkpoint.orbax_io import Stored, metadata, restored, write
from jaxinfer.checkpoint.sharded import Progress, Target, axes_of, fill
from jaxinfer.checkpoint.tokenizer import Tokenizer, TokenizerSettings
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host.files import foreign_writer, new_folder, read_json, shown_error
from jaxinfer.network.transformer import abstract_params, param_axes
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.qtensor import from_plain, to_plain
from jaxinfer.weights.quantize import format_of, quantize_leaf, quantize_params

MANIFEST, PARAMS, TOKENIZER, SETTINGS = "jaxinfer.json", "params", "tokenizer.json", "tokenizer_settings.json"
_FORMAT = 2
_READ = (1, 2)
_BITS = 32  # of a stored number, at most


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Holds what jaxinfer.json says."""

    format: int
    config: dict
    name: str = "model"
    dtype: Literal["float32", "bfloat16"] = "float32"
    weights: str | None = None


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint into a new folder: all of it, or nothing.

    Raises InputError if `path` exists or cannot be written.
    """
    with new_folder(path) as draft:
        _write(checkpoint, draft)


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    format = format_of(checkpoint.params)
    manifest = {
        "format": _FORMAT,
        "name": checkpoint.name,
        "dtype": "float32" if format else str(checkpoint.params["embed"]["embedding"].dtype),
        "weights": format,
        "config": config_to_json(checkpoint.config),
    }
    with foreign_writer():
        write(folder / PARAMS, to_plain(checkpoint.params))
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False), encoding="utf-8")
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.backend.save(str(folder / TOKENIZER), pretty=False)
            settings = json.dumps(dataclasses.asdict(checkpoint.tokenizer.settings), indent=2)
            (folder / SETTINGS).write_text(settings, encoding="utf-8")
        checksums.write(folder)


def load(
    path: Path,
    dtype: Any,
    place: Place,
    weights: str | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> tuple[ModelConfig, dict, Tokenizer | None, str]:
    """Read what `save` wrote: configuration, parameters in `dtype`, tokenizer, name. The rest: see `load_checkpoint`.

    Raises InputError if the folder is not such a checkpoint, is damaged, or has weights of another format already.
    """
    turns = target.turns if target else (0, 1)
    has_checksums = checksums.verify(path, (MANIFEST, TOKENIZER, SETTINGS), (PARAMS,), *turns)
    manifest = _read_manifest(path / MANIFEST)
    config = config_from_json(manifest.config, f"{path / MANIFEST}: config")
    if weights is not None and manifest.weights not in (None, weights):
        raise InputError(f"{path}: {shown_text(manifest.name)} has {manifest.weights} weights already")
    if not has_checksums:
        _warn(path, manifest.format)
    tokenizer = _read_tokenizer(path, config.vocab_size)
    params = _read_params(path, config, dtype, place, manifest.weights, weights, target, progress)
    return config, params, tokenizer, shown_text(manifest.name)


def read_config(path: Path) -> ModelConfig:
    """Read the configuration alone. Raises InputError for a damaged manifest."""
    return config_from_json(_read_manifest(path / MANIFEST).config, f"{path / MANIFEST}: config")


def _read_manifest(file: Path) -> Manifest:
    values = read_json(file, infinity=True)
    if "format" in values and (isinstance(values["format"], bool) or values["format"] not in _READ):
        supported = ", ".join(map(str, _READ))
        raise InputError(f"{file}: format {shown(values['format'])} is not supported; supported: {supported}")
    if values.get("weights") is not None:
        FORMATS.find(values["weights"], f"{file}: weights")
    return from_json(Manifest, {"name": file.parent.name} | values, str(file))


def _warn(path: Path, format: int) -> None:
    if format > 1:
        raise InputError(f"{path / checksums.CHECKSUMS}: no such file, and {path} is of a format that has one")
    warnings.warn(
        f"{path} was written without checksums, and damage to it would not be seen: convert it again", stacklevel=4
    )


def _read_params(
    path: Path,
    config: ModelConfig,
    dtype: Any,
    place: Place,
    has: str | None,
    weights: str | None,
    target: Target | None,
    progress: Progress | None,
) -> dict:
    folder = path / PARAMS
    found = metadata(folder)
    tree = _expected(path / MANIFEST, config, dtype, has, found)
    wanted = flatten(to_plain(tree))
    _check(folder, wanted, found)
    if target is not None:
        axes = axes_of(tree, param_axes(config))
        filled = fill(Stored(folder, wanted), axes, target, None if has else weights, progress)
        return from_plain(filled, tree) if has else filled
    leaves = flatten(restored(folder, wanted))
    warn_of_others(leaves, str(folder))

    def placed(name: str) -> Any:
        leaf = jax.block_until_ready(place(leaves.pop(name)))
        return leaf if has or not weights else jax.block_until_ready(quantize_leaf(name, leaf, weights))

    filled = unflatten({name: placed(name) for name in wanted})
    return from_plain(filled, tree) if has else filled


def _expected(file: Path, config: ModelConfig, dtype: Any, has: str | None, found: dict[str, Any]) -> dict:
    """List a configuration's parameters. Raises InputError, before they are built, if the folder has not so many."""
    numbers = sum(math.prod(leaf.shape) for leaf in found.values())
    for i, segment in enumerate(config.segments):
        for j in range(len(segment.pattern)):
            inside = [leaf.shape for name, leaf in found.items() if name.startswith(f"segment_{i}/layer_{j}/")]
            repeats = inside[0][0] if inside and inside[0] else 0
            if repeats != segment.repeats:
                where = f"{file}: config.segments[{i}].repeats: {segment.repeats} layers"
                raise InputError(f"{where} like pattern[{j}], and {PARAMS} holds {repeats}")
    for name, size in _sizes(config):
        if size > numbers * (_BITS if has else 1):  # no format takes less than a bit for a weight
            raise InputError(f"{file}: config: {name}={size} is more than all that {PARAMS} holds, {numbers} numbers")
    try:
        tree = abstract_params(config, dtype)
        return tree if has is None else jax.eval_shape(lambda params: quantize_params(params, has), tree)
    except Exception as error:  # of any layer, about numbers that do not go together
        raise InputError(f"{file}: the configuration does not fit together: {shown_error(error)}") from None


def _sizes(config: Any) -> list[tuple[str, int]]:
    """List the whole numbers in a configuration and its dataclasses that are lengths of axes, with their names."""
    free = ("max_positions", "original_max_positions", "window", "repeats")
    found: list[tuple[str, int]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(item):
                found += _sizes(item)
            elif isinstance(item, int) and field.name not in free:
                found.append((field.name, item))
    return found


def _read_tokenizer(path: Path, vocab_size: int) -> Tokenizer | None:
    if not (path / TOKENIZER).exists():
        return None
    file = path / SETTINGS
    settings = TokenizerSettings.of(read_json(file), file, vocab_size)
    return Tokenizer(read_backend(path / TOKENIZER), settings)


def _check(path: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    for name, leaf in wanted.items():
        if name not in found:
            raise InputError(f"{path}: parameter {name!r} of shape {leaf.shape} is missing")
        if tuple(found[name].shape) != leaf.shape:
            raise InputError(f"{path}: parameter {name!r} has shape {tuple(found[name].shape)}, expected {leaf.shape}")
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise InputError(f"{path}: parameter {extra[0]!r} has no place in this configuration")
