"""The time of each operator of a compiled program, by the profiler."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxinfer.analysis import profile
from jaxinfer.analysis.hlo.count import RUNS
from jaxinfer.analysis.hlo.parse import Computation, Module
from jaxinfer.analysis.hlo.scopes import Scope, operator, path_of


def operator_seconds(run: Callable[[], Any], module: Module, scope: Scope = operator) -> dict[str, float]:
    """Measure the operators of a program while `run` runs it: seconds of all runs, the longest first.

    A loop or a conditional has none of its own: they are those of what it runs. Empty where the profiler does not tell
    instructions.
    """
    with profile.traced() as executions:
        jax.block_until_ready(run())
    paths = dict(_paths(module, module.entry, ""))
    around = {each.name for _, each in module.instructions() if each.opcode in RUNS}
    found: dict[str, float] = {}
    for execution in executions:
        if execution.program == module.name:
            for name, seconds in profile.shares(execution, around).instructions.items():
                key = scope(paths.get(name, ""))
                found[key] = found.get(key, 0.0) + seconds
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _paths(module: Module, where: Computation, caller: str) -> Iterator[tuple[str, str]]:
    for instruction in where.instructions.values():
        path = path_of(module, where, instruction, caller)
        if instruction.opcode in RUNS:
            for inner in module.called(instruction):
                yield from _paths(module, inner, path)
        else:
            yield instruction.name, path
