"""Measure what fusion saves: a function as it is compiled, beside the same one with a barrier after every operator.

Every equation of the function's jaxpr, those in loops and branches too, is followed by an optimization barrier. XLA for
a CPU removes barriers before it fuses (the pass `cse_barrier_expander`), so that pass is switched off there; GPUs and
TPUs keep them. What only changes how an array is looked at (broadcasts, reshapes, slices) has none: an engine without
fusion would not write it either.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from jaxinfer.analysis.hlo.clocked import operator_seconds
from jaxinfer.analysis.hlo.count import Cost, Count, count
from jaxinfer.analysis.hlo.findings import Fusion, fusions
from jaxinfer.analysis.hlo.loops import Trips
from jaxinfer.analysis.hlo.programs import ModelProgram

VIEWS = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "iota", "split", "rev")
_INLINED = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
_PROFILED = 3  # calls whose instructions are timed
_BODIES = ("scan", "while", "cond")
_KEEPS_BARRIERS = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}


@dataclass(frozen=True)
class Saving:
    """One function compiled in two ways: fused, as XLA has it, and apart, operator by operator."""

    name: str
    fused: Count
    apart: Count
    fused_seconds: float  # of a call, median
    apart_seconds: float
    fused_times: Mapping[str, float]  # seconds of one call by operator, as the profiler has them
    apart_times: Mapping[str, float]

    @property
    def bytes_saved(self) -> float:
        """Divide what is saved by the bytes of the one apart: 0.25 is a quarter."""
        return 1.0 - self.fused.total.bytes / self.apart.total.bytes

    @property
    def speedup(self) -> float:
        """Divide the time apart by the time fused."""
        return self.apart_seconds / self.fused_seconds

    def operators(self) -> dict[str, tuple[Cost, Cost]]:
        """Give the costs of each operator, fused and apart, the largest saving first."""
        one, other = self.fused.by_scope(), self.apart.by_scope()
        pairs = {name: (one.get(name, Cost()), other.get(name, Cost())) for name in dict.fromkeys([*other, *one])}
        return dict(sorted(pairs.items(), key=lambda entry: entry[1][0].bytes - entry[1][1].bytes))

    def left_fused(self) -> tuple[Fusion, ...]:
        """List fusions of the one apart that still hold several operators that compute something."""
        return tuple(fusion for fusion in fusions(self.apart) if _operators(fusion) > 1)

    def as_dict(self) -> dict[str, Any]:
        """Give all figures as plain data, for JSON."""
        return {
            "name": self.name,
            "seconds": [self.fused_seconds, self.apart_seconds],
            "bytes": [self.fused.total.bytes, self.apart.total.bytes],
            "operations": [self.fused.total.operations, self.apart.total.operations],
            "fusions": [len(fusions(self.fused)), len(fusions(self.apart))],
            "operators": {
                name: {
                    "bytes": [one.bytes, other.bytes],
                    "seconds": [self.fused_times.get(name, 0.0), self.apart_times.get(name, 0.0)],
                }
                for name, (one, other) in self.operators().items()
            },
        }


def _operators(fusion: Fusion) -> int:
    silent = {"broadcast", "iota", "convert", "reshape", "transpose", "slice", "copy", "constant", "dynamic-slice"}
    return sum(number for name, number in fusion.opcodes if name not in silent)


def with_barriers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give the same function of arrays, with a barrier after each operator that computes or moves something."""

    def apart(*arguments):
        closed, form = jax.make_jaxpr(function, return_shape=True)(*arguments)
        flat = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(form), flat)

    apart.__name__ = getattr(function, "__name__", "function")
    return apart


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(var):
        return var.val if isinstance(var, jex.Literal) else values[var]

    for equation in jaxpr.eqns:
        given = [read(var) for var in equation.invars]
        stack = str(equation.source_info.name_stack)
        if stack:
            with jax.named_scope(stack):
                results = _apply(equation, given)
        else:
            results = _apply(equation, given)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _apply(equation: Any, given: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    inner = params.get("jaxpr") or params.get("call_jaxpr") or params.get("fun_jaxpr")
    if name in _INLINED and inner is not None:
        is_closed = hasattr(inner, "consts")
        jaxpr, consts = (inner.jaxpr, inner.consts) if is_closed else (inner, ())
        return _evaluate(jaxpr, consts, given)
    if name in _BODIES:
        params = {key: _with_barriers_inside(value) for key, value in params.items()}
    bound = equation.primitive.get_bind_params(params)
    subfuns, params = bound if isinstance(bound, tuple) else ([], bound)  # a pair before JAX 0.10
    found = equation.primitive.bind(*subfuns, *given, **params)
    results = list(found) if equation.primitive.multiple_results else [found]
    if name in VIEWS or name in _BODIES or not results:
        return results
    return [x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else jax.lax.optimization_barrier(x) for x in results]


def _with_barriers_inside(value: Any) -> Any:
    """Rewrite a body among the parameters of a loop or a conditional; what is no body stays as it is."""
    if isinstance(value, tuple) and value and all(isinstance(part, jex.ClosedJaxpr) for part in value):
        return tuple(map(_with_barriers_inside, value))
    if not isinstance(value, jex.ClosedJaxpr):
        return value
    forms = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in value.in_avals]
    return jax.make_jaxpr(lambda *given: _evaluate(value.jaxpr, value.consts, given))(*forms)


