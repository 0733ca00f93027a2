"""The map from tensors of a checkpoint to parameters: one short table a model family, read in either direction.

A rule pairs one parameter with its name in Hugging Face and in GGUF files. Its `axes` say, in einops notation, how the
parameter's axes are laid out in the file: `"n h d -> (n h) d"` is a projection that the file stores as one matrix
[n_heads * head_dim, d_model]. Because the right side only reorders and groups axes, it describes a *view* of the
parameter, and one rule serves both for reading (write the file's rows into the view) and for export (read them out).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from einops import rearrange

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapped import Bounds
from jaxinfer.config import ModelConfig

Format = Literal["hf", "gguf"]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, not read yet. `rows(start, stop)` reads that part of its first axis.

    `fault`: why its rows cannot be read, in words for an InputError; empty if they can. `shared`: so many numbers, one
    after the other, are products of one scale: where that is NaN or infinite, all of them are no finite numbers.
    `boxes` reads a part of all axes; without it, whole rows are read, and cut.
    """

    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]
    fault: str = ""
    shared: int = 1
    boxes: Callable[[Bounds], np.ndarray] | None = None

    def box(self, bounds: Bounds) -> np.ndarray:
        """Read the numbers between start and stop of each axis; a tensor without axes has one."""
        if self.has_rows(bounds):
            return self.rows(*bounds[0])
        if self.boxes is not None:
            return self.boxes(bounds)
        return self.rows(*bounds[0])[(slice(None), *(slice(*bound) for bound in bounds[1:]))]

    def has_rows(self, bounds: Bounds) -> bool:
        """Tell whether a box is made of whole rows."""
        return all(bound == (0, n) for bound, n in zip(bounds[1:], self.shape[1:], strict=True))


Tensors = dict[str, Tensor]

_PIECE = 16  # rows of a fused tensor that are worth a read of their own


@dataclass(frozen=True)
class Part:
    """One parameter's share of a tensor in which a file has fused several.

    The tensor's `axis` is cut into `groups` equal groups, each into `total` equal units; `count` units of every group,
    from `start` on, are the parameter's. Phi-3 has q, k and v of all heads one after the other: one group of
    n_heads + 2 * n_kv_heads units. GPT-NeoX has them head by head: n_heads groups of three units.
    """

    start: int
    count: int
    total: int
    groups: int = 1
    axis: int = 0

    def fused_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the file's tensor, from that of this share."""
        fused = list(shape)
        fused[self.axis] = fused[self.axis] // self.count * self.total
        return tuple(fused)

    def of(self, array: np.ndarray, groups: int | None = None) -> np.ndarray:
        """Return this share of the fused array, [*before, groups, count, unit, *after]; groups: as many as it holds."""
        shape, axis = array.shape, self.axis
        groups = groups or self.groups
        cut = array.reshape(*shape[:axis], groups, self.total, -1, *shape[axis + 1 :])
        return cut[(*(slice(None),) * axis, slice(None), slice(self.start, self.start + self.count))]

    def share(self, tensor: "Tensor") -> "Tensor":
        """Return this share as a tensor of its own."""
        axis = self.axis
        shape = list(tensor.shape)
        unit = shape[axis] // self.groups // self.total
        shape[axis] = shape[axis] // self.total * self.count
        each, fused = self.count * unit, self.total * unit  # of a group: its share, and all of it

        def boxes(bounds: Bounds) -> np.ndarray:
            start, stop = bounds[axis]
            first, last = start // each, -(-stop // each)

            def read(start: int, stop: int) -> np.ndarray:
                return tensor.box((*bounds[:axis], (start, stop), *bounds[axis + 1 :]))

            def own(group: int) -> np.ndarray:
                """Read what is wanted of one group, which lies in one piece."""
                begin = group * fused + self.start * unit - group * each
                return read(begin + max(start, group * each), begin + min(stop, (group + 1) * each))

            if last - first <= 1 or (axis == 0 and each >= _PIECE):
                pieces = [own(group) for group in range(first, last)]
                return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)
            block = self.of(read(first * fused, last * fused), last - first)
            block = block.reshape(*block.shape[:axis], -1, *block.shape[axis + 3 :])
            return block[(*(slice(None),) * axis, slice(start - first * each, stop - first * each))]

        def rows(start: int, stop: int) -> np.ndarray:
            return boxes(((start, stop), *((0, n) for n in shape[1:])))

        return Tensor(tuple(shape), rows, boxes=boxes)


