"""A setting of the analyzer: how much text, in which formats, on how many devices, decoded how."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from jaxinfer.analysis.roofline.arithmetic import Number, is_one, is_plain, largest, over
from jaxinfer.errors import InputError, shown

BITS = (1, 2, 3, 4, 6, 8, 16, 32)
AXES = ("data", "fsdp", "pipeline", "expert", "context", "tensor")
"""The axes of a mesh, the outermost first: devices along the last one are neighbours."""
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
    """The load and the way it is run. Every number may be an `Expression`, or an array of numbers.

    - batch: rows; prompt: tokens of each; generate: new tokens of each.
    - weights, kv: a `Storage`, or bits, for which the usual scales are added; activations: bits.
    - flash: whether attention is one operator that leaves no scores in memory (Dao et al. 2022).
    - width, tokens_per_step: tokens that a decode step scores, and those it emits on average; draft_cost: the time of
      making its guesses, as a share of a step.
    - kv_budget: slots that a cache policy keeps of a row in a layer; None: all.
    - data, fsdp, tensor, expert, context, pipeline: devices along each axis of a mesh. Figures are those of one device.
      Rows are split over data, fsdp and expert, as `sharding/rules.py` has it.
    - microbatches: parts of a device's rows that go through the stages of a pipeline one after the other.
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
    fsdp: Number = 1
    context: Number = 1
    microbatches: Number = 1
    depth: Number = 1.0
    active: Number = 1.0
    routing: Literal["uniform", "all"] = "uniform"
    prompt_logits: bool = True

    def __post_init__(self) -> None:
        for name in ("batch", "prompt", "generate", "width", "kv_budget", "microbatches", *AXES):
            _whole(name, getattr(self, name))
        for name in ("weights", "activations", "kv"):
            _bits(name, getattr(self, name))
        for name in ("depth", "active"):
            _between(name, getattr(self, name), 0, 1, open_below=True)
        _between("draft_cost", self.draft_cost, 0, math.inf)
        if is_plain(self.width):
            _between("tokens_per_step", self.tokens_per_step, 0, self.width, open_below=True)
        if self.routing not in ("uniform", "all"):
            raise InputError(f"routing={shown(self.routing)} must be uniform or all")
        if all(map(is_plain, (self.batch, self.data, self.fsdp, self.microbatches))) and self.batch % self.parts:
            names = [name for name in ("data", "fsdp", "microbatches") if getattr(self, name) > 1]
            product = " x ".join(f"{name}={getattr(self, name)}" for name in names)
            raise InputError(f"batch={self.batch} must be a multiple of {product}: each replica takes its rows")

    @property
    def stored_weights(self) -> Storage:
        return self.weights if isinstance(self.weights, Storage) else weights_of(self.weights)

    @property
    def stored_kv(self) -> Storage:
        return self.kv if isinstance(self.kv, Storage) else kv_of(self.kv)

    @property
    def parts(self) -> Number:
        """Count the parts that the batch has to divide into."""
        return self.data * self.fsdp * self.microbatches

    @property
    def held_rows(self) -> Number:
        """Count the rows whose cache a device holds: those of its replica, which devices with other experts share."""
        group = over(over(self.batch, self.data), self.fsdp)
        return group if is_one(self.expert) else largest(1, group / self.expert)

    @property
    def rows(self) -> Number:
        """Count the rows that a device computes at once: the held ones, or a microbatch of them."""
        return over(self.held_rows, self.microbatches)

    @property
    def routed_rows(self) -> Number:
        """Count the rows whose tokens the experts of a replica are given at once."""
        return over(over(over(self.batch, self.data), self.fsdp), self.microbatches)

    @property
    def ticks(self) -> Number:
        """Count how often the time of all layers passes in a call: (M + P - 1) / P of M microbatches and P stages.

        A stage has a P-th of the layers, and the last microbatch leaves the last stage after M + P - 1 of its ticks, of
        which a stage waits P - 1: the bubble (GPipe, Huang et al. 2019, section 2.3).
        """
        if is_one(self.microbatches):
            return 1
        return (self.microbatches + self.pipeline - 1) / self.pipeline

    def replace(self, **changes: Any) -> "Setting":
        return dataclasses.replace(self, **changes)


def _whole(name: str, value: Any) -> None:
    if (value is None and name == "kv_budget") or not is_plain(value):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**53:
        raise InputError(f"{name}={shown(value)} must be a whole number from 1")


def _bits(name: str, value: Any) -> None:
    bits = value.bits if isinstance(value, Storage) else value
    if not is_plain(bits):
        return
    if isinstance(bits, bool) or bits not in BITS:
        raise InputError(f"{name}={shown(bits)} bits are not supported: {', '.join(map(str, BITS))}")


def _between(name: str, value: Any, low: float, high: float, open_below: bool = False) -> None:
    if not is_plain(value):
        return
    wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
    if wrong or not low <= value <= high or (open_below and value == low):
        above = f"above {low:g}" if open_below else f"from {low:g}"
        raise InputError(f"{name}={shown(value)} must be a number {above}{'' if high == math.inf else f' to {high:g}'}")
