"""Fills the stacked parameters from a checkpoint's tensors, leaf by leaf and block by block.

At any time host memory holds what has been placed, one leaf that is being filled, and one block a core: a model that
fits the device can be loaded.
"""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxinfer.checkpoint.finite import all_finite
from jaxinfer.checkpoint.mapping import Family, Format, Slot, Tensor, Tensors, slots
from jaxinfer.checkpoint.sizes import check_sizes
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, shown
from jaxinfer.network.transformer import abstract_params

BLOCK_ELEMENTS = 1 << 17  # elements that are dequantized at once: temporaries stay in the processor's cache

# Buffers that transformers of some years saved in any family: they follow from the configuration.
_BUFFERS = r".*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)"

Place = Callable[[np.ndarray], Any]
Finish = Callable[[str, Any], Any]  # (path of a parameter, what was placed) -> what stands in the tree


def assemble_params(
    tensors: Tensors,
    family: Family,
    cfg: ModelConfig,
    fmt: Format,
    dtype: Any,
    place: Place,
    source: str,
    finish: Finish = lambda path, leaf: leaf,
) -> dict:
    """Return the parameter tree of `cfg`, with kernels and embedding in `dtype` and norm scales in float32.

    `place` takes each finished leaf from the host to where it will live: `jax.device_put`, perhaps with a sharding.
    `finish` makes of it what the tree holds, before the next is filled. `source` names the checkpoint in errors. Warns
    if there are weights that are no finite numbers. Raises InputError, before any tensor is read, if a tensor is
    missing, not known, of numbers that are not read, or has the wrong shape.
    """
    in_turn = any("{e}" in (rule.hf if fmt == "hf" else rule.gguf or "") for rule in family.rules)
    check_sizes(cfg, tensors, in_turn, source)
    leaves = flatten(abstract_params(cfg, dtype))
    wanted = slots(family, cfg, fmt, set(leaves))
    _check(tensors, wanted, leaves, family, source)
    by_leaf = defaultdict(list)
    for name, parts in wanted.items():
        for slot in parts:
            by_leaf[slot.path].append((name, slot))
    placed = {}
    broken: set[str] = set()  # tensors that hold NaN or infinities
    for path in sorted(
        leaves, key=lambda path: -leaves[path].size
    ):  # a leaf may exist twice for a moment: largest first
        leaf = _aligned(leaves[path].shape, leaves[path].dtype)
        blocks = [
            block
            for name, slot in by_leaf[path]
            for block in _blocks(slot.of(leaf), slot.read(tensors[name]), slot.offset, partial(broken.add, name))
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy's loops run beside each other
            list(pool.map(lambda fill: fill(), blocks))
        placed[path] = jax.block_until_ready(finish(path, jax.block_until_ready(place(leaf))))
        del leaf, blocks
    if broken:
        first = next(name for name in wanted if name in broken)
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        warnings.warn(f"{source}: tensor {shown(first, 120)}{more} holds NaN or infinite numbers", stacklevel=3)
    return unflatten(placed)


def _check(tensors: Tensors, wanted: dict[str, list[Slot]], leaves: dict, family: Family, source: str) -> None:
    missing = [name for name in wanted if name not in tensors]
    if missing:
        slot = wanted[missing[0]][0]
        shape = slot.file_shape(leaves[slot.path].shape)
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        head = "; it is the head, which AutoModelForCausalLM saves and AutoModel does not"
        why = head if slot.path == "head/kernel" and len(missing) == 1 else ""
        raise InputError(
            f"{source}: tensor {missing[0]!r} of shape {shape}{more} is missing from this {family.name} model{why}"
        )
    for name, (slot, *_) in wanted.items():
        if tensors[name].fault:
            raise InputError(tensors[name].fault)
        shape = slot.file_shape(leaves[slot.path].shape)
        if tensors[name].shape != shape:
            found = tensors[name].shape
            raise InputError(
                f"{source}: tensor {name!r} has shape {found}, expected {shape} in this {family.name} model"
            )
    ignored = re.compile(f"{family.ignore}|{_BUFFERS}")
    extra = [name for name in tensors if name not in wanted and not ignored.fullmatch(name)]
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise InputError(f"{source}: tensor {shown(extra[0], 120)}{more} has no place in this {family.name} model")


def _blocks(
    view: np.ndarray, tensor: Tensor, offset: float, found_broken: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Make what writes a tensor of the file into a view of its parameter, in blocks along the first axis of the view.

    `found_broken` is called where a block holds NaN or infinities.
    """
    rows_per_step = tensor.shape[0] // view.shape[0]  # above 1 where the view splits the file's rows, into heads
    steps = max(1, BLOCK_ELEMENTS * view.shape[0] // max(1, view.size))

    def fill(start: int) -> None:
        stop = min(start + steps, view.shape[0])
        block = tensor.rows(start * rows_per_step, stop * rows_per_step)
        if not all_finite(block.reshape(-1)[:: tensor.shared]):
            found_broken()
        if offset:
            block = block.astype(np.float32) + np.float32(offset)
        # Cast first: numpy casts bfloat16 slowly where the destination is strided.
        view[start:stop] = block.astype(view.dtype, copy=False).reshape(view[start:stop].shape)

    return (partial(fill, start) for start in range(0, view.shape[0], steps))


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Make an uninitialized array at a multiple of 64 bytes: `jax.device_put` to a CPU takes it over without a copy."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Return a nested dict as a flat one, from paths such as `"embed/embedding"`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict:
    """Return the nested dict of which `flatten` gives `flat`."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
