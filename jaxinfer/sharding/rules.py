"""Rules: for every kind of parallelism one frozen table from logical axes to the mesh axis of its name.

Every parameter, cache leaf and activation names its logical axes where it is defined. A table says which of them a mesh
axis splits; the tables of a mesh's axes together are the rules of that mesh (GSPMD, Xu et al. 2021). The same model
then runs on one device, on virtual CPU devices and on a real mesh.

    data        rows of the batch
    tensor      heads, feed-forward, vocabulary: one all-reduce after attention, one after the MLP (Megatron-LM, Shoeybi
                et al. 2019)
    fsdp        weights as they lie; each layer's are gathered when it runs (ZeRO-3, Rajbhandari et al. 2020; FSDP,
                Zhao et al. 2023). Rows of the batch are split as well
    expert      experts, and rows of the batch: tokens go to their experts and back (GShard, Lepikhin et al. 2020)
    context     slots of the cache, and tokens of a prompt (ring attention, Liu et al. 2023; flash-decoding's merge of
                partial softmaxes)
    pipeline    layers, in stages through which parts of the batch go (GPipe, Huang et al. 2019)

Logical axes: batch, tokens, slots, embed, heads, kv_heads, head_dim, latent, mlp, experts, vocab, positions, layers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import PartitionSpec

from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.host.values import typed

LOGICAL = (
    *("batch", "tokens", "slots", "embed", "heads", "kv_heads", "head_dim", "latent", "mlp", "experts", "vocab"),
    *("positions", "layers"),
)

Axes = tuple[str | None, ...]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Rules:
    """A table from logical to mesh axes. A logical axis that is not in it is replicated.

    One that stands in several pairs is split over several mesh axes, in their order, as far as they divide it.
    """

    name: str
    table: Pairs
    at_rest: Pairs = ()  # over which weights are split besides while no layer computes with them
    pad_heads: bool = False  # heads that the mesh does not divide get companions that are zero, and are split
    microbatches: int | None = None  # parts of a batch that go through the stages of layers; None: one a stage

    def __post_init__(self) -> None:
        typed(self)
        for field in ("table", "at_rest"):
            for pair in getattr(self, field):
                if len(pair) != 2:
                    raise InputError(f"{field} holds {shown(pair)}: it must hold pairs, ('heads', 'tensor')")
        if self.microbatches is not None and self.microbatches < 1:
            raise InputError(f"microbatches={self.microbatches} must be at least 1, or left out: one for each stage")

    def __or__(self, other: "Rules") -> "Rules":
        """Join two tables: the rules of a mesh that has the axes of both."""
        table, at_rest = (
            tuple(dict.fromkeys((*mine, *theirs)))
            for mine, theirs in ((self.table, other.table), (self.at_rest, other.at_rest))
        )
        pad_heads, microbatches = self.pad_heads or other.pad_heads, self.microbatches or other.microbatches
        return Rules(f"{self.name}_{other.name}", table, at_rest, pad_heads, microbatches)

    def without(self, *mesh_axes: str) -> "Rules":
        """Return the rules of code that splits arrays over these mesh axes itself."""
        table, at_rest = (tuple(p for p in pairs if p[1] not in mesh_axes) for pairs in (self.table, self.at_rest))
        return replace(self, table=table, at_rest=at_rest)

    @property
    def mesh_axes(self) -> tuple[str, ...]:
        """List the mesh axes that the rules split something over."""
        return tuple(dict.fromkeys(target for _, target in (*self.table, *self.at_rest)))

    def targets(self, axis: str | None, at_rest: bool = False) -> tuple[str, ...]:
        """List the mesh axes over which a logical axis is split, in order."""
        pairs = (*self.table, *self.at_rest) if at_rest else self.table
        return tuple(target for logical, target in pairs if logical == axis)

    def spec(self, axes: Axes, shape: tuple[int, ...], mesh: Any, at_rest: bool = False) -> PartitionSpec:
        """Return the layout on the mesh of an array with these logical axes. at_rest: of a weight that lies there.

        A mesh axis that does not divide a dimension leaves it whole (SmolLM2 has 9 heads). Raises InputError if two
        dimensions of the array would be split over the same mesh axis.
        """
        entries: list[str | tuple[str, ...] | None] = []
        used: list[str] = []
        for axis, size in zip(axes, shape, strict=True):
            chosen: list[str] = []
            for target in self.targets(axis, at_rest):
                parts = math.prod(mesh.shape[name] for name in chosen) * mesh.shape.get(target, 0)
                if parts and size % parts == 0:
                    chosen.append(target)
            entries.append(tuple(chosen) if len(chosen) > 1 else chosen[0] if chosen else None)
            used += chosen
        if len(used) != len(set(used)):
            raise InputError(f"rules {self.name!r} split two dimensions of {axes} over the same mesh axis: {entries}")
        return PartitionSpec(*entries)


DATA = Rules("data", (("batch", "data"),))
TENSOR = Rules("tensor", (("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor")))
FSDP = Rules("fsdp", (("batch", "fsdp"),), at_rest=(("embed", "fsdp"),))
EXPERT = Rules("expert", (("batch", "expert"), ("experts", "expert")))
CONTEXT = Rules("context", (("slots", "context"), ("tokens", "context")))
PIPELINE = Rules("pipeline", (("layers", "pipeline"),))

RULES = {rules.name: rules for rules in (DATA, FSDP, TENSOR, EXPERT, CONTEXT, PIPELINE)}
"""By the name of the mesh axis that each splits over."""

DATA_TENSOR = DATA | TENSOR


def rules_of(mesh_axes: Iterable[str]) -> Rules:
    """Join the tables of a mesh's axes, in the order in which `RULES` has them.

    Raises InputError for an axis that none is named after.
    """
    names = tuple(mesh_axes)
    for name in names:
        if name not in RULES:
            known = ", ".join(RULES)
            raise InputError(f"a mesh has no axis {shown(name)}{nearest(str(name), RULES)}; they are {known}")
    joined: Rules | None = None
    for rules in RULES.values():
        if rules.name in names:
            joined = rules if joined is None else joined | rules
    return DATA if joined is None else joined
