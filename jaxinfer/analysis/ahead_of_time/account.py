"""The answer of a compiler: bytes a device, and of each program what it moves, calls and is bound by."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.analysis.hlo.report import Memory

KINDS = ("weights", "cache", "state", "padding", "temporaries", "program")
"""The kinds of bytes of a device: parameters; the cache at its fullest; the rest of a generation's state; what layouts
add to all these (tiles); the largest scratch memory of a program; the code of all programs."""


@dataclass(frozen=True)
class Moved:
    """Collectives of one kind in one place of a program. Bytes are of one device and one time."""

    opcode: str
    operator: str
    group: int  # devices that take part together
    bytes: int  # of the array
    wire: float  # that a device sends
    times: float  # a call
    per_layer: float | None  # how often a layer; None: it is outside of the layers


@dataclass(frozen=True)
class Kernel:
    """Code that is not XLA's own, and how often a call runs it."""

    target: str
    times: float


@dataclass(frozen=True)
class Fallback:
    """A choice of the dispatch table, and why it passed over what is faster; None: it did not."""

    of: str
    name: str
    reason: str | None
    calls: int  # that were traced


@dataclass(frozen=True)
class StepAccount:
    """One program. `compile_seconds` of one that another step has compiled too are that step's."""

    program: str
    tokens: int  # of each row, that one forward takes
    compile_seconds: float
    error: str | None = None  # why the compiler refused it
    unread: str | None = None  # what of its text could not be read: then collectives, kernels and fusions are not known
    memory: Memory | None = None
    collectives: tuple[Moved, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    choices: tuple[Fallback, ...] = ()
    fusions: int = 0  # that run
    copied_bytes: float = 0.0  # of a call, in copies of a megabyte or more
    copies: Mapping[str, float] = field(default_factory=dict)  # of these, bytes by operator
    compiler_seconds: float | None = None  # the compiler's own estimate, in which the body of a loop counts once
    roofline_seconds: float | None = None  # the least that the hardware allows a call
    roofline_collective_seconds: float | None = None  # of these, those of collectives

    @property
    def wire(self) -> float:
        """Sum the bytes that a device sends in a call."""
        return sum(one.wire * one.times for one in self.collectives)

    def json(self) -> dict[str, Any]:
        """Give all figures as plain data."""
        return {**dataclasses.asdict(self), "wire": self.wire}


@dataclass(frozen=True)
class Account:
    """The answer to an `Ask`: whether it fits, bytes of a device by kind (`KINDS`), and its programs by step."""

    asked: Mapping[str, Any]
    limit: int  # bytes of a device
    bytes: Mapping[str, int]
    predicted: Mapping[str, float] | None  # the roofline's memory model of the same; None: it has none of this mesh
    steps: Mapping[str, StepAccount]
    versions: Mapping[str, str]

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    @property
    def refused(self) -> str | None:
        """Give the compiler's reason, where it refused a program."""
        return next((step.error for step in self.steps.values() if step.error), None)

    @property
    def fits(self) -> bool:
        """Tell whether a device's memory holds it all."""
        return self.refused is None and self.total <= self.limit

    def json(self) -> dict[str, Any]:
        """Give all figures as plain data."""
        return {
            "asked": dict(self.asked),
            "fits": self.fits,
            "limit": self.limit,
            "bytes": {**self.bytes, "total": self.total},
            "predicted": None if self.predicted is None else dict(self.predicted),
            "steps": {name: step.json() for name, step in self.steps.items()},
            "versions": dict(self.versions),
        }
