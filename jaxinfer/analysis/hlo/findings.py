"""Find in a counted program what is worth knowing: fusions, kernels, collectives, copies, and buffers given in vain."""

import collections
import math
import re
from dataclasses import dataclass
from typing import Any

import jax

from jaxinfer.analysis.hlo.count import Count, Item
from jaxinfer.analysis.hlo.operations import target_of
from jaxinfer.analysis.hlo.parse import Computation, Instruction, Module
from jaxinfer.analysis.hlo.scopes import OTHER, layer_of, operator

LARGE_COPY = 1_000_000  # bytes
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_SILENT = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")
_MOVES = frozenset(("copy", "transpose", "reshape", "slice", "dynamic-slice", "broadcast", "concatenate", "pad"))


@dataclass(frozen=True)
class Fusion:
    """A fusion that runs. Its opcodes are those that do something, with their number, the most frequent first."""

    name: str
    kind: str  # `loop`, `input`, `output`, or of a custom one what its library is called
    opcodes: tuple[tuple[str, int], ...]
    times: float
    operator: str
    bytes: float  # of all times

    @property
    def signature(self) -> str:
        """Write what it fuses, so that fusions of two programs can be told alike: `loop: add, exponential x2`."""
        fused = ", ".join(name if n == 1 else f"{name} x{n}" for name, n in sorted(self.opcodes))
        return f"{self.kind}: {fused}"


@dataclass(frozen=True)
class Kernel:
    """Code that is not XLA's own, by the name that it is called by."""

    target: str
    instructions: int
    times: float
    operations: float | None  # of all times; None: no one says
    bytes: float


@dataclass(frozen=True)
class Collective:
    """A collective. `bytes` are the array's of one device, of one time; `wire` what a device sends in a ring."""

    name: str
    opcode: str
    bytes: int
    group: int  # devices that take part together; 1 where the text does not say
    wire: float
    times: float
    operator: str
    layer: str = ""  # the place of the layer that it is in, `segment_0/layer_0`; "" outside of the layers


@dataclass(frozen=True)
class Copy:
    """An instruction that only moves numbers, a megabyte or more at a time."""

    name: str
    opcode: str
    bytes: float  # written, of one time
    times: float
    operator: str
    source: str


@dataclass(frozen=True)
class Unaliased:
    """An argument that was donated and that no result took over: its memory is not saved."""

    name: str
    shape: str
    bytes: int
    reason: str


def opcodes_of(fused: Computation) -> tuple[tuple[str, int], ...]:
    """Count the opcodes of a fused computation, the most frequent first, without those that do nothing."""
    found = collections.Counter(x.opcode for x in fused.instructions.values() if x.opcode not in _SILENT)
    return tuple(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def kind_of(fusion: Instruction) -> str:
    """Name the kind of a fusion: that which XLA writes, and of a custom one that in its configuration."""
    kind = fusion.attributes.get("kind", "").removeprefix("k").lower()
    own = re.search(r'"kind"\s*:\s*"([^"]+)"', fusion.rest.replace('\\"', '"')) if kind == "custom" else None
    return own.group(1) if own else kind or "fusion"


def fusions(count: Count) -> tuple[Fusion, ...]:
    """List the fusions that run, those that move most bytes first."""
    found = []
    for item in count.top():
        if item.instruction.opcode == "fusion" and (inner := count.module.called(item.instruction)):
            name, kind = item.instruction.name, kind_of(item.instruction)
            where = operator(item.path)
            found.append(Fusion(name, kind, opcodes_of(inner[0]), item.times, where, item.cost.bytes))
    return tuple(sorted(found, key=lambda fusion: -fusion.bytes))


def kernels(count: Count) -> tuple[Kernel, ...]:
    """List custom calls and custom fusions by what they call."""
    groups: dict[str, list[Item]] = {}
    for item in count.top():
        instruction = item.instruction
        if instruction.opcode == "custom-call":
            groups.setdefault(target_of(instruction), []).append(item)
        elif instruction.opcode == "fusion" and instruction.attributes.get("kind") == "kCustom":
            groups.setdefault(kind_of(instruction), []).append(item)
    fused = _work_of_fusions(count)
    found = []
    for target, items in groups.items():
        work = sum(item.cost.operations + fused.get(item.instruction.name, 0.0) for item in items)
        known = None if target in count.unknown_kernels else work
        moved = sum(item.cost.bytes for item in items)
        found.append(Kernel(target, len(items), sum(item.times for item in items), known, moved))
    return tuple(sorted(found, key=lambda kernel: -kernel.bytes))


def _work_of_fusions(count: Count) -> dict[str, float]:
    """Sum the operations of what each fusion fuses, by its name."""
    callers = {}
    for item in count.top():
        for inner in count.module.called(item.instruction) if item.instruction.opcode == "fusion" else ():
            callers[inner.name] = item.instruction.name
    found: dict[str, float] = {}
    for item in count.items:
        if item.fused and item.where.name in callers:
            name = callers[item.where.name]
            found[name] = found.get(name, 0.0) + item.cost.operations
    return found


def collectives(count: Count) -> tuple[Collective, ...]:
    """List collectives in the order of the text. One that is split into start and done is listed once."""
    found = []
    # A compiler may drop the path of one that it made of others: the rest of the loop's body says what layer it is in.
    bodies = {(x.where.name, x.times): layer for x in count.top() if x.times > 1 and (layer := layer_of(x.path))}
    for item in count.top():
        opcode = item.instruction.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            continue
        operands = item.where.operands(item.instruction)
        sent = sum(operand.shape.bytes for operand in operands)
        devices = _group(count.module, item.instruction)
        size = sent * devices if opcode == "all-gather" else sent
        wire = _wire(opcode, size, devices)
        name, path = item.instruction.name, item.path
        layer = layer_of(path) or (bodies.get((item.where.name, item.times), "") if operator(path) == OTHER else "")
        found.append(Collective(name, opcode, size, devices, wire, item.times, operator(path), layer))
    return tuple(found)


def _group(module: Module, instruction: Instruction) -> int:
    """Count the devices of a group: `{{0,1},{2,3}}`, `[2,2]<=[4]`, `mesh['x'=4] {'x'}`, or `{}`, which is all."""
    text = instruction.attributes.get("replica_groups", "")
    if found := re.match(r"\[(\d+),(\d+)\]<=", text):
        return int(found.group(2))
    if text.startswith("mesh["):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", text))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']+)'", text.partition("{")[2]))
    if found := re.search(r"\{([\d,]+)\}", text):
        return found.group(1).count(",") + 1
    if instruction.opcode.startswith("collective-permute"):
        return 2
    counts = (re.search(rf"{key}=(\d+)", module.attributes) for key in ("num_partitions", "replica_count"))
    return max([int(x.group(1)) for x in counts if x], default=1)