@dataclass(frozen=True)
class Rule:
    """One row of a family's table. In a name, `{n}` is the number of the layer and `{e}` that of the expert."""

    param: str  # path below the layer, or from the root for what is not in a layer
    hf: str
    gguf: str | None  # None: the format has no such family
    axes: str  # layout in the file; an axis called "two" has length 2
    gguf_axes: str | None = None  # layout in GGUF files where it differs
    hf_offset: float = 0.0  # parameter = Hugging Face's tensor + offset
    part: Callable[[ModelConfig], Part] | None = None  # the file's tensor is fused of several, of which this is one
    gguf_part: Callable[[ModelConfig], Part] | Literal["same"] | None = "same"  # the same in GGUF files

    @property
    def per_layer(self) -> bool:
        return "{n}" in self.hf


@dataclass(frozen=True)
class Family:
    """A model family: its table, its names in the two formats, and how each format describes its configuration."""

    name: str
    rules: tuple[Rule, ...]
    hf_types: tuple[str, ...]  # model_type in config.json
    hf_config: Callable[[Fields], ModelConfig]
    hf_fields: Callable[[ModelConfig], dict[str, Any]]  # the inverse, for export; without model_type
    gguf_arch: str | None = None  # general.architecture; None: GGUF files of this family are not read
    gguf_config: Callable[[Fields, Tensors], ModelConfig] | None = None  # some settings of GGUF files are tensors
    gguf_tensors: Callable[[ModelConfig, Tensors], Tensors] | None = None  # GGUF's tensors as the table has them
    ignore: str = "$^"  # regular expression: tensors that a file may hold and this model does not read
    hf_prefixes: tuple[tuple[str, str], ...] = ()  # pairs: how some files begin their names, how the table does
    hf_written: Callable[[ModelConfig, str], str] = lambda cfg, name: name  # names of some models, from the table's
    hf_tensors: Callable[[Tensors], Tensors] | None = None  # a file's tensors as the table has them: unpacked, renamed
    hf_packing: str | None = None  # the quantization that `hf_tensors` undoes, as `quantization_config` names it
    hf_renames: tuple[tuple[str, str], ...] = ()  # pairs: a pattern in some files' names, what the table has for it
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)  # fields that config.json may lack, as in transformers

    def from_hf(self, fields: Fields) -> ModelConfig:
        """Return the configuration that a config.json describes. A field that is null is none that is lacking."""
        return self.hf_config(replace(fields, values={**self.hf_defaults, **fields.values}))


@dataclass(frozen=True)
class Slot:
    """The place of one tensor of a file: the leaf at `path`, at `repeat` on its first axis if it is in a layer."""

    path: str
    repeat: int | None
    axes: str
    offset: float = 0.0
    part: Part | None = None
    expert: int | None = None  # the index on the next axis, where each expert is a tensor of its own

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """Return this tensor's part of the stacked leaf, with its axes in the file's order: a view, never a copy."""
        part = leaf[tuple(i for i in (self.repeat, self.expert) if i is not None)]
        return rearrange(part, _ungrouped(self.axes), **_lengths(self.axes))

    def window(self, leaf_shape: tuple[int, ...], index: Bounds) -> "Window | None":
        """Say what a part of the leaf, start and stop of each of its axes, needs of this tensor; None: nothing.

        An axis that the table splits in two ("(two half)") has to be whole in the part: see `whole_axes`.
        """
        which = [i for i in (self.repeat, self.expert) if i is not None]
        if any(not start <= i < stop for i, (start, stop) in zip(which, index, strict=False)):
            return None
        moved = tuple(i - start for i, (start, _) in zip(which, index, strict=False))
        left, right = map(_terms, self.axes.split("->"))
        bounds: dict[str, tuple[int, int]] = {"1": (0, 1)}
        sizes = {"1": 1}
        for names, size, bound in zip(left, leaf_shape[len(which) :], index[len(which) :], strict=True):
            for name in names:
                sizes[name] = size if len(names) == 1 else 2 if name == "two" else size // 2
                bounds[name] = bound if len(names) == 1 else (0, sizes[name])
        box: list[tuple[int, int]] = []
        lengths: list[int] = []
        cut: list[slice] = []
        for first, *inner in right:
            each = math.prod(sizes[name] for name in inner)
            start, stop = bounds[first]
            box.append((start * each, stop * each))
            lengths += [stop - start, *(sizes[name] for name in inner)]
            cut += [slice(None), *(slice(*bounds[name]) for name in inner)]
        step = math.prod(sizes[name] for name in right[0][1:])
        return Window(replace(self, repeat=None, expert=None), moved, tuple(box), step, tuple(lengths), tuple(cut))

    def whole_axes(self) -> list[int]:
        """List the axes of the leaf that have to be whole in a part of it."""
        lead = sum(i is not None for i in (self.repeat, self.expert))
        return [lead + i for i, names in enumerate(_terms(self.axes.split("->")[0])) if len(names) > 1]

    def file_shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that the file must give this tensor."""
        part = np.broadcast_to(np.int8(0), leaf_shape[(self.repeat is not None) + (self.expert is not None) :])
        shape = rearrange(part, self.axes, **_lengths(self.axes)).shape
        return self.part.fused_shape(shape) if self.part else shape

    def read(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor of the file that belongs here."""
        return self.part.share(tensor) if self.part else tensor


