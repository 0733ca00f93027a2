"""The time of a call on a mesh: operators by the roofline, collectives by the links that each axis of the mesh has."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.hardware.interconnect import Links, links
from jaxinfer.analysis.roofline.arithmetic import Number, ceil, largest, over
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.memory import Memory, memory
from jaxinfer.analysis.roofline.network import operators
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.analysis.roofline.setting import AXES, Setting
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError
from jaxinfer.runtime.placed import LARGEST_CHUNK

By = Mapping[str, Links]
"""The links of a mesh by axis; of many meshes at once where their figures are arrays."""


@dataclass(frozen=True)
class Step:
    """A call on one device of a mesh: seconds in all and of collectives, bytes that it sends by axis, its memory."""

    seconds: Number
    collectives: Number
    sent: Mapping[str, Number]
    memory: Memory

    @property
    def wire(self) -> Number:
        """Count the bytes that the device sends in the call."""
        return sum(self.sent.values())


@functools.lru_cache(maxsize=2**14)
def links_of(hardware: Hardware, slice_: tuple[int, ...], stride: int, size: int) -> Links:
    """Give the links of an axis: those between the devices, or PCIe where there are none. Raises InputError."""
    rate = hardware.link or hardware.host_link
    if rate is None:
        if size > 1:
            raise InputError(f"{hardware.name}: has no links to other devices: several of them need 'link'")
        rate = 1.0
    return links(rate, hardware.between, slice_, stride, size)


def axes_of(hardware: Hardware, slice_: Sequence[int], sizes: Mapping[str, int]) -> dict[str, Links]:
    """Give the links of each axis of a mesh that lies on a slice in the order of `AXES`, the last on neighbours."""
    found, stride = {}, 1
    for axis in reversed(AXES):
        found[axis] = links_of(hardware, tuple(slice_), stride, sizes.get(axis, 1))
        stride *= sizes.get(axis, 1)
    return found


def stacked(meshes: Iterable[By]) -> dict[str, Links]:
    """Join the links of many meshes to arrays."""
    meshes, names = list(meshes), [field.name for field in dataclasses.fields(Links)]
    distinct = list({id(one): one for one in meshes}.values())  # several points share a mesh
    place = {id(one): number for number, one in enumerate(distinct)}
    order = np.array([place[id(one)] for one in meshes], int)

    def column(axis: str, name: str) -> Any:
        return np.array([getattr(one[axis], name) for one in distinct], float)[order]

    return {axis: Links(**{name: column(axis, name) for name in names}) for axis in AXES}


def collective_seconds(one: Operator, by: By) -> Number:
    """Give the seconds of a collective: its bytes over the rate of its axis, and the latency of its pattern.

    An all-reduce goes through the axis twice, an all-gather and an all-to-all once, and an exchange with experts there
    and back; a ring is n - 1 sends to the neighbour.
    """
    assert one.over is not None
    axis, pattern = one.over
    at = by[axis]
    through = at.hops * at.hop + at.start
    if pattern == "reduce":
        return one.wire / at.reduce + through + at.hops * at.hop
    if pattern == "gather":
        return one.wire / at.reduce + through
    if pattern == "exchange":
        return one.wire / at.exchange + (2 if axis == "expert" else 1) * through
    times = 1 if pattern == "pass" else at.size - 1
    return one.wire / at.neighbour + times * (at.distance * at.hop + at.start)


def local_seconds(one: Operator, hardware: Hardware) -> Number:
    """Give the seconds of an operator on a device: its operations over the peak, or its bytes over the bandwidth."""
    return largest(one.ops / hardware.peak(one.bits), one.bytes / hardware.bandwidth)


def step(call: Call, hardware: Hardware, by: By) -> Step:
    """Give the time, the bytes sent and the memory of a call, its operators one after the other."""
    made = operators(call)
    seconds: Number = 0
    waited: Number = 0
    sent: dict[str, Number] = {}
    for one in made:
        if one.over is None:
            seconds = seconds + one.layers * local_seconds(one, hardware)
        else:
            waited = waited + one.layers * collective_seconds(one, by)
            sent[one.over[0]] = sent.get(one.over[0], 0) + one.layers * one.wire
    return Step(seconds + waited, waited, sent, memory(call.config, call.setting, call, made))


def decode_step(config: ModelConfig, hardware: Hardware, setting: Setting, by: By, context: float) -> Step:
    """Give a decode step whose token sees `context` tokens, itself too."""
    return step(Call(config, setting, setting.width, context, setting.width, hardware.on_chip, True), hardware, by)


def prefill(config: ModelConfig, hardware: Hardware, setting: Setting, by: By) -> tuple[Number, Step]:
    """Give the seconds of reading the prompts, and one of the calls that read them: chunks of up to 512 tokens a row.

    Devices of a context axis share a chunk, of up to 512 tokens each.

    Their context grows by a chunk at a time, and that of the one in the middle stands for all: without windows, whose
    pairs of query and key are no line in the context, the sum is the same. Nothing is scored.
    """
    calls = ceil(setting.prompt / (LARGEST_CHUNK * setting.context))
    chunk = setting.prompt / calls
    tokens, context = over(chunk, setting.context), (setting.prompt + chunk) / 2
    one = step(Call(config, setting, tokens, context, 0, hardware.on_chip, False), hardware, by)
    return calls * one.seconds, one
