"""Files of safetensors in a folder: which there are, what their index says, their tensors as they stand."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Tensor
from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host.files import check_regular, read_json, shown_error

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("BF16", "F16", "F32", "F64")


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


def tensor_in(file: Path, opened: Any, name: str, packed: bool) -> Tensor:
    """Read a tensor of an open file. packed: bytes are numbers too."""
    try:
        part = opened.get_slice(name)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
    except SafetensorError as error:
        raise InputError(f"{file}: tensor {shown(name, 120)} cannot be read ({shown_error(error)})") from None
    fault = ""
    if dtype not in (*_FLOATS, *(("U8",) if packed else ())):
        fault = f"{file}: tensor {shown(name, 120)} is {dtype}; supported: {', '.join(_FLOATS)}"

    def rows(start: int, stop: int) -> np.ndarray:
        if fault:
            raise InputError(fault)
        return part[start:stop] if shape else opened.get_tensor(name).reshape(1)

    return Tensor(shape, rows, fault)
