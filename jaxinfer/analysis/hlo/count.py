"""Count the operations and bytes of a compiled program: every loop as often as it runs, by operator of the model.

XLA's own `cost_analysis()` counts the body of a loop once, gives no bytes by operator, and on a GPU gives nothing; what
is here needs the program's text alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.analysis.hlo.loops import Trips, given_trips, known_trips
from jaxinfer.analysis.hlo.operations import Operations, operations, target_of
from jaxinfer.analysis.hlo.parse import Computation, Instruction, Module, parse
from jaxinfer.analysis.hlo.scopes import Scope, operator, path_of
from jaxinfer.analysis.hlo.traffic import Traffic, demand, traffic

RUNS = ("while", "conditional", "call", "async-start")  # which run computations, and are free themselves


@dataclass(frozen=True)
class Cost:
    """Operations, and bytes to and from memory."""

    work: Operations = field(default_factory=Operations)
    read: float = 0.0
    written: float = 0.0
    arguments: float = 0.0  # of `read`, bytes of the program's arguments: weights, cache; the rest are temporaries

    @property
    def operations(self) -> float:
        """Count operations, two a multiply-add; transcendentals are apart."""
        return self.work.matmul + self.work.elementwise

    @property
    def bytes(self) -> float:
        return self.read + self.written

    @property
    def intensity(self) -> float:
        """Divide operations by bytes."""
        return self.operations / self.bytes if self.bytes else 0.0

    def __add__(self, other: "Cost") -> "Cost":
        read, written = self.read + other.read, self.written + other.written
        return Cost(self.work + other.work, read, written, self.arguments + other.arguments)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.work * times, self.read * times, self.written * times, self.arguments * times)


@dataclass(frozen=True)
class Item:
    """An instruction where memory is touched, or one that is fused: then it has operations, and no bytes."""

    instruction: Instruction
    where: Computation
    times: float  # how often it runs
    cost: Cost  # of all times
    path: str  # of scopes: its own, or one that it may be taken to have
    fused: bool = False


@dataclass(frozen=True)
class Count:
    """The cost of a program, item by item."""

    module: Module
    items: tuple[Item, ...]
    unknown_loops: tuple[str, ...]  # whose body is counted once: name and path
    unknown_kernels: tuple[str, ...]  # custom calls whose operations no one says: their targets

    @property
    def total(self) -> Cost:
        return _sum(self.items)

    def by_scope(self, scope: Scope = operator) -> dict[str, Cost]:
        """Sum by what `scope` makes of each item's path, the largest traffic first."""
        return self._by(lambda item: scope(item.path))

    def by_opcode(self) -> dict[str, Cost]:
        """Sum by opcode; bytes are those of fusions, operations those of what is fused."""
        return self._by(lambda item: item.instruction.opcode)

    def top(self) -> Iterator[Item]:
        """Give the items where memory is touched."""
        return (item for item in self.items if not item.fused)

    def _by(self, key) -> dict[str, Cost]:
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            groups.setdefault(key(item), []).append(item)
        found = {name: _sum(group) for name, group in groups.items()}
        return dict(sorted(found.items(), key=lambda entry: -entry[1].bytes))


def count(
    program: Module | str,
    trips: Trips | None = None,
    branches: Mapping[str, int] | None = None,
    *,
    once: bool = False,
) -> Count:
    """Count a program, as `parse` reads it or as its text.

    trips: how often loops run whose text does not say so, as `{"attention/while": 5, "jit(decode)/while": 64}`: see
    `loops.Trips`. branches: which branch of a conditional counts, by the end of its path; without it, the dearest in
    bytes and operations. once: every body counts once, as XLA's own count has it.
    """
    module = program if isinstance(program, Module) else parse(program)
    counter = _Counter(module, dict(trips or {}), dict(branches or {}), once)
    items = tuple(counter.run(module.entry, 1.0, "", (True,) * len(module.entry.parameters)))
    kernels = tuple(dict.fromkeys(counter.kernels))
    return Count(module, items, tuple(dict.fromkeys(counter.loops)), kernels)


