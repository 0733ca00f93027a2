"""A setting of the analyzer: how much text, in which formats, on how many devices, decoded how."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from jaxinfer.analysis.roofline.arithmetic import Expression, Number
from jaxinfer.errors import InputError, shown

BITS = (1, 2, 3, 4, 6, 8, 16, 32)
GROUP = 128  # weights that share a scale where codes have up to 4 bits and nothing else is said


@dataclass(frozen=True)
class Storage:
    """The way numbers are stored: bits of a code, bits that scales add to each, and bits that they add to a row.

    A row is the inputs of one output of a linear, or one key of a head. `embedding` is the storage of the embedding and
    the head; None: this one. `operands`: bits of what a product multiplies; None: codes are widened to activations.
    """

    bits: Number
    scales: Number = 0
    row_scales: Number = 0
    embedding: "Storage | None" = None
    operands: Number | None = None

    def bytes(self, row: Number) -> Number:
        """Count the bytes of a number in a row of so many."""
        return (self.bits + self.scales + self.row_scales / row) / 8

    @property
    def outside(self) -> "Storage":
        """Give the storage of embedding and head."""
        return self.embedding or self


def weights_of(bits: float, group: int | None = None) -> Storage:
    """Give the usual storage of weights in so many bits: a 16-bit scale an output, or a group where they are few.

    Up to 4 bits, a group of 128 weights has a scale and a zero point of 16 bits (GPTQ and AWQ with groups of 128).
    """
    if bits >= 16:
        return Storage(bits)
    if group is None and bits > 4:
        return Storage(bits, row_scales=16)
    return Storage(bits, scales=32 / (group or GROUP))


def kv_of(bits: float) -> Storage:
    """Give the usual storage of keys and values in so many bits: a float32 scale a token and head below 16."""
    return Storage(bits) if bits >= 16 else Storage(bits, row_scales=32)


@dataclass(frozen=True)
class Setting:
    """The load and the way it is run. Every number may be an `Expression`.

    - batch: rows; prompt: tokens of each; generate: new tokens of each.
    - weights, kv: a `Storage`, or bits, for which the usual scales are added; activations: bits.
    - flash: whether attention is one operator that leaves no scores in memory (Dao et al. 2022).
    - width, tokens_per_step: tokens that a decode step scores, and those it emits on average; draft_cost: the time of
      making its guesses, as a share of a step.
    - kv_budget: slots that a cache policy keeps of a row in a layer; None: all.
    - tensor, pipeline, data, expert: devices along each axis. Figures are those of one device.
    - depth: share of the layers that a token goes through (early exit); active: share of an MLP's neurons that are
      computed (contextual sparsity).
    - routing: distinct experts that a batch touches: as many as uniform routing does on average, or as can be.
    - prompt_logits: whether the prefill scores the last token of each prompt; the engine leaves that to the
      first step.
    """

    batch: Number = 1
    prompt: Number = 1024
    generate: Number = 1
    weights: Storage | Number = 16
    activations: Number = 16
    kv: Storage | Number = 16
    flash: bool = False
    width: Number = 1
    tokens_per_step: Number = 1.0
    draft_cost: Number = 0.0
    kv_budget: Number | None = None
    tensor: Number = 1
    pipeline: Number = 1
    data: Number = 1
    expert: Number = 1
    depth: Number = 1.0
    active: Number = 1.0
    routing: Literal["uniform", "all"] = "uniform"
    prompt_logits: bool = True

    def __post_init__(self) -> None:
        for name in ("batch", "prompt", "generate", "width", "kv_budget", "tensor", "pipeline", "data", "expert"):
            _whole(name, getattr(self, name))
        for name in ("weights", "activations", "kv"):
            _bits(name, getattr(self, name))
        for name in ("depth", "active"):
            _between(name, getattr(self, name), 0, 1, open_below=True)
        _between("draft_cost", self.draft_cost, 0, math.inf)
        if not isinstance(self.width, Expression):
            _between("tokens_per_step", self.tokens_per_step, 0, self.width, open_below=True)
        if self.routing not in ("uniform", "all"):
            raise InputError(f"routing={shown(self.routing)} must be uniform or all")
        if not _any(self.batch, self.data) and self.batch % self.data:
            raise InputError(f"batch={self.batch} must be a multiple of data={self.data}: each replica takes its rows")

    @property
    def stored_weights(self) -> Storage:
        return self.weights if isinstance(self.weights, Storage) else weights_of(self.weights)

    @property
    def stored_kv(self) -> Storage:
        return self.kv if isinstance(self.kv, Storage) else kv_of(self.kv)

    @property
    def rows(self) -> Number:
        """Count the rows of one replica."""
        return self.batch / self.data if not _is_one(self.data) else self.batch

    def replace(self, **changes: Any) -> "Setting":
        return dataclasses.replace(self, **changes)


def _any(*values: Any) -> bool:
    return any(isinstance(value, Expression) for value in values)


def _is_one(value: Any) -> bool:
    return not isinstance(value, Expression) and value == 1


def _whole(name: str, value: Any) -> None:
    if (value is None and name == "kv_budget") or isinstance(value, Expression):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**53:
        raise InputError(f"{name}={shown(value)} must be a whole number from 1")


def _bits(name: str, value: Any) -> None:
    bits = value.bits if isinstance(value, Storage) else value
    if isinstance(bits, Expression):
        return
    if isinstance(bits, bool) or bits not in BITS:
        raise InputError(f"{name}={shown(bits)} bits are not supported: {', '.join(map(str, BITS))}")


def _between(name: str, value: Any, low: float, high: float, open_below: bool = False) -> None:
    if isinstance(value, Expression):
        return
    wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
    if wrong or not low <= value <= high or (open_below and value == low):
        above = f"above {low:g}" if open_below else f"from {low:g}"
        raise InputError(f"{name}={shown(value)} must be a number {above}{'' if high == math.inf else f' to {high:g}'}")
