"""Writes a model as a Hugging Face folder: config.json, safetensors in shards, the tokenizer."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.families import by_name
from jaxinfer.checkpoint.huggingface import CONFIG, INDEX, WEIGHTS
from jaxinfer.checkpoint.mapping import Family, Slot, slots
from jaxinfer.checkpoint.orbax import new_folder, refuse_existing
from jaxinfer.checkpoint.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jaxinfer.checkpoint import Checkpoint

SHARD_BYTES = 4 << 30


def export(source: str | Path, destination: str | Path, dtype: Any = None) -> None:
    """Load a model from any source and write it as a folder that transformers loads; `dtype` None is float32.

    Quantized weights are written as the numbers that they stand for.

    Raises InputError as loading does, and if the destination exists or cannot be written.
    """
    from jaxinfer.checkpoint import load_checkpoint
    from jaxinfer.transform.quantize import dequantize_params

    refuse_existing(destination)  # before the long part
    found = load_checkpoint(source, dtype or "float32")
    params = dequantize_params(found.params, dtype or "float32")
    save_folder(dataclasses.replace(found, params=params), destination)


def save_folder(checkpoint: "Checkpoint", path: str | Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint as a Hugging Face folder: all of it, or nothing. Raises InputError if that cannot be done."""
    family = by_name(checkpoint.config.family)
    with new_folder(path) as draft:
        _write_config(checkpoint, family, draft / CONFIG)
        _write_weights(checkpoint, family, draft, shard_bytes)
        if checkpoint.tokenizer is not None:
            _write_tokenizer(checkpoint.tokenizer, draft)


def _write_config(checkpoint: "Checkpoint", family: Family, file: Path) -> None:
    fields = {"model_type": family.hf_types[0], **family.hf_fields(checkpoint.config)}
    fields["dtype"] = str(checkpoint.params["embed"]["embedding"].dtype)
    tokenizer = checkpoint.tokenizer
    fields["bos_token_id"] = tokenizer.bos_id if tokenizer else None
    fields["eos_token_id"] = (list(tokenizer.stop_ids) or None) if tokenizer else None
    fields["pad_token_id"] = None
    file.write_text(json.dumps(fields, indent=2), encoding="utf-8")


def _write_weights(checkpoint: "Checkpoint", family: Family, folder: Path, shard_bytes: int) -> None:
    """One file if everything fits in a shard; else shards and an index. Holds one shard in memory."""
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
    """One tensor of the file, from the parameters that it holds. What none of them fills is zero."""
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

    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": text(tokenizer.bos_id)}
    if tokenizer.settings.eos_ids:
        settings["eos_token"] = text(tokenizer.settings.eos_ids[0])
    if tokenizer.settings.chat_template:
        (folder / "chat_template.jinja").write_text(tokenizer.settings.chat_template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
