"""GGUF files (llama.cpp's format): configuration from the metadata, tensors dequantized by rows."""

import itertools
import math
import re
from pathlib import Path

import numpy as np

from jaxinfer.checkpoint.families import by_gguf_arch, by_name, configured
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.gguf_header import Header, TensorInfo, read_header
from jaxinfer.checkpoint.mapped import Bounds
from jaxinfer.checkpoint.mapping import Family, Tensor, Tensors
from jaxinfer.checkpoint.sizes import check_layers
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, shown
from jaxinfer.host.optional import require


def open_gguf(path: Path) -> tuple[Header, Family, ModelConfig, Tensors]:
    """Open a GGUF file: nothing but its header is read until rows of a tensor are.

    Raises InputError if the file is cut short or corrupted, or holds a model or a quantization that is not supported.
    """
    header, tensors = _parts(path)
    arch = Fields(str(path), header.metadata).text("general.architecture")
    family = by_gguf_arch(arch, str(path))
    fields = Fields(str(path), header.metadata, prefix=f"{arch}.")
    check_layers(fields, tensors)
    read = family.gguf_config
    assert read is not None  # it was found by its name in GGUF files
    config = configured(lambda: read(fields, tensors), str(path))
    family = by_name(config.family)  # Mixtral's files say llama
    return header, family, config, family.gguf_tensors(config, tensors) if family.gguf_tensors else tensors


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)  # as llama.cpp names the parts of a split file


def _parts(path: Path) -> tuple[Header, Tensors]:
    """Return the header that describes the model, and all tensors: of one file, or of all parts of a split one.

    Raises InputError if parts are missing, or do not belong together.
    """
    named = _PART.fullmatch(path.name)
    header = read_header(path)
    count = header.metadata.get("split.count", 0)
    if type(count) is not int or count < 0:
        raise InputError(f"{path}: split.count must be a whole number, not {shown(count)}")
    if count < 2:
        return header, _own_tensors(header)
    if named is None or int(named[3]) != count:
        raise InputError(
            f"{path}: is one of {count} parts, which must be called NAME-00001-of-{count:05}.gguf and so on"
        )
    files = [path.with_name(f"{named[1]}-{n + 1:05}-of-{count:05}.gguf") for n in range(count)]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise InputError(f"{missing[0]}: no such file, and {path.name} is one of {count} parts; download it")
    headers = [header if file == path else read_header(file) for file in files]
    tensors: Tensors = {}
    for n, part in enumerate(headers):
        for key, wanted in (("split.no", n), ("split.count", count)):
            if part.metadata.get(key) != wanted:
                raise InputError(f"{part.path}: {key} is {shown(part.metadata.get(key))}, expected {wanted}")
        for name, tensor in _own_tensors(part).items():
            if name in tensors:
                raise InputError(f"{part.path}: tensor {shown(name)} is in another part too")
            tensors[name] = tensor
    total = headers[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise InputError(
            f"{files[0]}: split.tensors.count is {shown(total)}, and the parts hold {len(tensors)} tensors"
        )
    return headers[0], tensors


def _own_tensors(header: Header) -> Tensors:
    """Return the tensors of one file. Raises InputError if two share bytes."""
    tensors, spans = {}, []
    for name, info in header.tensors.items():
        tensors[name], size = _tensor(header, name, info)
        spans.append((info.start, info.start + size, name))
    spans.sort()
    for (_, end, one), (start, _, other) in itertools.pairwise(spans):
        if end > start:
            raise InputError(f"{header.path}: tensors {shown(one)} and {shown(other)} overlap; download the file again")
    return tensors


def _tensor(header: Header, name: str, info: TensorInfo) -> tuple[Tensor, int]:
    """Return a tensor, and how many bytes it takes."""
    gguf = require("gguf", "to read GGUF files")
    try:
        kind = gguf.GGMLQuantizationType(info.type)
    except ValueError:
        raise InputError(f"{header.path}: tensor {name!r} has the unknown quantization type {info.type}") from None
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if not info.shape or info.shape[-1] % block or not all(0 < length < 1 << 31 for length in info.shape):
        raise InputError(
            f"{header.path}: tensor {name!r} has shape {info.shape}, which {kind.name} in blocks of {block} cannot have"
        )
    row_bytes = info.shape[-1] // block * block_bytes
    n_rows = math.prod(info.shape[:-1])
    if info.start + n_rows * row_bytes > len(header.data):
        raise InputError(
            f"{header.path}: the file is cut short: tensor {name!r} ends at byte {info.start + n_rows * row_bytes}, "
            f"and the file has {len(header.data)}; download it again"
        )

    stored = (*info.shape[:-1], info.shape[-1] // block, block_bytes)  # rows of blocks of bytes
    mapped = header.file

    def boxes(bounds: Bounds) -> np.ndarray:
        """Read a box, float32: of the last axis, along which blocks run, all blocks that hold some of it."""
        *outer, (start, stop) = bounds
        first, last = start // block, -(-stop // block)
        raw = mapped.box(info.start, np.uint8, stored, (*outer, (first, last), (0, block_bytes)))
        try:
            # As one row: the package loops in Python over groups of rows.
            numbers = gguf.dequantize(raw.reshape(1, -1), kind)
        except NotImplementedError:
            raise InputError(f"{header.path}: tensor {name!r}: quantization {kind.name} is not supported") from None
        return numbers.reshape(*raw.shape[:-2], -1)[..., start - first * block : stop - first * block]

    def rows(start: int, stop: int) -> np.ndarray:
        """Read rows start..stop of the first axis, float32."""
        return boxes(((start, stop), *((0, n) for n in info.shape[1:])))

    # MXFP4 has scales up to 2^127: some of their products are infinite, and others are not.
    return Tensor(info.shape, rows, "", 1 if kind.name == "MXFP4" else block, boxes), n_rows * row_bytes
