"""Count the bytes that instructions read and write where memory is touched: at fusions, and not within them.

Within a fusion numbers are computed as they are asked for, from its result back to its operands. So an operand of which
only a slice is taken, straight or through elementwise operations, is read as far as that slice; and an update that is
written in place writes the update and reads nothing of what stays. An operand that is read twice is counted once.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from jaxinfer.analysis.hlo.operations import estimate_of, target_of
from jaxinfer.analysis.hlo.parse import Computation, Instruction, Module

_FREE = (
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all opt-barrier partition-id "
    "replica-id domain add-dependency get-dimension-size async-update async-done copy-done all-reduce-done "
    "all-gather-done reduce-scatter-done all-to-all-done collective-permute-done send-done recv-done async-start"
)
FREE = frozenset(_FREE.split())
_SLICES = ("slice", "dynamic-slice", "gather")


@dataclass(frozen=True)
class Demand:
    """Numbers asked for in a fused computation."""

    numbers: Mapping[str, float]  # of each instruction, by name
    written: float  # bytes of the result that are written
    in_place: frozenset[str]  # updates that write into what is there


@dataclass(frozen=True)
class Traffic:
    """Bytes that an instruction reads of each operand, and bytes that it writes."""

    reads: tuple[float, ...]
    written: float
    updates: int | None = None  # the operand that it writes into, and whose memory its result therefore has


NONE = Traffic((), 0.0)


def traffic(module: Module, where: Computation, instruction: Instruction) -> Traffic:
    """Count the bytes that one instruction reads and writes, without those of computations that it runs."""
    opcode, operands = instruction.opcode, where.operands(instruction)
    if opcode in FREE:
        return NONE
    sizes = tuple(float(operand.shape.bytes) for operand in operands)
    result = float(instruction.shape.bytes)
    if opcode == "fusion":
        inner = module.called(instruction)
        return _of_fusion(module, inner[0]) if inner else Traffic(sizes, result)
    if opcode in ("slice", "dynamic-slice", "gather"):
        return Traffic((min(result, sizes[0]), *sizes[1:]), result)
    if opcode == "dynamic-update-slice":
        return Traffic((0.0, *sizes[1:]), sizes[1], updates=0)
    if opcode == "scatter":
        arrays = (len(sizes) - 1) // 2
        return Traffic((*(0.0,) * arrays, *sizes[arrays:]), sum(sizes[arrays + 1 :]), updates=0)
    if opcode in ("copy-start", "collective-permute-start", "all-gather-start"):
        parts = instruction.shape.elements or (instruction.shape,)
        taken = parts[0] if opcode == "copy-start" else parts[min(1, len(parts) - 1)]
        return Traffic(sizes, float(taken.bytes))
    if opcode == "custom-call" and target_of(instruction) == "AllocateBuffer":
        return NONE
    if opcode == "custom-call" and (estimate := estimate_of(instruction)):
        share = max(estimate[2] - result, 0.0) / (sum(sizes) or 1.0)
        return Traffic(tuple(size * share for size in sizes), min(result, estimate[2]))
    return Traffic(sizes, 0.0 if opcode == "send" else result)


def _of_fusion(module: Module, inner: Computation) -> Traffic:
    found = demand(module, inner)
    reads = []
    for parameter in inner.parameters:
        size = parameter.shape.size
        reads.append(parameter.shape.bytes * found.numbers.get(parameter.name, 0.0) / size if size else 0.0)
    last = _behind(inner, inner.root)
    target = _behind(inner, inner.operands(last)[0]) if last.name in found.in_place else None
    return Traffic(tuple(reads), found.written, None if target is None else int(target.literal))


def demand(module: Module, fused: Computation) -> Demand:
    """Trace what is asked for of each instruction of a fused computation, when all of its result is."""
    return _demand(_Key(module, fused))


class _Key:
    """A computation of a module, by identity: both are immutable, and large."""

    def __init__(self, module: Module, fused: Computation):
        self.module, self.fused = module, fused

    def __hash__(self) -> int:
        return hash((id(self.module), id(self.fused)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.module is other.module and self.fused is other.fused


@functools.lru_cache(maxsize=4096)
def _demand(key: _Key) -> Demand:
    module, fused = key.module, key.fused
    outputs = fused.operands(fused.root) if fused.root.opcode == "tuple" else (fused.root,)
    whole: dict[str, float] = {}  # asked for in full order: the most that any user asks
    parts: dict[str, float] = {}  # slices, which are of different places: their sum
    in_place, written = set(), 0.0
    for output in outputs:
        whole[output.name] = float(output.shape.size)
        last = _behind(fused, output)
        if _updates_in_place(fused, last):
            in_place.add(last.name)
            update = fused.operands(last)[1 if last.opcode == "dynamic-update-slice" else -1]
            written += update.shape.bytes
        else:
            written += output.shape.bytes
    numbers: dict[str, float] = {}
    for instruction in reversed(list(fused.instructions.values())):
        name, size = instruction.name, float(instruction.shape.size)
        asked = min(size, whole.get(name, 0.0) + parts.get(name, 0.0))
        numbers[name] = asked
        if not asked or (instruction is fused.root and instruction.opcode == "tuple"):
            continue
        for position, operand in enumerate(fused.operands(instruction)):
            into = parts if instruction.opcode in _SLICES and position == 0 else whole
            wanted = _wanted(module, instruction, position, operand, asked, size, name in in_place)
            into[operand.name] = (
                into.get(operand.name, 0.0) + wanted if into is parts else max(into.get(operand.name, 0.0), wanted)
            )
    return Demand(numbers, written, frozenset(in_place))


def _wanted(
    module: Module,
    instruction: Instruction,
    position: int,
    operand: Instruction,
    asked: float,
    size: float,
    in_place: bool,
) -> float:
    """Count the numbers of one operand that `asked` of an instruction's `size` numbers take."""
    full, opcode = float(operand.shape.size), instruction.opcode
    if opcode in _SLICES:
        return asked if position == 0 else full
    if opcode in ("dynamic-update-slice", "scatter") and position == 0:
        return 0.0 if in_place else asked
    if opcode in ("concatenate", "pad", "reduce"):
        return full * asked / size if size else 0.0
    if opcode in ("dot", "convolution", "sort", "custom-call", "scatter", "dynamic-update-slice", "reduce-window"):
        return full
    if opcode == "fusion" and (inner := module.called(instruction)):
        parameters = inner[0].parameters
        if position < len(parameters):
            return demand(module, inner[0]).numbers.get(parameters[position].name, full) * asked / size
    return min(full, asked)  # elementwise; and a broadcast, which takes each number at least once


def _behind(fused: Computation, instruction: Instruction) -> Instruction:
    """Give the instruction whose numbers a bitcast or a copy passes on as they are."""
    while instruction.opcode in ("bitcast", "reshape") and fused.operands(instruction):
        instruction = fused.operands(instruction)[0]
    return instruction


def _updates_in_place(fused: Computation, instruction: Instruction) -> bool:
    """Tell whether it is an update of what the fusion was given, which then becomes the result itself."""
    if instruction.opcode not in ("dynamic-update-slice", "scatter"):
        return False
    target = _behind(fused, fused.operands(instruction)[0])
    return target.opcode == "parameter" and target.shape.dtype == instruction.shape.dtype