@dataclass(frozen=True)
class Window:
    """The part of one tensor of the file that a part of a parameter needs.

    `box` is what is read: start and stop on each axis of the file. `step`: rows of the file for one on the first axis
    of the parameter's view. What is read has `lengths` with the file's axes ungrouped; `cut` of it is wanted.
    """

    slot: Slot
    place: tuple[int, ...]  # in the part: on the axes of layers and experts
    box: Bounds
    step: int
    lengths: tuple[int, ...]
    cut: tuple[slice, ...]

    def of(self, part: np.ndarray) -> np.ndarray:
        """Return what the tensor fills of the part, with its axes in the file's order: a view, never a copy."""
        return self.slot.of(part[self.place])


def _terms(side: str) -> list[list[str]]:
    """Split `"(n h) d"` into `[["n", "h"], ["d"]]`."""
    return [term.strip("()").split() for term in re.findall(r"\([^)]*\)|[^\s()]+", side)]


def _ungrouped(axes: str) -> str:
    """Return `"n h d -> (n h) d"` without the grouping on the right: `"n h d -> n h d"`."""
    left, right = axes.split("->")
    return f"{left}->{re.sub('[()]', '', right)}"


def _lengths(axes: str) -> dict[str, int]:
    return {"two": 2} if "two" in axes.split() or "(two" in axes else {}


def layer_paths(cfg: ModelConfig) -> list[tuple[str, int]]:
    """Return, for each layer, first to last, the path of its stacked parameters and its index in the stack."""
    return [
        (f"segment_{i}/layer_{j}", repeat)
        for i, segment in enumerate(cfg.segments)
        for repeat in range(segment.repeats)
        for j in range(len(segment.pattern))
    ]


def slots(family: Family, cfg: ModelConfig, fmt: Format, leaves: set[str]) -> dict[str, list[Slot]]:
    """List the tensors that a checkpoint of this model holds, by name in `fmt`, and where each, or its parts, belong.

    `leaves` are the paths of the model's parameters: a rule for a parameter that this model does not have is skipped.
    """
    found: dict[str, list[Slot]] = {}

    def add(name: str, slot: Slot) -> None:
        if slot.path in leaves:
            found.setdefault(name, []).append(slot)

    for rule in family.rules:
        name, offset = (rule.hf, rule.hf_offset) if fmt == "hf" else (rule.gguf, 0.0)
        if name is None:
            continue
        axes = rule.gguf_axes if fmt == "gguf" and rule.gguf_axes else rule.axes
        share = rule.part if fmt == "hf" or rule.gguf_part == "same" else rule.gguf_part
        part = share(cfg) if share else None
        if not rule.per_layer:
            add(name, Slot(rule.param, None, axes, offset, part))
            continue
        for n, ((layer, repeat), kind) in enumerate(zip(layer_paths(cfg), cfg.layers, strict=True)):
            experts = range(kind.moe.experts) if kind.moe and "{e}" in name else (None,)
            for e in experts:
                add(name.format(n=n, e=e), Slot(f"{layer}/{rule.param}", repeat, axes, offset, part, e))
    return found
