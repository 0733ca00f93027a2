"""Run a stage by the clock and under the profiler, in turn: seconds, and which operator they went to."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxinfer.analysis import profile
from jaxinfer.analysis.hlo.loops import Trips
from jaxinfer.analysis.hlo.parse import Computation, Instruction, Module, parse
from jaxinfer.analysis.hlo.programs import attention_trips
from jaxinfer.analysis.hlo.scopes import layer_of, operator, path_of
from jaxinfer.cache.store import Cache
from jaxinfer.config import ModelConfig
from jaxinfer.runtime.compiled import Program, program
from jaxinfer.runtime.placed import PlacedModel
from jaxinfer.runtime.prefill import Give, prefill

AROUND = ("while", "conditional", "call")  # opcodes of what only runs other instructions
ELSE = "other programs"


@dataclass(frozen=True)
class Ran:
    """A program that a stage runs, and how often its loops run that end when their data say."""

    name: str  # of its function
    program: Program
    trips: Trips


@dataclass(frozen=True)
class Timing:
    """Seconds of one unit of a stage: a prefill, or a decode step.

    `seconds` are by the clock, without the profiler. The parts add up to them: operators, `between` instructions of a
    program, and `host`, outside of programs.
    """

    seconds: float
    traced: float  # the same under the profiler
    operators: Mapping[str, float]
    counts: Mapping[str, float]  # instructions that ran
    between: float
    host: float
    beside: tuple[Any, ...] = ()  # what was measured besides, a value a round


@dataclass(frozen=True)
class Recording(PlacedModel):
    """A placed model that keeps the programs that read prompts, in the order in which they run."""

    ran: list[Ran] = field(default_factory=list)

    def read_chunk(
        self, cache: Cache, tokens: np.ndarray, n: np.ndarray, give: Give, *more: np.ndarray
    ) -> tuple[Cache, Any, float]:
        given, *rest = (self.place(x, "batch", "tokens") for x in (tokens, *more))
        dynamic = (self.params, cache, given, self.place(n.astype(np.int32), "batch"), *rest)
        found, _ = program(prefill, (self.model, give), dynamic, carry=1, layout=self.layout)
        self.ran.append(Ran(prefill.__name__, found, attention_trips(self.model.cfg, cache, tokens.shape[1])))
        return super().read_chunk(cache, tokens, n, give, *more)


def scopes_of(module: Module, config: ModelConfig) -> dict[str, str]:
    """Name the operator of every instruction of a program that may run, as a roofline names it.

    Where layers are of several kinds, the kind stands after it: `q_proj[global]`. Instructions that only run others
    are left out.
    """
    found: dict[str, str] = {}

    def walk(where: Computation, caller: str) -> None:
        for instruction in where.instructions.values():
            path = path_of(module, where, instruction, caller)
            if instruction.opcode not in AROUND:
                found[instruction.name] = name_of(path, config)
                continue
            for inner in module.called(instruction):
                walk(inner, path)

    walk(module.entry, "")
    return found


def name_of(path: str, config: ModelConfig) -> str:
    """Name the operator that a path of scopes belongs to; all of a method's guesses are `propose`."""
    if "propose" in path.split("/"):
        return "propose"
    name, place = operator(path), layer_of(path)
    if name == "embed":
        return "embedding"
    if not place or len(config.kinds) == 1:
        return name
    segment, layer = (int(part.rpartition("_")[2]) for part in place.split("/"))
    return f"{name}[{config.segments[segment].pattern[layer].name}]"


def around(module: Module) -> set[str]:
    """Name the instructions that only run others."""

    def is_around(instruction: Instruction) -> bool:
        return instruction.opcode in AROUND

    return {instruction.name for _, instruction in module.instructions() if is_around(instruction)}


def timing(
    clocked: Callable[[], tuple[float, float]],
    traced: Callable[[], tuple[float, float]],
    programs: Sequence[tuple[str, Module]],
    config: ModelConfig,
    rounds: int,
    beside: Callable[[], Any] | None = None,
) -> Timing:
    """Measure a stage by the clock and under the profiler, in turn, so that both meet the machine as it is.

    The fastest round counts, what other processes take of a machine being no loss of a program's; of each part, its
    median, since a single instruction is easily held up. Both functions run the stage to its end, and give seconds and
    how many units they were. programs: those that one run calls, by the names of their functions, in order; the last
    one runs as often as there is more. beside: measures something else in every round.

    The profiler's own work lies between instructions, after it has noted when one ended: the time by which the stage is
    longer under it is taken off what lies between, and the rest scaled to the clock's time.
    """
    known = {id(module): (scopes_of(module, config), around(module)) for _, module in programs}
    plain: list[float] = []
    under: list[float] = []
    parts: list[dict[str, dict[str, float]]] = []
    others: list[Any] = []
    for _ in range(rounds):
        others += [beside()] if beside else []
        seconds, longer = clocked()
        plain.append(seconds / longer)
        with profile.traced() as executions:
            seconds, units = traced()
        part = _parts(executions, programs, known, seconds, units)
        part["rest"]["host"] *= units / longer  # once a call, however many steps it takes
        under.append(seconds / units)
        parts.append(part)
    usual = {key: _medians([part[key] for part in parts]) for key in parts[0]}
    return dataclasses.replace(_fitted(min(plain), min(under), usual), beside=tuple(others))


def _parts(executions, programs, known, seconds: float, units: float) -> dict[str, dict[str, float]]:
    """Give the seconds of a unit, by operator, and of what is no operator, under the profiler."""
    operators: dict[str, float] = {}
    counts: dict[str, float] = {}
    between, windows = 0.0, 0.0
    left = list(programs)
    for execution in executions:
        windows += execution.seconds / units
        module = None
        if left and execution.program == f"jit_{left[0][0]}":
            module = left[0][1]
            left = left[1:] if len(left) > 1 else left
        if module is None:
            operators[ELSE] = operators.get(ELSE, 0.0) + execution.seconds / units
            counts[ELSE] = counts.get(ELSE, 0.0) + len(execution.events) / units
            continue
        names, containers = known[id(module)]
        found = profile.shares(execution, containers)
        between += found.between / units
        for name, taken in found.instructions.items():
            key = names.get(name, "other")
            operators[key] = operators.get(key, 0.0) + taken / units
            counts[key] = counts.get(key, 0.0) + found.counts[name] / units
    rest = {"between": between, "host": max(seconds / units - windows, 0.0)}
    return {"operators": operators, "counts": counts, "rest": rest}


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in found for name in one)
    return {name: statistics.median(one.get(name, 0.0) for one in found) for name in names}


def _fitted(seconds: float, traced: float, part: Mapping[str, Mapping[str, float]]) -> Timing:
    operators, between, host = part["operators"], part["rest"]["between"], part["rest"]["host"]
    noting = max(traced - seconds, 0.0) * (sum(operators.values()) + between + host) / traced
    between = max(between - noting, 0.0)
    scale = seconds / (sum(operators.values()) + between + host)
    scaled = {name: value * scale for name, value in operators.items()}
    return Timing(seconds, traced, scaled, part["counts"], between * scale, host * scale)


def modules_of(ran: Sequence[Ran]) -> list[tuple[str, Module]]:
    """Read the text of the programs, of each once."""
    read: dict[int, Module] = {}
    for one in ran:
        if id(one.program) not in read:
            read[id(one.program)] = parse(one.program.compiled.as_text())
    return [(one.name, read[id(one.program)]) for one in ran]
