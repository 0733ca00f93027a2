"""Functions compiled ahead of time, once for each set of static arguments and shapes.

A program keeps what the compiler says of it: seconds it took, and the memory it will need. Compile time is never mixed
into a measured time. Arguments may be shapes (`jax.ShapeDtypeStruct` with a sharding) of devices that are not here:
`lower` takes them too. Programs that were compiled elsewhere, and read from a file, take the place of compiling where
their signature is the one that is asked for (`preload`).
"""

import collections
import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax

from jaxinfer import sharding
from jaxinfer.errors import InputError
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

    @classmethod
    def of(cls, compiled: Any, seconds: float) -> "Program":
        """Read off what the compiler says of it."""
        memory = compiled.memory_analysis()
        return cls(compiled, seconds, memory.temp_size_in_bytes if memory is not None else 0, compiled)


class Saved(Protocol):
    """A program in a file."""

    def load(self, args: tuple[Any, ...], carry: int, layout: "sharding.Sharding | None") -> Any:
        """Make a `jax.stages.Compiled` of it, to be called with such arguments."""


@dataclass(frozen=True)
class SavedPrograms:
    """The programs of a file, by signature, and the model that they are of."""

    file: str
    model: str  # as `identity` writes it
    buffer: int  # tokens that a row has room for
    programs: Mapping[str, Saved]


_SAVED: list[SavedPrograms] = []


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
    _make_room()
    start = time.perf_counter()
    compiled = _loaded(fun, static, args, carry, layout)
    if compiled is None:
        compiled = lower(fun, static, args, carry, layout).compile()
    _PROGRAMS[key] = Program.of(compiled, time.perf_counter() - start)
    if len(_PROGRAMS) > _KEPT:
        _PROGRAMS.popitem(last=False)
    return _PROGRAMS[key], True


def lower(
    fun: Callable[..., Any],
    static: tuple[Any, ...],
    args: tuple[Any, ...],
    carry: int,
    layout: "sharding.Sharding | None" = None,
) -> jax.stages.Lowered:
    """Trace and lower `fun(*static, *args)`: see `program`. args: arrays, or shapes with a sharding."""

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
    return jax.jit(traced, donate_argnums=carry).lower(*args)


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


def preload(saved: SavedPrograms) -> None:
    """Let the programs of a file take the place of compiling."""
    _SAVED.append(saved)


def unload() -> None:
    """Forget the files of `preload`, and what came from them."""
    _SAVED.clear()
    clear()


def buffer() -> int:
    """Give the tokens that rows of preloaded programs have room for: shorter ones are padded. 0: there are none."""
    return max((saved.buffer for saved in _SAVED), default=0)


def _loaded(fun: Any, static: Any, args: Any, carry: int, layout: "sharding.Sharding | None") -> Any:
    """Look for a program in the preloaded files. Raises InputError if none of them is of that model."""
    if not _SAVED or layout is None:
        return None
    sought, model = signature(fun, static, args, layout), identity(static, args)
    for saved in _SAVED:
        if sought in saved.programs:
            return saved.programs[sought].load(args, carry, layout)
    if all(saved.model != model for saved in _SAVED):
        raise InputError(f"{_SAVED[0].file}: was compiled for {_SAVED[0].model}, and this model is {model}")
    warnings.warn(
        f"{_SAVED[0].file}: has no program {fun.__name__} of these shapes and options, which is compiled here",
        RuntimeWarning,
        stacklevel=3,
    )
    return None


def identity(static: tuple[Any, ...], args: tuple[Any, ...]) -> str:
    """Name the model that a program is of: its family, its sizes, a digest of all that it is, and its weights."""
    network = static[0]
    arrays = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(args[0])]
    return described(network.cfg, str(jax.numpy.dtype(network.dtype)), digest([_plain(network.cfg), arrays])[:12])


def described(cfg: Any, dtype: str, mark: str) -> str:
    """Write a model in a few words."""
    return f"{cfg.family} of {cfg.n_layers} layers, width {cfg.d_model}, {dtype} ({mark})"


def signature(fun: Callable[..., Any], static: tuple[Any, ...], args: tuple[Any, ...], layout: Any) -> str:
    """Digest all that a program depends on and that can be written down: it is alike in any process."""
    leaves, tree = jax.tree.flatten(args)
    forms = [(list(x.shape), str(x.dtype), _split(x)) for x in leaves]
    mesh, device = dict(layout.mesh.shape), layout.mesh.devices.flat[0]
    given = [fun.__name__, *map(_plain, static), _plain(tree), forms, mesh, _plain(layout.rules)]
    return digest([*given, device.device_kind, _plain(dispatch.chosen())])


def _split(x: Any) -> str:
    """Write how an array lies on its devices, alike for all ways to say so."""
    layout = getattr(x, "sharding", None)
    if layout is None or len(layout.device_set) == 1:
        return "{replicated}"
    return str(layout._to_xla_hlo_sharding(x.ndim))


def _plain(thing: Any) -> str:
    """Write a static argument, without addresses in memory."""
    name = getattr(thing, "__qualname__", None)
    return name if callable(thing) and name else re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def digest(thing: Any) -> str:
    """Give the sha256 of plain data."""
    return hashlib.sha256(json.dumps(thing, default=str).encode()).hexdigest()


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
