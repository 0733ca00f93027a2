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
from jaxinfer.checkpoint.mapped import Bounds
from jaxinfer.checkpoint.mapping import Family, Format, Slot, Tensor, Tensors, Window, slots
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
    assembly = Assembly(tensors, family, cfg, fmt, dtype, source)
    placed = {}
    for path in largest_first(assembly.leaves):  # a leaf may exist twice for a moment
        leaf = assembly.read(path)
        placed[path] = jax.block_until_ready(finish(path, jax.block_until_ready(place(leaf))))
        del leaf
    assembly.warn()
    return unflatten(placed)


def largest_first(leaves: dict[str, Any]) -> list[str]:
    """Return the paths of parameters, the largest first."""
    return sorted(leaves, key=lambda path: -leaves[path].size)


class Assembly:
    """Parameters, by path, that are assembled from a checkpoint's tensors when they are asked for, whole or in part."""

    def __init__(self, tensors: Tensors, family: Family, cfg: ModelConfig, fmt: Format, dtype: Any, source: str):
        """Hold the tensors to the configuration. For arguments and errors see `assemble_params`."""
        in_turn = any("{e}" in (rule.hf if fmt == "hf" else rule.gguf or "") for rule in family.rules)
        check_sizes(cfg, tensors, in_turn, source)
        self.leaves: dict[str, Any] = flatten(abstract_params(cfg, dtype))
        wanted = slots(family, cfg, fmt, set(self.leaves))
        _check(tensors, wanted, self.leaves, family, source)
        self._slots = defaultdict(list)
        for name, parts in wanted.items():
            for slot in parts:
                self._slots[slot.path].append((name, slot.read(tensors[name]), slot))
        self._names, self._source = tuple(wanted), source
        self._broken: set[str] = set()  # tensors that hold NaN or infinities

    def read(self, path: str, index: Bounds | None = None) -> np.ndarray:
        """Read a parameter, or the part of it between start and stop of each axis: an array at a multiple of 64 bytes.

        Of the files no more is read than the part needs, but for the rows that a reader cannot cut.
        """
        shape, dtype = self.leaves[path].shape, self.leaves[path].dtype
        index = index or tuple((0, n) for n in shape)
        axes = {axis for *_, slot in self._slots[path] for axis in slot.whole_axes()}
        read = tuple((0, shape[i]) if i in axes else bound for i, bound in enumerate(index))
        part = aligned(tuple(stop - start for start, stop in read), dtype)
        blocks: list[Callable[[], None]] = []
        for name, tensor, slot in self._slots[path]:
            window = slot.window(shape, read)
            if window is not None and part.size:
                blocks += _blocks(window, window.of(part), tensor, slot.offset, partial(self._broken.add, name))
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy's loops run beside each other
            list(pool.map(lambda fill: fill(), blocks))
        if read == index:
            return part
        own = part[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(index, read, strict=True))]
        cut = aligned(own.shape, dtype)
        cut[...] = own
        return cut

    def warn(self) -> None:
        """Warn if something that was read is no finite number."""
        if self._broken:
            first = next(name for name in self._names if name in self._broken)
            more = f" (and {len(self._broken) - 1} more)" if len(self._broken) > 1 else ""
            warnings.warn(
                f"{self._source}: tensor {shown(first, 120)}{more} holds NaN or infinite numbers", stacklevel=4
            )


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
    window: Window, view: np.ndarray, tensor: Tensor, offset: float, found_broken: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Make what writes a tensor of the file into a view of its parameter, in blocks along the first axis of the view.

    `found_broken` is called where a block holds NaN or infinities.
    """
    first = window.box[0][0]
    steps = max(1, BLOCK_ELEMENTS * view.shape[0] // max(1, view.size))

    def fill(start: int) -> None:
        stop = min(start + steps, view.shape[0])
        bounds = ((first + start * window.step, first + stop * window.step), *window.box[1:])
        block = tensor.box(bounds)
        aligned_to_scales = tensor.has_rows(bounds) and (len(bounds) > 1 or bounds[0][0] % tensor.shared == 0)
        every = tensor.shared if aligned_to_scales else 1
        if not all_finite(block.reshape(-1)[::every]):
            found_broken()
        block = block.reshape(stop - start, *window.lengths[1:])[window.cut]
        if offset:
            block = block.astype(np.float32) + np.float32(offset)
        # Cast first: numpy casts bfloat16 slowly where the destination is strided.
        view[start:stop] = block.astype(view.dtype, copy=False).reshape(view[start:stop].shape)

    return (partial(fill, start) for start in range(0, view.shape[0], steps))


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
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
