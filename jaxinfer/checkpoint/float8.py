"""Weights in float8 with scales: for each block, for each row, or for a whole tensor.

A matrix `*.weight` float8_e4m3fn[out, in] comes with what its numbers are multiplied by, under either of two names:

- `*.weight_scale_inv` float32[out / block, in / block], rounded up, as DeepSeek-V3 (2024, section 3.3.2) and the FP8
  files of Qwen 3 are published; or one number for the whole tensor;
- `*.weight_scale`: one number (AutoFP8), or one for each row (compressed-tensors, format float-quantized).

They are widened while they are read. Activations are not quantized: the scales that some files have for them are left.
"""

import re
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapped import Bounds
from jaxinfer.checkpoint.mapping import Tensor, Tensors
from jaxinfer.errors import InputError, shown

DTYPE = "F8_E4M3"
_SCALES = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = re.compile(r".*\.(input_scale|output_scale|activation_scale|input_activation_scale|[qkv]_scale)")
_NUMBERS = np.arange(256, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float32)
_DEFAULT_BLOCK = (128, 128)  # transformers, FineGrainedFP8Config

Block = tuple[int, int]


def announced(packing: Fields) -> bool:
    """Tell whether a `quantization_config` says that weights are in float8. Raises InputError for another float8."""
    method = packing.get("quant_method", None)
    if method == "fp8":
        packing.require("fmt", "e4m3")
        return True
    if method != "compressed-tensors" or packing.get("format", None) != "float-quantized":
        return False
    groups = packing.group("config_groups") or Fields(packing.file, {})
    for name in groups.values:
        group = groups.group(name)
        weights = group.group("weights") if group else None
        if weights:
            weights.require("type", "float")
            weights.require("num_bits", 8)
    return True


def block_size(packing: Fields) -> Block | None:
    """Return the rows and columns that share a scale; None: a row or a tensor does. Raises InputError if it is no size.

    compressed-tensors names it in a group of its configuration.
    """
    groups = packing.group("config_groups")
    for name in groups.values if groups else ():
        group = groups.group(name) if groups else None
        weights = group.group("weights") if group else None
        if weights and weights.get("block_structure", None) is not None:
            return _block(weights, "block_structure")
    if packing.get("quant_method", None) != "fp8" or packing.is_null("weight_block_size"):
        return None
    return _block(packing, "weight_block_size") if "weight_block_size" in packing.values else _DEFAULT_BLOCK


def _block(fields: Fields, name: str) -> Block:
    sizes = fields.get(name)
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise InputError(
            f"{fields.file}: field {name!r} must be a list of two whole numbers above zero, not {shown(sizes)}"
        )
    return sizes[0], sizes[1]


def widened(packed: Tensors, tensors: Tensors, block: Block | None, source: str) -> Tensors:
    """Return `tensors` without scales, `packed` as numbers. Raises InputError if scales are missing or do not fit."""
    found = {name: x for name, x in tensors.items() if not _OF_ACTIVATIONS.fullmatch(name)}
    for name, tensor in packed.items():
        scale = next((name + end for end in _SCALES if name + end in found), None)
        if scale is None:
            both = " or ".join(shown(name + end, 120) for end in _SCALES)
            raise InputError(f"{source}: tensor {shown(name, 120)} is in float8, and its scales, {both}, are missing")
        found[name] = _widened(name, tensor, scale, found.pop(scale), block, source)
    return found


def _widened(name: str, tensor: Tensor, scale: str, scales: Tensor, block: Block | None, source: str) -> Tensor:
    """Widen one matrix. The number of its scales tells what shares one."""
    if len(tensor.shape) != 2:
        raise InputError(
            f"{source}: tensor {shown(name, 120)} has shape {tensor.shape}: only matrices in float8 are supported"
        )
    n_rows, n_columns = tensor.shape
    expected = (-(-n_rows // block[0]), -(-n_columns // block[1])) if block else (n_rows, 1)
    one = scales.shape in ((), (1,), (1, 1))
    if not one and not (block is None and scales.shape in ((n_rows,), (n_rows, 1))):
        if block is None or scales.shape != expected:
            raise InputError(f"{source}: tensor {shown(scale, 120)} has shape {scales.shape}, expected {expected}")
        return _in_blocks(tensor, scales, block)

    def boxes(bounds: Bounds) -> np.ndarray:
        return _NUMBERS[tensor.box(bounds)] * _column(scales, *((0, 1) if one else bounds[0]))

    return _from_boxes(tensor.shape, boxes)


def _in_blocks(tensor: Tensor, scales: Tensor, block: Block) -> Tensor:
    height, width = block

    def boxes(bounds: Bounds) -> np.ndarray:
        (start, stop), (left, right) = bounds
        first, begin = start // height, left // width
        each = scales.box(((first, -(-stop // height)), (begin, -(-right // width)))).astype(np.float32)
        rows, columns = np.arange(start, stop) // height - first, np.arange(left, right) // width - begin
        return _NUMBERS[tensor.box(bounds)] * each[:, columns][rows]

    return _from_boxes(tensor.shape, boxes)


def _from_boxes(shape: tuple[int, ...], boxes: Callable[[Bounds], np.ndarray]) -> Tensor:
    return Tensor(shape, lambda start, stop: boxes(((start, stop), (0, shape[1]))), boxes=boxes)


def _column(scales: Tensor, start: int, stop: int) -> np.ndarray:
    return scales.rows(start, stop).astype(np.float32).reshape(-1, 1)