@dataclass
class _Counter:
    module: Module
    trips: Trips
    branches: Mapping[str, int]
    once: bool
    loops: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)

    def run(self, where: Computation, times: float, caller: str, given: Sequence[Any]) -> Iterator[Item]:
        """Give the items of a computation that runs so many times.

        given: of each of its parameters, whether it is an argument of the program; of a tuple, of each element.
        """
        argument: dict[str, Any] = {}  # by name, as in `given`
        for instruction in where.instructions.values():
            path = path_of(self.module, where, instruction, caller)
            taken = [argument.get(name, False) for name in instruction.operands]
            if instruction.opcode in RUNS:
                argument[instruction.name] = taken[0] if instruction.opcode == "while" else False
                yield from self._inner(where, instruction, times, path, taken)
                continue
            found = traffic(self.module, where, instruction)
            argument[instruction.name] = _is_argument(instruction, taken, given, found)
            work = Operations()
            if instruction.opcode == "fusion":
                yield from self._fused(instruction, times, path)
            else:
                work = self._work(where, instruction)
            resident = sum(read for read, whose in zip(found.reads, taken, strict=False) if whose is True)
            cost = Cost(work, sum(found.reads), found.written, resident) * times
            if cost.bytes or cost.work != Operations():
                yield Item(instruction, where, times, cost, path)

    def _inner(
        self, where: Computation, instruction: Instruction, times: float, path: str, taken: Sequence[Any]
    ) -> Iterator[Item]:
        """Give the items of what an instruction runs."""
        if instruction.opcode == "while":
            trips = 1.0 if self.once else self._trips(where, instruction, path)
            for attribute, often in (("condition", trips + (not self.once)), ("body", trips)):
                for name in instruction.calls(attribute):
                    yield from self.run(self.module.computations[name], times * often, path, taken)
        elif instruction.opcode == "conditional":
            yield from self._branch(instruction, times, path, taken[1:])
        else:
            for inner in self.module.called(instruction):
                yield from self.run(inner, times, path, taken)

    def _trips(self, where: Computation, loop: Instruction, path: str) -> float:
        found = known_trips(self.module, where, loop)
        found = given_trips(self.trips, where, loop) if found is None else found
        if found is None:
            self.loops.append(f"{loop.name} {path}".strip())
        return 1.0 if found is None else found

    def _branch(self, conditional: Instruction, times: float, path: str, taken: Sequence[Any]) -> Iterator[Item]:
        choices = [
            (self.module.computations[name], given) for name, given in zip(conditional.callees, taken, strict=False)
        ]
        chosen = [index for key, index in self.branches.items() if f"/{path}".endswith(f"/{key}")]
        if chosen:
            choices = choices[chosen[0] : chosen[0] + 1]
        found: list[list[Item]] = []
        for choice, given in choices:
            if not found or not _alike(self.module, choice, choices[0][0]):
                found.append(list(self.run(choice, times, path, (given,))))

        def dearness(items: list[Item]) -> float:
            total = _sum(items)
            return total.bytes + total.operations + total.work.transcendental

        yield from max(found, key=dearness, default=[])

    def _fused(self, fusion: Instruction, times: float, path: str) -> Iterator[Item]:
        """Give what is fused, as far as it is asked for, each with its own path."""
        for inner in self.module.called(fusion):
            asked = demand(self.module, inner)
            for instruction in inner.instructions.values():
                size = instruction.shape.size
                share = asked.numbers.get(instruction.name, 0.0) / size if size else 0.0
                share = 1.0 if instruction is inner.root else share
                if not share:
                    continue
                own = path_of(self.module, inner, instruction, path)
                if instruction.opcode == "fusion":
                    yield from self._fused(instruction, times * share, own)
                    continue
                work = self._work(inner, instruction)
                if work != Operations():
                    yield Item(instruction, inner, times * share, Cost(work) * (times * share), own, fused=True)

    def _work(self, where: Computation, instruction: Instruction) -> Operations:
        found = operations(self.module, where, instruction)
        if found is None:
            self.kernels.append(target_of(instruction) or instruction.opcode)
        return found or Operations()


def _is_argument(instruction: Instruction, taken: Sequence[Any], given: Sequence[Any], found: Traffic) -> Any:
    """Tell whether a value lies in the memory of an argument of the program; of a tuple, each element."""
    if instruction.opcode == "parameter":
        number = int(instruction.literal)
        return given[number] if number < len(given) else False
    if instruction.opcode == "tuple":
        return tuple(taken)
    if instruction.opcode == "get-tuple-element":
        index, whole = instruction.integers("index"), taken[0] if taken else False
        return whole[index[0]] if isinstance(whole, tuple) and index else whole is True
    if instruction.opcode in ("bitcast", "opt-barrier"):
        return taken[0] if taken else False
    return found.updates is not None and taken[found.updates] is True


def _alike(module: Module, one: Computation, other: Computation) -> bool:
    """Tell whether two branches are of the same instructions, so that one of them need not be counted again."""

    def form(computation: Computation) -> list:
        return [
            (x.opcode, x.shape, x.rest if x.opcode == "dot" else "", [form(inner) for inner in module.called(x)])
            for x in computation.instructions.values()
        ]

    return one is other or form(one) == form(other)


def _sum(items) -> Cost:
    matmul = elementwise = transcendental = read = written = arguments = 0.0
    for item in items:
        cost = item.cost
        matmul += cost.work.matmul
        elementwise += cost.work.elementwise
        transcendental += cost.work.transcendental
        read += cost.read
        written += cost.written
        arguments += cost.arguments
    return Cost(Operations(matmul, elementwise, transcendental), read, written, arguments)
