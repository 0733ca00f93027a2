"""The choice of a formulation of attention: one table, by platform, dtype and shape. Products: `matmul.TABLE`.

    with jaxinfer.kernels.use("xla"):       # or "reference", "pallas"; traced inside, everything is this one
        model.generate(...)

Without a choice the first row of a table for the platform that takes the call runs. A row that is passed over for its
dtype or shape says so once, as a warning. A row that is not `by_default` runs only where it is forced.
"""

import contextlib
import contextvars
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.cache.codes import Codes
from jaxinfer.cache.store import Store
from jaxinfer.errors import InputError, nearest
from jaxinfer.sharding import layouts

HALVES = ("bfloat16", "float16")
EIGHT_BITS = ("int8", "float8_e4m3fn")
ATTENTION, MATMUL = "attention", "matmul"


@dataclass(frozen=True)
class Call:
    """All that a choice depends on. It is static."""

    platform: str  # "cpu", "gpu" or "tpu"
    generation: str  # of an NVIDIA GPU: its compute capability
    dtype: str  # of queries
    stored: str  # of keys in the cache, or the name of a format that only its policy can read
    width: int  # of a head
    group: int  # query heads that share a key/value head
    slots: int
    latent: bool  # values are columns of the keys
    page: int | None = None  # slots of a block, where keys lie in pools that rows share

    @staticmethod
    def of(q: jax.Array, n_tokens: int, store: Store, latent: bool) -> "Call":
        stored, slots = store.k, store.pos.shape[1]
        platform, generation = machine(ATTENTION)
        if isinstance(stored, Codes):
            name = stored.codes.dtype.name
        elif hasattr(stored, "dtype"):
            name = stored.dtype.name if jnp.issubdtype(stored.dtype, jnp.floating) else f"{stored.dtype.name} array"
        else:
            name = type(stored).__name__
        page = None if store.pages is None else slots // store.pages.shape[1]
        group = q.shape[2] // n_tokens
        return Call(platform, generation, q.dtype.name, name, q.shape[-1], group, slots, latent, page)


def misfit(row: Any, call: Any) -> str | None:
    """Say why a formulation cannot run on the platform of a call, or None."""
    if row.platforms and call.platform not in row.platforms:
        return f"it is for {' or '.join(row.platforms)}, not for {call.platform}"
    if row.generations and call.generation not in row.generations:
        return f"it is for compute capability {' or '.join(row.generations)}, not {call.generation or 'unknown'}"
    return None


@dataclass(frozen=True)
class Row:
    """A formulation, and what it takes. None: anything."""

    name: str
    module: str
    platforms: tuple[str, ...] | None = None
    generations: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    stored: tuple[str, ...] | None = None
    mixed: bool = True  # queries and unquantized keys may differ in dtype
    widths: tuple[int, ...] | None = None
    group: int | None = None  # at most
    latent: bool = True
    page: int = 1  # blocks of a pool hold a multiple of so many slots
    by_default: bool = True  # runs without being forced: False for what no device has proved yet

    def misfit(self, call: Call) -> str | None:
        """Say why this formulation cannot run on that platform, or None."""
        return misfit(self, call)

    def refuses(self, call: Call) -> str | None:
        """Say why this formulation does not take those dtypes or shapes, or None."""
        if self.dtypes and call.dtype not in self.dtypes:
            return f"it computes in {' or '.join(self.dtypes)}, not in {call.dtype}"
        if self.stored and call.stored not in self.stored:
            return f"it reads keys in {', '.join(self.stored)}, not in {call.stored}"
        if not self.mixed and call.stored not in (*EIGHT_BITS, call.dtype):
            return f"its keys have the dtype of its queries, {call.dtype}, not {call.stored}"
        if call.latent and not self.latent:
            return "it does not take values out of keys (latent attention)"
        if self.widths and call.width not in self.widths:
            return f"it takes heads of width {', '.join(map(str, self.widths))}, not of {call.width}"
        if self.group and call.group > self.group:
            return f"it takes at most {self.group} query heads to a key/value head, not {call.group}"
        if self.platforms and call.slots % 128:
            return f"it takes a multiple of 128 slots, not {call.slots}"
        if call.page and call.page % self.page:
            return f"it takes blocks of a multiple of {self.page} tokens, not of {call.page}"
        return None


TABLE = (
    Row(
        "pallas",
        "tpu",
        platforms=("tpu",),
        dtypes=("bfloat16", "float32"),
        stored=("bfloat16", "float32", *EIGHT_BITS),
        widths=(64, 96, 128, 256),
        group=256,
        latent=False,
        page=128,
    ),
    Row(
        "pallas",
        "gpu",
        platforms=("gpu",),
        generations=("9.0",),
        dtypes=HALVES,
        stored=(*HALVES, *EIGHT_BITS),
        mixed=False,
        widths=(64, 96, 128, 256),
        group=64,
        latent=False,
        page=64,
        by_default=False,
    ),
    Row("xla", "xla"),
    Row("reference", "reference"),
)


