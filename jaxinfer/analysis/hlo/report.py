"""Say what the compiler made of a program: figures, findings, and what two programs differ in."""

import collections
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxinfer.analysis.hlo import findings, render
from jaxinfer.analysis.hlo.count import Cost, Count, count
from jaxinfer.analysis.hlo.loops import Trips
from jaxinfer.analysis.hlo.parse import Module, parse
from jaxinfer.analysis.hlo.scopes import Scope, operator


@dataclass(frozen=True)
class Memory:
    """Bytes of memory that a call takes, of one device."""

    arguments: int
    outputs: int
    aliased: int  # outputs in the memory of donated arguments
    temporaries: int
    code: int
    peak: int  # as the compiler says, else arguments, outputs and temporaries without what is aliased

    @classmethod
    def of(cls, compiled: Any) -> "Memory | None":
        """Read it from a `jax.stages.Compiled`; None where there is no such analysis."""
        stats = compiled.memory_analysis() if hasattr(compiled, "memory_analysis") else None
        if stats is None:
            return None
        arguments, outputs, aliased, temporaries, code = (
            int(getattr(stats, f"{name}_size_in_bytes", 0))
            for name in ("argument", "output", "alias", "temp", "generated_code")
        )
        peak = int(getattr(stats, "peak_memory_in_bytes", 0) or 0)
        least = arguments + outputs - aliased + temporaries
        return cls(arguments, outputs, aliased, temporaries, code, max(peak, least))


@dataclass(frozen=True)
class Report:
    """Holds what the compiler made of one program."""

    name: str
    count: Count
    operators: Mapping[str, Cost]  # the largest traffic first
    opcodes: Mapping[str, int]  # instructions of the text, fused ones too, by opcode
    fusions_in_text: int
    fusions: tuple[findings.Fusion, ...]
    kernels: tuple[findings.Kernel, ...]
    collectives: tuple[findings.Collective, ...]
    copies: tuple[findings.Copy, ...]
    unaliased: tuple[findings.Unaliased, ...]
    memory: Memory | None
    xla: Mapping[str, float] | None  # XLA's own count, where it gives one: a body of a loop is in it once
    retraces: Mapping[str, int] = field(default_factory=dict)  # traces after the first, by function

    @property
    def total(self) -> Cost:
        return self.count.total

    def as_dict(self) -> dict[str, Any]:
        """Give all figures as plain data, for JSON."""
        lists = ("fusions", "kernels", "collectives", "copies", "unaliased")
        return {
            "name": self.name,
            "total": cost_dict(self.total),
            "operators": {name: cost_dict(cost) for name, cost in self.operators.items()},
            "opcodes": dict(self.opcodes),
            "fusions_in_text": self.fusions_in_text,
            **{name: [asdict(entry) for entry in getattr(self, name)] for name in lists},
            "memory": None if self.memory is None else asdict(self.memory),
            "xla": None if self.xla is None else dict(self.xla),
            "unknown_loops": list(self.count.unknown_loops),
            "unknown_kernels": list(self.count.unknown_kernels),
            "retraces": dict(self.retraces),
        }

    def markdown(self) -> str:
        """Write it as tables in Markdown."""
        return render.markdown(self.name, render.sections(self))

    def table(self) -> Any:
        """Make what rich prints."""
        return render.rich_tables(self.name, render.sections(self))


def report(
    compiled: Any,
    name: str | None = None,
    *,
    trips: Trips | None = None,
    branches: Mapping[str, int] | None = None,
    scope: Scope = operator,
    retraces: Mapping[str, int] | None = None,
) -> Report:
    """Report on a `jax.stages.Compiled`, or on the text of one, which says nothing of memory and donations.

    trips and branches: as in `count`. scope: groups the figures by operator. retraces: of `Traced.retraces`. Raises
    InputError for a text that is no HLO.
    """
    is_text = isinstance(compiled, (str, Module))
    module = compiled if isinstance(compiled, Module) else parse(compiled if is_text else compiled.as_text())
    counted = count(module, trips, branches)
    found = collections.Counter(instruction.opcode for _, instruction in module.instructions())
    return Report(
        name=name or module.name,
        count=counted,
        operators=counted.by_scope(scope),
        opcodes=dict(found.most_common()),
        fusions_in_text=found["fusion"],
        fusions=findings.fusions(counted),
        kernels=findings.kernels(counted),
        collectives=findings.collectives(counted),
        copies=findings.copies(counted),
        unaliased=findings.unaliased(module, None if is_text else compiled),
        memory=None if is_text else Memory.of(compiled),
        xla=None if is_text else xla_count(compiled),
        retraces=dict(retraces or {}),
    )


def xla_count(compiled: Any) -> dict[str, float] | None:
    """Read XLA's own count: operations, transcendentals, bytes. None where it gives none, as on a GPU."""
    try:
        found = compiled.cost_analysis()
    except (NotImplementedError, RuntimeError):  # of a backend without one
        return None
    if isinstance(found, (list, tuple)):
        found = found[0] if found else None
    names = {"flops": "operations", "transcendentals": "transcendental", "bytes accessed": "bytes"}
    return {own: float(found[theirs]) for theirs, own in names.items() if theirs in found} if found else None


def cost_dict(cost: Cost) -> dict[str, float]:
    """Give the figures of a cost by name."""
    return {
        "operations": cost.operations,
        "matmul": cost.work.matmul,
        "elementwise": cost.work.elementwise,
        "transcendental": cost.work.transcendental,
        "read": cost.read,
        "written": cost.written,
        "arguments": cost.arguments,
        "bytes": cost.bytes,
        "intensity": cost.intensity,
    }


@dataclass(frozen=True)
class Difference:
    """Holds what changed from one program to another: (before, after) by name, only where they differ."""

    names: tuple[str, str]
    totals: Mapping[str, tuple[float, float]]
    operators: Mapping[str, tuple[float, float]]  # bytes
    opcodes: Mapping[str, tuple[int, int]]
    memory: Mapping[str, tuple[int, int]]
    new_fusions: Mapping[str, int]  # by what they fuse: how many more
    gone_fusions: Mapping[str, int]

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing that is counted differs."""
        parts = (self.totals, self.operators, self.opcodes, self.memory, self.new_fusions, self.gone_fusions)
        return not any(parts)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def markdown(self) -> str:
        return render.markdown(" to ".join(self.names), render.changes(self))

    def table(self) -> Any:
        """Make what rich prints."""
        return render.rich_tables(" to ".join(self.names), render.changes(self))


def diff(one: Report, other: Report) -> Difference:
    """Compare two reports."""
    before, after = (collections.Counter(fusion.signature for fusion in x.fusions) for x in (one, other))
    kept = {name: {key: cost.bytes for key, cost in x.operators.items()} for name, x in (("a", one), ("b", other))}
    memory = [{} if x.memory is None else asdict(x.memory) for x in (one, other)]
    return Difference(
        names=(one.name, other.name),
        totals=_changed(cost_dict(one.total), cost_dict(other.total)),
        operators=_changed(kept["a"], kept["b"]),
        opcodes=_changed(one.opcodes, other.opcodes),
        memory=_changed(*memory) if all(memory) else {},
        new_fusions=dict((after - before).most_common()),
        gone_fusions=dict((before - after).most_common()),
    )


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (one.get(name, 0), other.get(name, 0)) for name in dict.fromkeys([*one, *other])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
