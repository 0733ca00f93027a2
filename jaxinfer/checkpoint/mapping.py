"""How tensors of a checkpoint map to parameters: one short table a model family, read in either direction.

A rule pairs one parameter with its name in Hugging Face and in GGUF files. Its `axes` say, in einops notation, how the
parameter's axes are laid out in the file: `"n h d -> (n h) d"` is a projection that the file stores as one matrix
[n_heads * head_dim, d_model]. Because the right side only reorders and groups axes, it describes a *view* of the
parameter, and one rule serves both for reading (write the file's rows into the view) and for export (read them out).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from einops import rearrange

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.config import ModelConfig

Format = Literal["hf", "gguf"]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, not read yet. `rows(start, stop)` reads that part of its first axis."""

    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]


Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """One row of a family's table. `{n}` in a name stands for the number of the layer, as the file counts them."""

    param: str  # path below the layer, or from the root for what is not in a layer
    hf: str
    gguf: str
    axes: str  # layout in the file; an axis called "two" has length 2
    gguf_axes: str | None = None  # layout in GGUF files where it differs
    hf_offset: float = 0.0  # parameter = Hugging Face's tensor + offset

    @property
    def per_layer(self) -> bool:
        return "{n}" in self.hf


@dataclass(frozen=True)
class Family:
    """A model family: its table, its names in the two formats, and how each format describes its configuration."""

    name: str
    rules: tuple[Rule, ...]
    hf_types: tuple[str, ...]  # model_type in config.json
    gguf_arch: str  # general.architecture
    hf_config: Callable[[Fields], ModelConfig]
    gguf_config: Callable[[Fields, Tensors], ModelConfig]  # some settings of GGUF files are tensors
    ignore: str = "$^"  # regular expression: tensors that a file may hold and this model does not read
    hf_prefixes: tuple[tuple[str, str], ...] = ()  # pairs: how some files begin their names, how the table does


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a file belongs: the leaf at `path`, at `repeat` on its first axis if it is in a layer."""

    path: str
    repeat: int | None
    axes: str
    offset: float = 0.0

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """This tensor's part of the stacked leaf, with its axes in the file's order: a view, never a copy."""
        part = leaf if self.repeat is None else leaf[self.repeat]
        return rearrange(part, _ungrouped(self.axes), **_lengths(self.axes))

    def file_shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the file must give this tensor."""
        part = np.broadcast_to(np.int8(0), leaf_shape if self.repeat is None else leaf_shape[1:])
        return rearrange(part, self.axes, **_lengths(self.axes)).shape


def _ungrouped(axes: str) -> str:
    """`"n h d -> (n h) d"` without the grouping on the right: `"n h d -> n h d"`."""
    left, right = axes.split("->")
    return f"{left}->{re.sub('[()]', '', right)}"


def _lengths(axes: str) -> dict[str, int]:
    return {"two": 2} if "two" in axes.split() or "(two" in axes else {}


def layer_paths(cfg: ModelConfig) -> list[tuple[str, int]]:
    """For each layer of the model, first to last: the path of its stacked parameters, and its index in the stack."""
    return [
        (f"segment_{i}/layer_{j}", repeat)
        for i, segment in enumerate(cfg.segments)
        for repeat in range(segment.repeats)
        for j in range(len(segment.pattern))
    ]


def slots(family: Family, cfg: ModelConfig, fmt: Format, leaves: set[str]) -> dict[str, Slot]:
    """Every tensor that a checkpoint of this model holds, by its name in `fmt`, and where it belongs.

    `leaves` are the paths of the model's parameters: a rule for a parameter that this model does not have is skipped.
    """
    found = {}
    for rule in family.rules:
        name, offset = (rule.hf, rule.hf_offset) if fmt == "hf" else (rule.gguf, 0.0)
        axes = rule.gguf_axes if fmt == "gguf" and rule.gguf_axes else rule.axes
        if rule.per_layer:
            for n, (layer, repeat) in enumerate(layer_paths(cfg)):
                found[name.format(n=n)] = Slot(f"{layer}/{rule.param}", repeat, axes, offset)
        else:
            found[name] = Slot(rule.param, None, axes, offset)
    return {name: slot for name, slot in found.items() if slot.path in leaves}
