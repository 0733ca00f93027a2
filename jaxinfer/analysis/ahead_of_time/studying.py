"""Lower, compile and read: from an `Ask` to its `Account`."""

import collections
import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import jax
import jaxlib

from jaxinfer.analysis.ahead_of_time import predicting
from jaxinfer.analysis.ahead_of_time.account import KINDS, Account, Fallback, Kernel, Moved, StepAccount
from jaxinfer.analysis.ahead_of_time.ask import Ask
from jaxinfer.analysis.ahead_of_time.shapes import Program, layout_of, programs, without_disk_cache
from jaxinfer.analysis.hlo.programs import attention_trips
from jaxinfer.analysis.hlo.report import Memory, Report, report
from jaxinfer.kernels import dispatch

Say = Callable[[str], None]
_NO_KERNELS = ("custom", "ConcatBitcast", "AllocateBuffer")  # what XLA calls so is code of its own
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory")


@dataclass(frozen=True)
class Built:
    """A program, what the compiler made of it, or why it refused."""

    program: Program
    compiled: Any  # jax.stages.Compiled; None: it was refused
    seconds: float
    choices: tuple[Fallback, ...]
    error: str | None = None


def study(ask: Ask, progress: Say | None = None) -> Account:
    """Compile what is asked, and say what it takes. progress: told in a line what is being compiled.

    Raises InputError where the target's compiler is not installed, or the mesh cannot hold the model.
    """
    return account(ask, build(ask, progress))


def build(ask: Ask, progress: Say | None = None) -> dict[str, Built]:
    """Compile the programs that are asked for, by step."""
    made: dict[str, Built] = {}
    found: dict[str, Built] = {}
    layout = layout_of(ask)
    with _quiet():
        shaped = programs(ask, layout)
    for step, program in shaped.items():
        key = program.signature
        if key not in made:
            if progress is not None:
                progress(f"compiling {step} for {ask.slice}")
            made[key] = compiled(program)
        found[step] = made[key]
    return found


def compiled(program: Program) -> Built:
    """Compile one program. A refusal for want of memory is an answer; any other error is raised."""
    start = time.perf_counter()
    with without_disk_cache(), _quiet(), dispatch.recorded() as chosen:
        lowered = program.lower()
        try:
            done, error = lowered.compile(), None
        except jax.errors.JaxRuntimeError as refused:
            if not any(text in str(refused) for text in _OUT_OF_MEMORY):
                raise
            done, error = None, _first_line(str(refused))
    counted = collections.Counter((one.of, one.name, one.reason) for one in chosen)
    choices = tuple(Fallback(*key, calls) for key, calls in counted.items())
    return Built(program, done, time.perf_counter() - start, choices, error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warn of nothing that falls back: it stands in the account."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def account(ask: Ask, built: dict[str, Built]) -> Account:
    """Read the compiled programs."""
    steps = {step: _step(ask, step, one) for step, one in built.items()}
    asked = {
        "model": ask.config.family,
        "layers": ask.config.n_layers,
        "target": str(ask.slice),
        "mesh": str(ask.mesh),
        "weights": ask.weights or ask.dtype,
        "dtype": ask.dtype,
        "policy": repr(ask.cache_policy),
        "method": repr(ask.method_of("decode")),
        "batch": ask.batch,
        "context": ask.context,
        "prompt": ask.tokens,
    }
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, **_compiler(ask)}
    chunk = steps["prefill"].tokens if "prefill" in steps else None
    predicted = predicting.predicted(ask, chunk)
    return Account(asked, predicting.limit_of(ask), _bytes(built, steps), predicted, steps, versions)


