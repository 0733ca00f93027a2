"""Functions compiled ahead of time, once for each set of static arguments and shapes.

A program keeps what the compiler says of it: seconds it took, and the memory it will need. Compile time is never mixed
into a measured time.
"""

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxinfer import sharding
from jaxinfer.host.files import cache_dir
from jaxinfer.kernels import dispatch

TRACES: collections.Counter[str] = collections.Counter()
"""How often each function was traced, by name. Tests hold it to one trace a (method, policy, bucket)."""

_KEPT = 256  # programs
_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")  # those that are, a line each, and how many may be
_PROGRAMS: collections.OrderedDict[Any, "Program"] = collections.OrderedDict()  # the one used last comes last


@dataclass(frozen=True)
class Program:
    """A compiled function. Call it with the dynamic arguments alone."""

    call: Callable[..., Any]
    seconds: float  # to trace, lower and compile, or to fetch from the persistent cache
    temp_bytes: int  # scratch memory of one call
    compiled: Any  # jax.stages.Compiled: .as_text(), .cost_analysis(), .memory_analysis()


def program(
    fun: Callable[..., Any],
    static: tuple[Any, ...],
    args: tuple[Any, ...],
    carry: int,
    layout: "sharding.Sharding | None" = None,
) -> tuple[Program, bool]:
    """Compile `fun(*static, *args)`, and tell whether it had to be compiled now.

    args[carry] is donated: its buffers become those of the result of the same form. If `fun` returns a tuple, that
    result comes first. On a mesh it keeps its layout, so that it can be passed in again.
    """
    leaves, tree = jax.tree.flatten(args)
    forms = tuple((x.shape, x.dtype, getattr(x, "sharding", None) if layout else None) for x in leaves)
    key = (fun, static, tree, forms, layout, dispatch.chosen())
    if key in _PROGRAMS:
        _PROGRAMS.move_to_end(key)
        return _PROGRAMS[key], False

    def traced(*dynamic):
        TRACES[fun.__name__] += 1
        with sharding.use(layout):
            result = fun(*static, *dynamic)
            if layout is None:
                return result
            shards = jax.tree.map(lambda x: x.sharding, args[carry])
            head, *rest = result if type(result) is tuple else (result,)
            head = jax.lax.with_sharding_constraint(head, shards)
            return (head, *rest) if rest else head

    traced.__name__ = fun.__name__
    _make_room()
    start = time.perf_counter()
    compiled = jax.jit(traced, donate_argnums=carry).lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temp_bytes = memory.temp_size_in_bytes if memory is not None else 0
    _PROGRAMS[key] = Program(compiled, seconds, temp_bytes, compiled)
    if len(_PROGRAMS) > _KEPT:
        _PROGRAMS.popitem(last=False)
    return _PROGRAMS[key], True


def _make_room() -> None:
    """Forget what was used longest ago while this process has half of the memory maps that Linux gives it, 65,530.

    A program of a model of 30 layers holds 500 to 1,500 of them. Without a map, a compiler has no memory.
    """
    present, most = _MAPS
    if not (present.exists() and most.exists()):
        return
    while _PROGRAMS and 2 * present.read_bytes().count(b"\n") > int(most.read_text()):
        _PROGRAMS.popitem(last=False)


def clear() -> None:
    """Forget all programs, so that the next call of each compiles again."""
    _PROGRAMS.clear()


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that the next process starts without compiling.

    JAXINFER_CACHE=off switches it off; a cache that JAX has been given already is left alone.
    """
    folder = cache_dir()
    if folder is None or jax.config.values.get("jax_compilation_cache_dir"):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
