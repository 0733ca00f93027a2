"""Reads the header of a GGUF file: its metadata, and where its tensors lie.

The format is specified in ggml's docs/gguf.md. The reader of the `gguf` package makes Python objects of every element
of every array: half a minute for a vocabulary of 262144 tokens. This one skips long arrays until they are asked for.
"""

import hashlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.checkpoint.mapped import Mapped
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import check_regular

_SCALARS = ["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8"]  # by type number
_STRING, _ARRAY = 8, 9
_SHORT = 64  # arrays up to this length are read at once
_MOST_DIMENSIONS = 4  # of a tensor, in ggml


@dataclass(frozen=True)
class ArrayInfo:
    """A long array in the metadata that has not been read: `Header.array` reads it."""

    type: int
    length: int
    start: int  # byte in the file


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the file. `shape` is in numpy's order: rows first; `type` is ggml's number; `start` is a byte."""

    shape: tuple[int, ...]
    type: int
    start: int


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file: all that it says before its tensors begin."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data: memoryview  # the whole file, mapped
    metadata_end: int
    file: Mapped

    def array(self, key: str) -> list:
        """Read the elements of an array in the metadata; strings that are not UTF-8 hold replacement characters."""
        value = self.metadata[key]
        if not isinstance(value, ArrayInfo):
            return value
        if value.type == _STRING:
            return [bytes(piece).decode("utf-8", "replace") for piece in _strings(self.data, value.start, value.length)]
        return np.frombuffer(self.data, _SCALARS[value.type], value.length, value.start).tolist()

    def fingerprint(self) -> str:
        """Hash all metadata, the vocabulary included: files with equal fingerprints have the same tokenizer."""
        return hashlib.blake2b(self.data[: self.metadata_end], digest_size=16).hexdigest()


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file (versions 2 and 3, little-endian).

    Raises InputError if the file cannot be read, is no GGUF file, or ends within its header.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            mapped = Mapped(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:
        raise InputError(f"{path}: the file is empty") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if mapped.data[:4] != b"GGUF":
        raise InputError(f"{path}: is not a GGUF file (it does not begin with 'GGUF')")
    try:
        return _parse(path, mapped)
    except (struct.error, IndexError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the header is cut short or corrupted; download the file again") from None


def _refuse_twice(name: str, there: Any, what: str, path: Path) -> None:
    if name in there:
        raise InputError(f"{path}: {what} {shown(name)} is there twice; download the file again")


def _parse(path: Path, mapped: Mapped) -> Header:
    data = memoryview(mapped.data)
    version, n_tensors, n_keys = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise InputError(f"{path}: GGUF version {version} is not supported; supported: 2, 3")
    at = 24
    metadata: dict[str, Any] = {}
    infos: dict[str, Any] = {}
    for _ in range(n_keys):
        key, at = _string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        _refuse_twice(key, metadata, "the key", path)
        metadata[key], at = _value(data, at + 4, kind)
    metadata_end = at
    for _ in range(n_tensors):
        name, at = _string(data, at)
        (n_dims,) = struct.unpack_from("<I", data, at)
        _refuse_twice(name, infos, "tensor", path)
        if n_dims > _MOST_DIMENSIONS:
            raise InputError(
                f"{path}: tensor {shown(name)} has {n_dims} dimensions, at most {_MOST_DIMENSIONS} are known"
            )
        *dims, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", data, at + 4)
        at += 4 + 8 * n_dims + 12
        infos[name] = (tuple(reversed(dims)), kind, offset)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise InputError(f"{path}: general.alignment must be a power of two, not {shown(alignment)}")
    for name, (_, _, offset) in infos.items():
        if offset % alignment:
            raise InputError(
                f"{path}: tensor {shown(name)} is at {offset}, which is no multiple of the alignment, {alignment}"
            )
    base = -(-at // alignment) * alignment
    tensors = {name: TensorInfo(shape, kind, base + offset) for name, (shape, kind, offset) in infos.items()}
    return Header(path, metadata, tensors, data, metadata_end, mapped)


def _value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    """Read one value of the metadata, and where the next begins."""
    if kind == _STRING:
        return _string(data, at)
    if kind == _ARRAY:
        return _array(data, at)
    scalar = np.frombuffer(data, _SCALARS[kind], 1, at)[0]
    # The shortest decimal that names this float32: 1e-05 rather than 9.999999747378752e-06.
    value = float(str(scalar)) if scalar.dtype == np.float32 else scalar.item()
    return value, at + scalar.nbytes


def _array(data: memoryview, at: int) -> tuple[Any, int]:
    kind, length = struct.unpack_from("<IQ", data, at)
    info = ArrayInfo(kind, length, at + 12)
    if kind == _ARRAY:
        raise ValueError("arrays of arrays are not used by any model")
    if length > len(data):
        raise IndexError
    if kind == _STRING:
        end = info.start
        for _ in range(length):
            end += 8 + struct.unpack_from("<Q", data, end)[0]
    else:
        end = info.start + length * np.dtype(_SCALARS[kind]).itemsize
    if end > len(data):
        raise IndexError
    if length > _SHORT:
        return info, end
    if kind == _STRING:
        return [bytes(piece).decode("utf-8", "replace") for piece in _strings(data, info.start, length)], end
    return np.frombuffer(data, _SCALARS[kind], length, info.start).tolist(), end


def _strings(data: memoryview, at: int, count: int) -> Iterator[memoryview]:
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 8 : at + 8 + length]
        at += 8 + length


def _string(data: memoryview, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise IndexError
    return bytes(data[at + 8 : end]).decode("utf-8", "replace"), end