def _wire(opcode: str, size: float, devices: int) -> float:
    """Count the bytes that a device sends: in a ring of n, 2 (n - 1) / n of an all-reduce's, (n - 1) / n of others'."""
    if opcode == "collective-permute":
        return size
    return size * (devices - 1) / devices * (2 if opcode == "all-reduce" else 1)


def copies(count: Count, least: int = LARGE_COPY) -> tuple[Copy, ...]:
    """List what only moves numbers and writes at least so many bytes at a time, the largest first."""
    found = []
    for item in count.top():
        instruction, size = item.instruction, item.cost.written / item.times if item.times else 0.0
        if size >= least and _only_moves(count.module, instruction):
            opcode = instruction.opcode
            if inner := count.module.called(instruction):
                opcode = ", ".join(name for name, _ in opcodes_of(inner[0]))
            found.append(Copy(instruction.name, opcode, size, item.times, operator(item.path), instruction.source))
    return tuple(sorted(found, key=lambda copy: -copy.bytes * copy.times))


def _only_moves(module: Module, instruction: Instruction) -> bool:
    if instruction.opcode in ("copy", "copy-start", "transpose"):
        return True
    inner = module.called(instruction) if instruction.opcode == "fusion" else ()
    # Numbers alone say where from: the index of a layer, held within its bounds.
    arrays = [x for x in inner[0].instructions.values() if x.shape.size > 1] if inner else []
    names = {x.opcode for x in arrays if x.opcode not in _SILENT}
    return bool(names & {"copy", "transpose", "slice", "dynamic-slice"}) and names <= _MOVES


def unaliased(module: Module, compiled: Any = None) -> tuple[Unaliased, ...]:
    """List the arguments that were donated and whose memory no result took over.

    What was donated is known of a `jax.stages.Compiled`; of a text alone, only those that XLA notes as donors.
    """
    parameters = module.entry.parameters
    taken = {number for number, _ in module.aliases.values()}
    if compiled is None or getattr(compiled, "args_info", None) is None:
        return tuple(_unaliased(parameters[number]) for number in module.donors if number not in taken)
    leaves = jax.tree_util.tree_flatten_with_path(compiled.args_info)[0]
    kept = _kept(compiled, len(leaves), len(parameters))
    places = None if kept is None else {leaf: place for place, leaf in enumerate(kept)}
    found = []
    for number, (path, info) in enumerate(leaves):
        if not info.donated or places is None:
            continue
        if number not in places:
            shape = f"{info.dtype}[{','.join(map(str, info.shape))}]"
            size = math.prod(info.shape) * info.dtype.itemsize
            found.append(Unaliased(jax.tree_util.keystr(path), shape, size, "the program does not use it"))
        elif places[number] not in taken:
            found.append(_unaliased(parameters[places[number]]))
    return tuple(found)


def _unaliased(parameter: Instruction) -> Unaliased:
    name = parameter.op_name or parameter.name
    return Unaliased(name, str(parameter.shape), parameter.shape.bytes, "no result of its form is left for it")


def _kept(compiled: Any, leaves: int, parameters: int) -> list[int] | None:
    """Give the numbers of the arguments that became parameters: jit drops those that are not used."""
    kept = getattr(getattr(compiled, "_executable", None), "_kept_var_idx", None)
    if kept is not None and len(kept) == parameters:
        return sorted(kept)
    return list(range(leaves)) if leaves == parameters else None
