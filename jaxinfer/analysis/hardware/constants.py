"""Hardware as constants: the memory and the arithmetic of one device, and what connects it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from jaxinfer.analysis.hardware.interconnect import FIELDS, Interconnect
from jaxinfer.errors import InputError, shown

T = TypeVar("T")
Kind = Literal["gpu", "tpu", "cpu", "spatial"]

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "fp8": 8, "int4": 4, "fp4": 4}
"""Bits of an operand by its type. `bfloat16` stands for 16-bit floats of either kind."""


class Constants(Mapping[str, T], Generic[T]):
    """A mapping that does not change, and so can be hashed: equal to a dict of the same items."""

    def __init__(self, items: Mapping[str, T]) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> T:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


@dataclass(frozen=True)
class Hardware:
    """One device. Rates are peaks: no program is faster, and most are slower.

    `on_chip` is what LLM-Viewer calls `onchip_buffer`: for an NVIDIA GPU its register files, in KB of 1000 bytes.
    `link` and `host_link` count one direction, over all links of the device together.
    """

    name: str  # "h100-sxm", as --hardware takes it
    title: str  # "NVIDIA H100 SXM5 80 GB"
    kind: Kind
    bandwidth: float  # bytes/s of the memory that holds weights and cache
    flops: Mapping[str, float]  # dense peak in operations/s, two a multiply-add, by type of operand (`BITS`)
    memory: float  # bytes
    on_chip: float  # bytes close to the cores, that blocks of one kernel share
    link: float | None  # bytes/s of a device to its peers (NVLink, ICI); None: none
    host_link: float | None  # bytes/s from the host's memory (PCIe); None: none, or not known
    power: float | None  # W, of the board or chip; None: not known
    sources: Mapping[str, str]  # constant -> where it comes from; the peaks are `flops.int8` and so on
    interconnect: Interconnect | None = None  # how the links of a slice lie; None: not known, taken for a switch

    def __post_init__(self) -> None:
        for field in ("flops", "sources"):
            object.__setattr__(self, field, Constants(getattr(self, field)))

    def peak(self, bits: float) -> float:
        """Return operations/s with operands of at most `bits` bits: the best of all types of as many bits or more.

        Bits between two types count as the wider one: 3 as 4, and 6 as 8. Narrow operands can be widened, so a device
        without arithmetic of 4 bits has the peak that it has for 8. Raises InputError unless 0 < bits <= 32.
        """
        if isinstance(bits, bool) or not isinstance(bits, int | float) or not 0 < bits <= max(BITS.values()):
            raise InputError(f"bits={shown(bits)} must be a number above 0, of at most {max(BITS.values())}")
        rates = [rate for name, rate in self.flops.items() if BITS[name] >= bits]
        if not rates:
            raise InputError(f"hardware {self.name} has no arithmetic of {bits} bits: it has {', '.join(self.flops)}")
        return max(rates)

    def constants(self) -> dict[str, float | None]:
        """Return all constants by the names that `sources` has."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in PLAIN}
        rates = {f"flops.{name}": rate for name, rate in self.flops.items()}
        names = FIELDS if self.interconnect else ()
        return plain | rates | {f"interconnect.{name}": getattr(self.interconnect, name) for name in names}

    @property
    def between(self) -> Interconnect:
        """Return how the links lie: of a device of which it is not known, a switch without latencies."""
        return self.interconnect or Interconnect(0, 1, 2**20, 0.0, 0.0, None)


PLAIN = ("bandwidth", "memory", "on_chip", "link", "host_link", "power")
"""The fields that are one number each."""
OPTIONAL = ("link", "host_link", "power")
"""Those of them that may be None."""
