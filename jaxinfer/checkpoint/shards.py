"""Files of safetensors in a folder: which there are, what their index says, their tensors as they stand."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapped import Mapped
from jaxinfer.checkpoint.mapping import Tensor
from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host.files import check_regular, read_json, shown_error

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("BF16", "F16", "F32", "F64")
_FLOAT8 = "F8_E4M3"  # numpy has no such numbers: they are read as bytes
_DTYPES: dict[str, Any] = {"BF16": jnp.bfloat16, "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_DTYPES |= {"U8": np.uint8, _FLOAT8: np.uint8}


def files_of(folder: Path) -> Mapping[Path, set[str] | None]:
    """Return the files of weights, and the tensors that the index promises in each (None: all that are in it).

    One whole file comes before an index, as in transformers: an index beside it is a stale one. Raises InputError if
    there is neither, or if the index is damaged or names files that are not there or not in the folder.
    """
    if (folder / WEIGHTS).exists():
        return {folder / WEIGHTS: None}
    if not (folder / INDEX).exists():
        raise InputError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; only safetensors weights can be loaded")
    index = folder / INDEX
    where = Fields(str(index), read_json(index)).group("weight_map")
    if where is None or not where.values:
        raise InputError(f"{index}: field 'weight_map' is missing or empty")
    names: dict[str, set[str]] = {}
    for name, file in where.values.items():
        if not isinstance(file, str) or not _within(file):
            raise InputError(
                f"{index}: tensor {shown(name, 120)}: {shown(file, 120)} must be the name of a file in the folder"
            )
        names.setdefault(file, set()).add(name)
    for file in names:
        if not (folder / file).exists():
            raise InputError(f"{shown_text(str(folder / file))}: no such file, though {INDEX} names it; download it")
    return {folder / file: promised for file, promised in names.items()}


def _within(name: str) -> bool:
    """Tell whether a path stays in its folder. What stands there may be a link: the hub's cache is made of them."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name.isprintable()


def opened(file: Path, promised: set[str] | None) -> Any:
    """Open a file of safetensors. Raises InputError if it is damaged, or lacks a tensor that the index promises."""
    check_regular(file)
    try:
        found = safe_open(file, "numpy")
        present = set(found.keys())
    except Exception as error:  # SafetensorError, OSError, and what Rust's panics become
        why = shown_error(error)
        raise InputError(f"{file}: is cut short or not a safetensors file ({why}); download it again") from None
    absent = [name for name in promised or () if name not in present]
    if absent:
        raise InputError(f"{file}: tensor {shown(absent[0], 120)} is missing, though {INDEX} says it is in this file")
    return found


def tensors_in(
    file: Path, opened: Any, names: list[str], packed: bool, in_float8: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return tensors of an open file, which are read when they are asked for, and no more of them than that.

    packed: bytes are numbers too. in_float8: there may be some in float8, which come apart from the others, as bytes.
    """
    mapped = Mapped.of(file)
    begin = 8 + int.from_bytes(mapped.data[:8], "little")
    header = json.loads(mapped.data[8:begin])  # safetensors has found it sound
    allowed = (*_FLOATS, *(("U8",) if packed else ()), *((_FLOAT8,) if in_float8 else ()))
    plain: dict[str, Tensor] = {}
    codes: dict[str, Tensor] = {}
    for name in names:
        entry = header[name]
        into = codes if in_float8 and entry["dtype"] == _FLOAT8 else plain
        if entry["dtype"] in allowed:
            start = begin + entry["data_offsets"][0]
            into[name] = stored(mapped, start, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
        else:
            into[name] = _refused(file, name, entry)
    return plain, codes


def _refused(file: Path, name: str, entry: dict[str, Any]) -> Tensor:
    fault = f"{file}: tensor {shown(name, 120)} is {entry['dtype']}; supported: {', '.join(_FLOATS)}"

    def rows(start: int, stop: int) -> np.ndarray:
        raise InputError(fault)

    return Tensor(tuple(entry["shape"]), rows, fault)


def stored(mapped: Mapped, start: int, dtype: Any, shape: tuple[int, ...]) -> Tensor:
    """Return an array of a file as a tensor: from byte `start` on, row by row. A number is one row."""
    boxes = partial(mapped.box, start, dtype, shape or (1,))

    def rows(first: int, last: int) -> np.ndarray:
        return boxes(((first, last), *((0, n) for n in shape[1:])))

    return Tensor(shape, rows, boxes=boxes)
