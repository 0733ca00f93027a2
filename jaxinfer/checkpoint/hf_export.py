"""Writes a model as a Hugging Face folder: config.json, safetensors in shards, the tokenizer."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.checkpoint.expressible import hf_fields
from jaxinfer.checkpoint.families import by_name
from jaxinfer.checkpoint.hf_tokenizer import TEMPLATE, TEMPLATES
from jaxinfer.checkpoint.huggingface import CONFIG, INDEX, WEIGHTS
from jaxinfer.checkpoint.mapping import Family, Slot, slots
from jaxinfer.checkpoint.tokenizer import Tokenizer
from jaxinfer.errors import InputError
from jaxinfer.host.files import foreign_writer, new_folder
from jaxinfer.weights.quantize import format_of

SHARD_BYTES = 4 << 30


def save_folder(checkpoint: Checkpoint, path: str | Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint as a Hugging Face folder: all of it, or nothing.

    Raises InputError if that cannot be done, or if transformers would read another model from it: see `expressible`.
    """
    family = by_name(checkpoint.config.family)
    fields = _checked(checkpoint, family)
    with new_folder(path) as draft, foreign_writer():
        _write_config(checkpoint, family, fields, draft / CONFIG)
        _write_weights(checkpoint, family, draft, shard_bytes)
        if checkpoint.tokenizer is not None:
            _write_tokenizer(checkpoint.tokenizer, draft)


def _checked(checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    """Return the fields of config.json. Raises InputError unless they and the tensors say all of the model."""
    name = checkpoint.name
    if format := format_of(checkpoint.params):
        raise InputError(f"{name} has {format} weights: give weights.quantize.dequantize_params(params, dtype)")
    fields = hf_fields(checkpoint.config, family, name)
    leaves = set(flatten(checkpoint.params))
    written = {slot.path for parts in slots(family, checkpoint.config, "hf", leaves).values() for slot in parts}
    if left := sorted(leaves - written):
        raise InputError(f"{name}: parameter {left[0]!r} has no place in a Hugging Face folder of {family.name}")
    return fields


def _write_config(checkpoint: Checkpoint, family: Family, fields: dict[str, Any], file: Path) -> None:
    fields = {"model_type": family.hf_types[0], **fields}
    fields["dtype"] = str(checkpoint.params["embed"]["embedding"].dtype)
    tokenizer = checkpoint.tokenizer
    fields["bos_token_id"] = tokenizer.bos_id if tokenizer else None
    fields["eos_token_id"] = (list(tokenizer.stop_ids) or None) if tokenizer else None
    fields["pad_token_id"] = None
    file.write_text(json.dumps(fields, indent=2), encoding="utf-8")


def _write_weights(checkpoint: Checkpoint, family: Family, folder: Path, shard_bytes: int) -> None:
    """Write one file if everything fits in a shard; else shards and an index. Holds one shard in memory."""
    leaves = flatten(checkpoint.params)
    wanted = slots(family, checkpoint.config, "hf", set(leaves))
    size = {name: _n_bytes(parts, leaves) for name, parts in wanted.items()}
    shards: list[list[str]] = [[]]
    for name in wanted:
        if shards[-1] and sum(size[n] for n in shards[-1]) + size[name] > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    where: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = WEIGHTS if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {family.hf_written(checkpoint.config, name): _tensor(wanted[name], leaves) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(size.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _n_bytes(parts: list[Slot], leaves: dict[str, Any]) -> int:
    leaf = leaves[parts[0].path]
    return int(np.prod(parts[0].file_shape(leaf.shape))) * leaf.dtype.itemsize


def _tensor(parts: list[Slot], leaves: dict[str, Any]) -> np.ndarray:
    """Return one tensor of the file, from the parameters that it holds. What none of them fills is zero."""
    first = np.asarray(leaves[parts[0].path])
    whole = np.zeros(parts[0].file_shape(first.shape), first.dtype)
    for slot in parts:
        own = slot.of(np.asarray(leaves[slot.path]))
        if slot.offset:
            own = (own.astype(np.float32) - np.float32(slot.offset)).astype(first.dtype)
        into = slot.part.of(whole) if slot.part else whole
        into[...] = own.reshape(into.shape)
    return whole


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.backend.save(str(folder / "tokenizer.json"), pretty=False)

    def text(id: int | None) -> str | None:
        return None if id is None else tokenizer.backend.id_to_token(id)

    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.settings.special_tokens}
    settings["bos_token"] = text(tokenizer.bos_id)
    if tokenizer.settings.eos_ids:
        settings["eos_token"] = text(tokenizer.settings.eos_ids[0])
    if tokenizer.settings.chat_template:
        (folder / TEMPLATE).write_text(tokenizer.settings.chat_template, encoding="utf-8")
    for name, template in tokenizer.settings.named_templates.items():
        (folder / TEMPLATES).mkdir(exist_ok=True)
        (folder / TEMPLATES / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
