"""The families of targets, the slices of each that there are, and what a chip of it costs an hour."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.analysis import hardware
from jaxinfer.analysis.hardware import Hardware
from jaxinfer.errors import InputError, nearest, shown, shown_text
from jaxinfer.host.files import read_text
from jaxinfer.host.yaml_text import parse

PRICES = Path(__file__).with_name("prices.yaml")

Slice = tuple[int, ...]

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_BOARD = ("1x1x1", "1x1x2", "1x1x4", "1x1x8")


@dataclass(frozen=True)
class Family:
    """A kind of machine: its device, and the slices of it that are considered, the smallest first."""

    name: str
    device: str
    slices: tuple[Slice, ...]
    cores: int = 1  # devices that a chip counts as

    @property
    def hardware(self) -> Hardware:
        """Return the constants of one device; those of a chip share its memory, its peak and its links."""
        found, each = hardware.get(self.device), self.cores
        if each == 1:
            return found
        rates = {name: rate / each for name, rate in found.flops.items()}
        return dataclasses.replace(
            found, bandwidth=found.bandwidth / each, memory=found.memory / each, flops=rates,
            on_chip=found.on_chip / each, link=None if found.link is None else found.link / each,
        )  # fmt: skip

    def chips(self, slice_: Slice) -> int:
        """Count the chips of a slice."""
        return math.prod(slice_)

    def layout(self, slice_: Slice) -> Slice:
        """Give the dimensions in which the devices of a slice lie: those of its chips, and their own."""
        return (*slice_, self.cores) if self.cores > 1 else slice_

    def target(self, slice_: Slice) -> str:
        """Write a slice as a target, such as `v5e:4x8`."""
        return f"{self.name}:{'x'.join(map(str, slice_))}"


def _family(name: str, device: str, slices: tuple[str, ...], cores: int = 1) -> Family:
    return Family(name, device, tuple(dims(text) for text in slices), cores)


def dims(text: str) -> Slice:
    """Read the dimensions of a slice, 4x8."""
    return tuple(int(part) for part in text.split("x"))


FAMILIES = {
    one.name: one
    for one in (
        _family("v4", "tpu-v4", _CUBES),
        _family("v5e", "tpu-v5e", _FLAT),
        _family("v5p", "tpu-v5p", _CUBES),
        _family("v6e", "tpu-v6e", _FLAT),
        _family("v7", "tpu-v7", _CUBES, cores=2),
        _family("a100", "a100-80gb", _BOARD),
        _family("h100", "h100-sxm", _BOARD),
        _family("h200", "h200", _BOARD),
        _family("b200", "b200", _BOARD),
    )
}
"""By the name that `--target` takes."""


def family(target: str) -> Family:
    """Return the family of a name, `v5e`, with all its slices, or with the one that is given: `v5e:4x8`.

    Raises InputError for an unknown one, with those that exist.
    """
    if not isinstance(target, str) or not target.strip():
        raise InputError(f"target={shown(target)} must be one of {', '.join(FAMILIES)}")
    name, colon, size = target.strip().lower().partition(":")
    name = {"tpu7x": "v7", "ironwood": "v7", "trillium": "v6e"}.get(name, name).removeprefix("tpu-")
    if name in FAMILIES and "x" not in size and size.isdecimal():
        size = f"1x1x{size}"
    if name not in FAMILIES:
        raise InputError(f"target {shown_text(target)}: is none of {', '.join(FAMILIES)}{nearest(name, FAMILIES)}")
    found = FAMILIES[name]
    if not colon:
        return found
    known = {"x".join(map(str, one)): one for one in found.slices}
    if size not in known:
        raise InputError(f"target {shown_text(target)}: the slices of {name} are {', '.join(known)}")
    return dataclasses.replace(found, slices=(known[size],))


@functools.cache
def prices() -> dict[str, Any]:
    """Read the prices of the package: by family `dollars` a chip and hour, `source` and `date`."""
    return parse(read_text(PRICES, "prices"), str(PRICES))


def price_of(name: str) -> float:
    """Return dollars a chip and hour. Raises InputError for a family of which no price is known."""
    dollars = prices()[name]["dollars"]
    if dollars is None:
        raise InputError(f"target {name}: no price is known; give --price, in dollars a chip and hour")
    return float(dollars)