@dataclass(frozen=True)
class Choice:
    """A forced formulation, of everything or of what `of` says."""

    name: str
    target: str | None = None
    interpret: bool = False
    of: str | None = None


@dataclass(frozen=True)
class Chosen:
    """The choice of a table for a call, and why it passed over what is faster; None: it did not."""

    of: str
    name: str
    reason: str | None


_CHOICE: contextvars.ContextVar[Choice | None] = contextvars.ContextVar("jaxinfer_kernels", default=None)
_RECORD: contextvars.ContextVar[list[Chosen] | None] = contextvars.ContextVar("jaxinfer_chosen", default=None)
_WARNED: set[str] = set()


@contextlib.contextmanager
def recorded() -> Iterator[list[Chosen]]:
    """Note what is chosen for every call that is traced inside."""
    found: list[Chosen] = []
    token = _RECORD.set(found)
    try:
        yield found
    finally:
        _RECORD.reset(token)


@contextlib.contextmanager
def use(name: str, target: str | None = None, interpret: bool = False, of: str | None = None) -> Iterator[None]:
    """Trace what is inside as `name`: "reference", "xla" or "pallas".

    That is all attention and the products of up to 64 rows with quantized weights, or one of them: `of` is "attention"
    or "matmul". It is looked up while tracing: a function that `jax.jit` has traced before keeps what it was traced
    with. What a `Model` runs is kept apart by it. target: "tpu" or "gpu", the platform to choose and compile for, where
    it is not the one at hand. interpret: run the kernel step by step on any platform, to test it. An inner choice takes
    the place of an outer one. Raises InputError for a name that there is not; a call that the choice cannot run raises
    one that says what would.
    """
    names = sorted({row.name for row in TABLE})
    if name not in names:
        raise InputError(f"no attention {name!r}: there is {', '.join(names)}{nearest(name, names)}")
    if target not in (None, "tpu", "gpu"):
        raise InputError(f"no attention kernels for {target!r}: target is 'tpu' or 'gpu'")
    if of not in (None, ATTENTION, MATMUL):
        raise InputError(f"no kernels of {of!r}: of is 'attention' or 'matmul'")
    token = _CHOICE.set(Choice(name, target, interpret, of))
    try:
        yield
    finally:
        _CHOICE.reset(token)


def chosen(of: str | None = None) -> Choice | None:
    """The forced formulation: as a whole, part of a program's identity, or what of it is about `of`."""
    choice = _CHOICE.get()
    return None if choice is None or (of and choice.of not in (None, of)) else choice


def machine(of: str) -> tuple[str, str]:
    """The platform that `of` is traced for and, of an NVIDIA GPU, its compute capability."""
    choice = chosen(of)
    if choice and choice.target:
        return choice.target, "9.0"
    device = layouts.device()
    return device.platform, str(getattr(device, "compute_capability", "") or "")


def choose(call: Any, table: Sequence[Any] = TABLE, of: str = ATTENTION) -> Any:
    """The row of a table that runs this call."""
    choice = chosen(of)
    if choice is None:
        return _first(call, table, of)
    reasons = []
    for row in table:
        if row.name == choice.name:
            reason = row.misfit(call) or row.refuses(call)
            if reason is None:
                return row
            reasons.append(reason)
            if row.misfit(call) is None:  # the row meant for this platform says it best
                reasons = [reason]
                break
    would = [repr(row.name) for row in table if not row.misfit(call) and not row.refuses(call)]
    raise InputError(f"{of} {choice.name!r} cannot run here: {'; '.join(reasons)}. What would: {', '.join(would)}")


def _first(call: Any, table: Sequence[Any], of: str) -> Any:
    record, why = _RECORD.get(), None
    for row in table:
        if misfits := row.misfit(call):
            why = misfits if call.platform in (row.platforms or ()) else why
            continue
        if not row.by_default:
            why = why or f"{row.name} runs only where it is asked for: no device has proved it yet"
            continue
        reason = row.refuses(call)
        if reason is None:
            if record is not None:
                record.append(Chosen(of, row.name, why))
            return row
        why = reason
        message = f"{of} falls back to plain XLA on {call.platform}: {reason}"
        if message not in _WARNED:
            _WARNED.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    raise AssertionError("the last rows take everything")


def module(row: Any) -> Any:
    """The formulation's code, imported when it is first needed: Pallas takes a second."""
    return importlib.import_module(f"jaxinfer.kernels.{row.module}")


def interpreter(row: Any, of: str = ATTENTION) -> dict[str, Any]:
    """Give what makes a kernel run step by step, if that was asked for."""
    choice = chosen(of)
    if choice is None or not choice.interpret:
        return {}
    if "tpu" in row.platforms:
        return {"interpret": True}
    make: Callable[[], Any] | None = getattr(module(row).plgpu, "InterpretGPUParams", None)
    if make is None:
        raise InputError(f"{of} for gpu cannot be interpreted by this JAX: 0.12 or newer can")
    return {"interpret": make()}