def compile_apart(function: Callable[..., Any], arguments: Sequence[Any], carry: int | None = None) -> Any:
    """Compile a function with barriers between its operators: a `jax.stages.Compiled`. carry: the donated argument."""
    options = _KEEPS_BARRIERS.get(jax.default_backend())
    donated = () if carry is None else (carry,)
    return (
        jax.jit(with_barriers(function), donate_argnums=donated, compiler_options=options).lower(*arguments).compile()
    )


def saving(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    carry: int | None = None,
    trips: Trips | None = None,
    compiled: Any = None,
    name: str | None = None,
    rounds: int = 5,
) -> Saving:
    """Compile a function in both ways, count both, and measure them in turn.

    carry: the argument that is donated; it is copied before each call, outside of the time. trips: as in `count`.
    compiled: the fused one, where there is one already. rounds: calls of each that are measured.
    """
    title = name or str(getattr(function, "__name__", "function"))
    if compiled is None:
        donated = () if carry is None else (carry,)
        compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
    apart = compile_apart(function, arguments, carry)
    taken = seconds({"fused": compiled, "apart": apart}, arguments, carry, rounds)
    one, other = (count(program.as_text(), trips) for program in (compiled, apart))
    times = [_times(program, found, arguments, carry) for program, found in ((compiled, one), (apart, other))]
    return Saving(title, one, other, taken["fused"], taken["apart"], *times)


def _times(program: Any, found: Count, arguments: Sequence[Any], carry: int | None) -> dict[str, float]:
    given = [_ready(arguments, carry) for _ in range(_PROFILED)]
    taken = operator_seconds(lambda: [program(*each) for each in given], found.module)
    return {name: each / _PROFILED for name, each in taken.items()}


def _ready(arguments: Sequence[Any], carry: int | None) -> list[Any]:
    """Copy the argument that is donated."""
    given = [jax.tree.map(jnp.copy, x) if i == carry else x for i, x in enumerate(arguments)]
    return jax.block_until_ready(given)


def saving_of(program: ModelProgram, rounds: int = 5) -> Saving:
    """Measure what fusion saves in a program of a model."""
    return saving(
        program.function,
        program.arguments,
        carry=program.carry,
        trips=program.trips,
        compiled=program.compiled,
        name=program.name,
        rounds=rounds,
    )


def seconds(
    calls: Mapping[str, Callable[..., Any]], arguments: Sequence[Any], carry: int | None = None, rounds: int = 5
) -> dict[str, float]:
    """Measure calls of the same arguments in turn: the median of `rounds` each, in seconds, after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            given = _ready(arguments, carry)
            start = time.perf_counter()
            jax.block_until_ready(call(*given))
            if turn:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}
