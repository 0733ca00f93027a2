"""Weights in float8 with a scale for each block, as DeepSeek-V3 and the FP8 files of Qwen 3 are published.

A matrix `*.weight` float8_e4m3fn[out, in] comes with `*.weight_scale_inv` float32[out / block, in / block], rounded up:
what the numbers of each block are multiplied by (DeepSeek-V3, 2024, section 3.3.2). They are widened while they are
read; activations are not quantized.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Tensor, Tensors
from jaxinfer.errors import InputError

METHOD, DTYPE, SCALES = "fp8", "F8_E4M3", "_scale_inv"
_NUMBERS = np.arange(256, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float32)

Block = tuple[int, int]


def block_size(packing: Fields) -> Block:
    """Rows and columns that share a scale. Raises InputError if the file says neither, or another format."""
    packing.require("fmt", "e4m3")
    sizes = packing.get("weight_block_size")
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise InputError(
            f"{packing.file}: field 'weight_block_size' must be a list of two whole numbers above zero, not {sizes!r}"
        )
    return sizes[0], sizes[1]


def codes(file: Path) -> Tensors:
    """The tensors of a safetensors file that are in float8, as bytes: numpy has no such numbers, nor has its reader."""
    raw = np.memmap(file, np.uint8, "r")
    begin = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:begin].tobytes())

    def tensor(shape: list[int], start: int, stop: int) -> Tensor:
        whole = raw[begin + start : begin + stop].reshape(shape)
        return Tensor(tuple(shape), lambda first, last: whole[first:last])

    found = {name: entry for name, entry in header.items() if entry.get("dtype") == DTYPE}
    return {name: tensor(entry["shape"], *entry["data_offsets"]) for name, entry in found.items()}


def widened(packed: Tensors, tensors: Tensors, block: Block, source: str) -> Tensors:
    """`tensors` without scales, with the numbers of `packed`. Raises InputError if scales are missing or do not fit."""
    found = dict(tensors)
    for name, tensor in packed.items():
        scales = found.pop(name + SCALES, None)
        if scales is None:
            raise InputError(f"{source}: tensor {name!r} is in float8, and its scales, {name + SCALES!r}, are missing")
        expected = tuple(-(-length // size) for length, size in zip(tensor.shape, block, strict=False))
        if len(tensor.shape) != 2 or scales.shape != expected:
            raise InputError(f"{source}: tensor {name + SCALES!r} has shape {scales.shape}, expected {expected}")
        found[name] = _widened(tensor, scales, block)
    return found


def _widened(tensor: Tensor, scales: Tensor, block: Block) -> Tensor:
    height, width = block
    columns = tensor.shape[1]

    def rows(start: int, stop: int) -> np.ndarray:
        first, last = start // height, -(-stop // height)
        each = scales.rows(first, last).astype(np.float32).repeat(width, axis=1)[:, :columns]
        return _NUMBERS[tensor.rows(start, stop)] * each[np.arange(start, stop) // height - first]

    return Tensor(tensor.shape, rows)
