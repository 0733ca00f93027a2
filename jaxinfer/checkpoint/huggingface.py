"""Hugging Face folders: config.json, safetensors in one file or in shards."""

import re
from pathlib import Path

import numpy as np

from jaxinfer.checkpoint import float8
from jaxinfer.checkpoint.families import by_hf_type, configured
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Tensor, Tensors
from jaxinfer.checkpoint.shards import INDEX, WEIGHTS, files_of, opened, tensors_in
from jaxinfer.checkpoint.sizes import check_layers
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import read_json

CONFIG = "config.json"
__all__ = ["CONFIG", "INDEX", "WEIGHTS", "open_folder"]
_BLOCK = 1 << 20  # numbers of embedding and head that are compared at once


def open_folder(folder: Path) -> tuple[Family, ModelConfig, Tensors]:
    """Open a Hugging Face folder; tensors are read when their rows are.

    Raises InputError if a file is missing or damaged, or if the model is of a family that is not supported.
    """
    file = folder / CONFIG
    fields = Fields(str(file), read_json(file, infinity=True))  # the bound of Mamba-2's time steps
    family = by_hf_type(fields.text("model_type"), fields.file)
    packing = fields.group("quantization_config")
    in_float8 = packing is not None and float8.announced(packing)
    if not in_float8 and (packing is None or packing.get("quant_method", None) != family.hf_packing):
        fields.refuse("quantization_config", "such quantized Hugging Face checkpoints are not supported; GGUF ones are")
    block = float8.block_size(packing) if packing and in_float8 else None
    tensors, codes = _tensors(folder, family, packing is not None, in_float8)
    if in_float8:
        tensors = float8.widened(codes, tensors, block, str(folder))
    for values in (fields, fields.group("text_config")):
        if values:
            check_layers(values, tensors)
    config = configured(lambda: family.from_hf(fields), fields.file)
    if family.hf_tensors:
        tensors = family.hf_tensors(tensors)
    return family, *_with_own_head(family, config, tensors)


def _tensors(folder: Path, family: Family, packed: bool, in_float8: bool) -> tuple[Tensors, Tensors]:
    """Return the tensors of all files by the names of the family's table; those that are in float8 apart, as bytes."""
    plain: Tensors = {}
    codes: Tensors = {}
    for file, promised in files_of(folder).items():
        found = opened(file, promised)
        own, raw = tensors_in(file, found, sorted(promised or found.keys()), packed, in_float8)
        plain, codes = plain | own, codes | raw
    written: dict[str, str] = {}
    for name, other in zip((*plain, *codes), _table_names(family, (*plain, *codes)), strict=True):
        if other in written:
            raise InputError(
                f"{folder}: tensors {shown(written[other], 120)} and {shown(name, 120)} are one in this model"
            )
        written[other] = name
    table = {name: other for other, name in written.items()}
    return {table[name]: x for name, x in plain.items()}, {table[name]: x for name, x in codes.items()}


def _table_names(family: Family, names: tuple[str, ...]) -> list[str]:
    """Return names as the family's table has them: what AutoModel saves lacks the part that they begin with."""
    renamed = [_renamed(family, name) for name in names]
    embedding, head = _ends(family)
    base = embedding.split(".")[0] + "."
    if any(name.startswith(base) for name in renamed):
        return renamed
    outside = head.split(".")[0] + "."
    return [name if name.startswith(outside) else base + name for name in renamed]


def _renamed(family: Family, name: str) -> str:
    for pattern, table in family.hf_renames:
        name = re.sub(pattern, table, name)
    for written, table in family.hf_prefixes:
        if name.startswith(written):
            return table + name.removeprefix(written)
    return name


def _ends(family: Family) -> tuple[str, str]:
    """Return the names of embedding and head."""
    names = {rule.param: rule.hf for rule in family.rules}
    return names["embed/embedding"], names["head/kernel"]


def _with_own_head(family: Family, config: ModelConfig, tensors: Tensors) -> tuple[ModelConfig, Tensors]:
    """Untie a head that the file holds, whatever the configuration says, unless it is the embedding once more.

    Where the embedding is not there, the head stands for both (transformers 5, `tie_weights`).
    """
    embedding, head = _ends(family)
    if not config.tie_embeddings or head not in tensors:
        return config, tensors
    if embedding not in tensors:
        return config, tensors | {embedding: tensors[head]}
    if _equal(tensors[embedding], tensors[head]):
        return config, tensors
    return config.replace(tie_embeddings=False), tensors


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or len(one.shape) != 2:
        return False
    rows = max(1, _BLOCK // max(1, one.shape[1]))
    starts = range(0, one.shape[0], rows)
    return all(
        np.array_equal(one.rows(n, min(n + rows, one.shape[0])), other.rows(n, min(n + rows, one.shape[0])))
        for n in starts
    )
