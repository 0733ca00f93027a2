"""Orbax checkpoints of this package: stacked parameters, with configuration and tokenizer beside them.

A folder holds `params/` (Orbax), `jaxinfer.json` (format, name, dtype, configuration), and, if the model has a
tokenizer, `tokenizer.json` and `tokenizer_settings.json`.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinfer.checkpoint.assemble import Place, flatten, unflatten
from jaxinfer.checkpoint.config_json import config_from_json, config_to_json
from jaxinfer.checkpoint.huggingface import read_backend, read_json
from jaxinfer.checkpoint.tokenizer import Tokenizer, TokenizerSettings
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError
from jaxinfer.layers.qtensor import format_of, from_plain, to_plain
from jaxinfer.model import abstract_params

if TYPE_CHECKING:
    from jaxinfer.checkpoint import Checkpoint

MANIFEST = "jaxinfer.json"
_FORMAT = 1


def save(checkpoint: "Checkpoint", path: str | Path) -> None:
    """Write a checkpoint into a new folder: all of it, or nothing.

    Raises InputError if `path` exists or cannot be written.
    """
    with new_folder(path) as draft:
        _write(checkpoint, draft)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end: all of it, or nothing.

    Raises InputError if `path` exists or cannot be written.
    """
    path = refuse_existing(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        draft.rename(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse_existing(path: str | Path) -> Path:
    """The absolute path of a folder to be written. Raises InputError if it exists."""
    path = Path(path).expanduser().absolute()
    if path.exists():
        raise InputError(f"{path}: already exists; give a folder that does not")
    return path


def _write(checkpoint: "Checkpoint", folder: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", to_plain(checkpoint.params))
        checkpointer.wait_until_finished()
    format = format_of(checkpoint.params)
    manifest = {
        "format": _FORMAT,
        "name": checkpoint.name,
        "dtype": "float32" if format else str(checkpoint.params["embed"]["embedding"].dtype),
        "weights": format,
        "config": config_to_json(checkpoint.config),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.backend.save(str(folder / "tokenizer.json"), pretty=False)
        settings = json.dumps(dataclasses.asdict(checkpoint.tokenizer.settings), indent=2)
        (folder / "tokenizer_settings.json").write_text(settings, encoding="utf-8")


def convert(source: str | Path, destination: str | Path, dtype: Any = None, weights: str | None = None) -> None:
    """Load a model from any source and save it as a folder of this format; `dtype` None is float32.

    weights: a format of `transform.quantize` to round the weights to.

    Raises InputError as loading and saving do.
    """
    from jaxinfer.checkpoint import load_checkpoint
    from jaxinfer.transform.quantize import check_format

    if weights is not None:
        check_format(weights)
    refuse_existing(destination)  # before the long part
    save(load_checkpoint(source, dtype or "float32", weights=weights), destination)


def load(
    path: Path, dtype: Any, place: Place, weights: str | None = None
) -> tuple[ModelConfig, dict, Tokenizer | None, str]:
    """Read what `save` wrote: configuration, parameters in `dtype`, tokenizer, name. `weights`: see `load_checkpoint`.

    Raises InputError if the folder is not such a checkpoint, is damaged, or has weights of another format already.
    """
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") != _FORMAT:
        raise InputError(f"{path / MANIFEST}: format {manifest.get('format')!r} is not supported; supported: {_FORMAT}")
    try:
        config = config_from_json(manifest["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path / MANIFEST}: the configuration does not fit: {error}") from None
    name, has = str(manifest.get("name", path.name)), manifest.get("weights")
    if weights is not None and has not in (None, weights):
        raise InputError(f"{path}: {name} has {has} weights already")
    params = _read_params(path, config, dtype, place, has, weights)
    return config, params, _read_tokenizer(path), name


def _read_params(
    path: Path, config: ModelConfig, dtype: Any, place: Place, has: str | None, weights: str | None
) -> dict:
    import orbax.checkpoint as ocp

    from jaxinfer.transform.quantize import check_format, quantize_leaf, quantize_params

    tree = abstract_params(config, dtype)
    if has is not None:
        check_format(has, f"{path / MANIFEST}: weights ")
        tree = jax.eval_shape(lambda params: quantize_params(params, has), tree)
    wanted = flatten(to_plain(tree))
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            found = flatten(_shapes(checkpointer, path / "params"))
        except Exception as error:  # orbax raises many kinds
            raise InputError(f"{path / 'params'}: is not an Orbax checkpoint, or is damaged: {error}") from None
        _check(path, wanted, found)
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype) for name, leaf in wanted.items()}
        try:
            params = checkpointer.restore(path / "params", restore_args=unflatten(as_numpy))
        except Exception as error:
            raise InputError(f"{path / 'params'}: is damaged: {error}") from None
    leaves = flatten(params)
    del params

    def placed(name: str) -> Any:
        leaf = jax.block_until_ready(place(leaves.pop(name)))
        return leaf if has or not weights else jax.block_until_ready(quantize_leaf(name, leaf, weights))

    found = unflatten({name: placed(name) for name in wanted})
    return from_plain(found, tree) if has else found


def _read_tokenizer(path: Path) -> Tokenizer | None:
    if not (path / "tokenizer.json").exists():
        return None
    values = read_json(path / "tokenizer_settings.json")
    try:
        settings = TokenizerSettings(**values | {"eos_ids": tuple(values["eos_ids"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path / 'tokenizer_settings.json'}: does not fit: {error}") from None
    return Tokenizer(read_backend(path / "tokenizer.json"), settings)


def _shapes(checkpointer: Any, path: Path) -> dict:
    return checkpointer.metadata(path).item_metadata.tree


def _check(path: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    for name, leaf in wanted.items():
        if name not in found:
            raise InputError(f"{path}: parameter {name!r} of shape {leaf.shape} is missing")
        if tuple(found[name].shape) != leaf.shape:
            raise InputError(f"{path}: parameter {name!r} has shape {tuple(found[name].shape)}, expected {leaf.shape}")
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise InputError(f"{path}: parameter {extra[0]!r} has no place in this configuration")
