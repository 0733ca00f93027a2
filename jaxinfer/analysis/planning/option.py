"""The answer of a plan: options with what is predicted of them, and apart from it what is proved."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxinfer.analysis.planning.goal import Goal
from jaxinfer.sharding import MeshShape


@dataclass(frozen=True)
class Proof:
    """The compiler's answer for an option: whether its programs were made and fit, and the bytes of a chip.

    fits: None where nothing could be compiled, and `why` says why. bytes: by kind; limit: of a chip.
    """

    fits: bool | None
    bytes: Mapping[str, float] | None = None
    limit: float | None = None
    why: str = ""

    @property
    def total(self) -> float | None:
        """Sum the bytes of a chip."""
        return None if self.bytes is None else float(sum(self.bytes.values()))


@dataclass(frozen=True)
class Option:
    """One way to serve: where and how, what is predicted, and a proof where one was made.

    ttft, tpot: seconds; rate: new tokens a second of all `copies` slices; cost: dollars a million new tokens; bytes:
    of a chip by kind; sent: bytes that a chip sends in a decode step; waited: the seconds that it takes.
    """

    target: str
    chips: int
    copies: int
    mesh: MeshShape
    weights: str
    kv: str
    batch: int
    microbatches: int
    ttft: float
    tpot: float
    rate: float
    cost: float
    bytes: Mapping[str, float]
    sent: float
    waited: float
    proof: Proof | None = None

    @property
    def total(self) -> float:
        """Sum the predicted bytes of a chip."""
        return float(sum(self.bytes.values()))

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data: what is predicted and what is proved apart from each other."""
        plain = ("target", "chips", "copies", "weights", "kv", "batch", "microbatches")
        figures = ("ttft", "tpot", "rate", "cost", "sent", "waited")
        proof = self.proof and {**asdict(self.proof), "total": self.proof.total}
        return {
            **{name: getattr(self, name) for name in plain},
            "mesh": str(self.mesh),
            "predicted": {**{name: getattr(self, name) for name in figures}, "bytes": dict(self.bytes)},
            "proved": proof,
        }


@dataclass(frozen=True)
class Plan:
    """The options that meet a goal and that no other of the same formats beats, and how many were looked at.

    points: all that were predicted; fitting: those in memory; meeting: those within the limits too.
    """

    model: str
    family: str
    goal: Goal
    price: float
    source: str
    memory: float  # bytes of a chip
    usable: float  # share of them that an option may take
    options: tuple[Option, ...]
    points: int
    fitting: int
    meeting: int
    seconds: float

    @property
    def by_cost(self) -> tuple[Option, ...]:
        """Rank the options by cost, then by time a token."""
        return tuple(sorted(self.options, key=lambda one: (one.cost, one.tpot, one.chips)))

    @property
    def by_latency(self) -> tuple[Option, ...]:
        """Rank the options by time a token, then by cost."""
        return tuple(sorted(self.options, key=lambda one: (one.tpot, one.cost, one.chips)))

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data, the options by cost."""
        plain = ("model", "family", "price", "source", "memory", "usable", "points", "fitting", "meeting", "seconds")
        head = {name: getattr(self, name) for name in plain}
        return {**head, "goal": asdict(self.goal), "options": [one.as_dict() for one in self.by_cost]}
