"""An operator of a network: the work of one call on one device."""

from dataclasses import dataclass
from typing import Literal

from jaxinfer.analysis.roofline.arithmetic import Number

Pattern = Literal["reduce", "gather", "exchange", "pass", "ring"]
"""All-reduce; all-gather or reduce-scatter; all-to-all; a send to a neighbour; n - 1 of those."""
Kind = Literal["linear", "attention", "norm", "elementwise", "scan", "embedding", "head", "collective", "rest"]


@dataclass(frozen=True)
class Operator:
    """The work of one operator in one layer on one device: operations, and bytes by what they are of.

    Two operations a multiply-add. `read` and `written` are activations; `wire` is what a device sends to its peers.
    A stage has the operator `layers` times. `bits` is the width of the operands, which decides the peak rate.
    """

    name: str
    kind: Kind
    layers: Number = 1
    ops: Number = 0
    weights: Number = 0
    read: Number = 0
    written: Number = 0
    kv_read: Number = 0
    kv_written: Number = 0
    wire: Number = 0
    bits: Number = 16
    held: Number | None = None  # bytes of weights that lie in memory for it; None: those that it reads
    tokens: Number = 1  # of the call, over all rows
    context: Number = 1  # tokens that the last of a row sees
    over: tuple[str, Pattern] | None = None  # of a collective: the axis of the mesh, and the pattern

    @property
    def bytes(self) -> Number:
        """Count the bytes that go from and to the memory of the device."""
        return self.weights + self.read + self.written + self.kv_read + self.kv_written

    @property
    def intensity(self) -> Number:
        """Compute the arithmetic intensity, operations a byte; 0 where no memory is touched."""
        return self.ops / self.bytes if self.bytes else 0
