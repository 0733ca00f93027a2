"""GGUF files (llama.cpp's format): configuration from the metadata, tensors dequantized by rows."""

import math
from pathlib import Path

import numpy as np

from jaxinfer.checkpoint.families import by_gguf_arch, by_name, configured
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.gguf_header import Header, TensorInfo, read_header
from jaxinfer.checkpoint.imports import require
from jaxinfer.checkpoint.mapping import Family, Tensor, Tensors
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError


def open_gguf(path: Path) -> tuple[Header, Family, ModelConfig, Tensors]:
    """Open a GGUF file: nothing but its header is read until rows of a tensor are.

    Raises InputError if the file is cut short or corrupted, or holds a model or a quantization that is not supported.
    """
    header = read_header(path)
    tensors = {name: _tensor(header, name, info) for name, info in header.tensors.items()}
    arch = Fields(str(path), header.metadata).text("general.architecture")
    family = by_gguf_arch(arch, str(path))
    fields = Fields(str(path), header.metadata, prefix=f"{arch}.")
    read = family.gguf_config
    assert read is not None  # it was found by its name in GGUF files
    config = configured(lambda: read(fields, tensors), str(path))
    family = by_name(config.family)  # Mixtral's files say llama
    return header, family, config, family.gguf_tensors(config, tensors) if family.gguf_tensors else tensors


def _tensor(header: Header, name: str, info: TensorInfo) -> Tensor:
    gguf = require("gguf", "to read GGUF files")
    try:
        kind = gguf.GGMLQuantizationType(info.type)
    except ValueError:
        raise InputError(f"{header.path}: tensor {name!r} has the unknown quantization type {info.type}") from None
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if not info.shape or info.shape[-1] % block:
        raise InputError(f"{header.path}: tensor {name!r} has shape {info.shape}, no multiple of {kind.name}'s {block}")
    row_bytes = info.shape[-1] // block * block_bytes
    n_rows = math.prod(info.shape[:-1])
    if info.start + n_rows * row_bytes > len(header.data):
        raise InputError(
            f"{header.path}: the file is cut short: tensor {name!r} ends at byte {info.start + n_rows * row_bytes}, "
            f"and the file has {len(header.data)}; download it again"
        )

    def rows(start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the first axis, float32. A vector is dequantized whole: blocks run along it."""
        if len(info.shape) == 1:
            return dequantized(0, 1)[0, start:stop]
        per_row = n_rows // info.shape[0]
        return dequantized(start * per_row, stop * per_row).reshape(stop - start, *info.shape[1:])

    def dequantized(start: int, stop: int) -> np.ndarray:
        raw = np.frombuffer(header.data, np.uint8, (stop - start) * row_bytes, info.start + start * row_bytes)
        try:
            # As one row: the package loops in Python over groups of rows.
            return gguf.dequantize(raw.reshape(1, -1), kind).reshape(stop - start, info.shape[-1])
        except NotImplementedError:
            raise InputError(f"{header.path}: tensor {name!r}: quantization {kind.name} is not supported") from None

    return Tensor(info.shape, rows)