def _step(ask: Ask, step: str, built: Built) -> StepAccount:
    program = built.program
    bound = predicting.seconds(ask, step, program)
    found = StepAccount(
        program=program.name,
        tokens=program.tokens,
        compile_seconds=built.seconds,
        error=built.error,
        choices=built.choices,
        roofline_seconds=None if bound is None else bound[0],
        roofline_collective_seconds=None if bound is None else bound[1],
    )
    if built.compiled is None:
        return found
    used = ask.tokens if step == "prefill" else ask.context
    trips: dict[str, Any] = {
        **attention_trips(ask.config, program.cache, program.tokens, used),
        "jit(decode)/while": 1.0,
    }
    # The first branch scores the pending tokens alone, as in a step in which no row has a guess.
    branches = {"jit(decode)/while/body/cond": 0} if step == "decode" else {}
    try:
        made = report(built.compiled, program.name, trips=trips, branches=branches)
    except KeyError as error:  # what the compiler says of memory stands
        return replace(found, memory=Memory.of(built.compiled), unread=str(error))
    copies: dict[str, float] = {}
    for copy in made.copies:
        copies[copy.operator] = copies.get(copy.operator, 0.0) + copy.bytes * copy.times
    return replace(
        found,
        memory=made.memory,
        collectives=_moved(ask, made),
        kernels=tuple(Kernel(x.target, x.times) for x in made.kernels if x.target not in _NO_KERNELS),
        fusions=len(made.fusions),
        copied_bytes=float(sum(copies.values())),
        copies=copies,
        compiler_seconds=_estimate(built.compiled),
    )


def _moved(ask: Ask, made: Report) -> tuple[Moved, ...]:
    """Join the collectives that are alike: the same operation, operator, size and devices."""
    found: dict[tuple[Any, ...], float] = {}
    for one in made.collectives:
        key = (one.opcode, one.operator, one.group, one.bytes, one.wire, bool(one.layer))
        found[key] = found.get(key, 0.0) + one.times
    layers = ask.config.n_layers
    return tuple(
        Moved(opcode, operator, group, size, wire, times, times / layers if inside else None)
        for (opcode, operator, group, size, wire, inside), times in found.items()
    )


def _bytes(built: dict[str, Built], steps: dict[str, StepAccount]) -> dict[str, int]:
    """Count the bytes of a device by kind. Arrays are counted by their shards, and what tiles add by the compiler."""
    found = dict.fromkeys(KINDS, 0)
    for step, one in built.items():
        program, memory = one.program, steps[step].memory
        cache, whole = held(program.cache), held(program.arguments)
        weights = held(program.arguments[0])
        if step != "prefill":
            weights += held(program.arguments[1])  # extras
        found["weights"], found["cache"] = max(found["weights"], weights), max(found["cache"], cache)
        found["state"] = max(found["state"], whole - weights - cache)
        if memory is not None:
            found["padding"] = max(found["padding"], memory.arguments - whole)
            fresh = max(0, memory.outputs - memory.aliased)
            found["temporaries"] = max(found["temporaries"], memory.temporaries + fresh)
    programs = {id(one): steps[step].memory for step, one in built.items()}
    found["program"] = sum(memory.code for memory in programs.values() if memory is not None)
    return found


def held(tree: Any) -> int:
    """Count the bytes of a device's shards of arrays or shapes."""
    total = 0
    for x in jax.tree.leaves(tree):
        layout = getattr(x, "sharding", None)
        shape = x.shape if layout is None else layout.shard_shape(x.shape)
        count = x.dtype.itemsize
        for size in shape:
            count *= size
        total += count
    return total


def _estimate(compiled: Any) -> float | None:
    """Read the compiler's own estimate of a call's seconds, where it gives one that can be meant."""
    try:
        found = compiled.cost_analysis()
    except (NotImplementedError, RuntimeError):
        return None
    found = found[0] if isinstance(found, (list, tuple)) and found else found
    value = (found or {}).get("optimal_seconds")
    return float(value) if value is not None and value > 0 else None


def _first_line(text: str) -> str:
    """Give what a compiler says, without its tables."""
    return next((line.strip() for line in text.splitlines() if line.strip()), text)


def _compiler(ask: Ask) -> dict[str, str]:
    """Name the target's compiler, with its version."""
    package = {"tpu": "libtpu", "gpu": "jax-cuda13-plugin"}.get(ask.slice.target.platform)
    return {} if package is None else {package: version(package)}
