"""Block sizes of the kernels: a table by machine, kernel and class of shapes, kept as data (blocks.yaml).

An entry says what its sizes rest on: a measurement (`experiments/autotune.py` makes those), or reasoning from bytes of
VMEM, or registers and shared memory, that the compilers report ahead of time. A machine is found by the name of its
device ("TPU v5 lite", "NVIDIA H200"); one that is not in the table has the sizes of its platform ("tpu", "gpu").
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxinfer.errors import InputError
from jaxinfer.sharding import layouts

TABLE = Path(__file__).parent / "blocks.yaml"
CLASSES = {
    "attention": ("decode", "prefill"),
    "matmul": tuple(f"{name} {rows}" for name in ("int8", "int4", "int4-64", "int4-128") for rows in (8, 64)),
}
"""The classes of each kernel. Attention: up to 64 tokens a step, and more. Products: a format, and its most rows."""

SIZES = {
    ("tpu", "attention"): ("rows", "block", "heads"),
    ("gpu", "attention"): ("block", "stages"),
    ("tpu", "matmul"): ("outputs", "depth"),
    ("gpu", "matmul"): ("outputs", "stages"),
}
"""The sizes of an entry, which each kernel explains."""

_TRIED: contextvars.ContextVar[tuple[Any, ...] | None] = contextvars.ContextVar("jaxinfer_blocks", default=None)


def sizes(platform: str, kernel: str, shapes: str) -> dict[str, int]:
    """Return the block sizes of a kernel for a class of shapes, on the machine that the program being traced is for."""
    tried = _TRIED.get()
    if tried and tried[0] == (kernel, shapes):
        return tried[1]
    device = layouts.device()
    names = (device.device_kind, platform) if device.platform == platform else (platform,)
    for path in (*(tried if tried and isinstance(tried[0], Path) else ()), TABLE):
        for name in names:
            entry = read(path).get(name, {}).get(kernel, {}).get(shapes)
            if entry is not None:
                wanted = SIZES[platform, kernel]
                if not {*wanted} <= {*entry}:
                    raise InputError(f"{path}: {name}.{kernel}.{shapes}: must have {', '.join(wanted)} on a {platform}")
                return {key: entry[key] for key in wanted}
    raise AssertionError(f"{TABLE} has no {kernel} {shapes} for {platform}")  # a test holds it to have them all


@contextlib.contextmanager
def use(path: Path) -> Iterator[None]:
    """Take the sizes of what is traced inside from another table, and from the package's where that lacks them."""
    with _set((Path(path),)):
        yield


@contextlib.contextmanager
def trying(kernel: str, shapes: str, candidate: Mapping[str, int]) -> Iterator[None]:
    """Take these sizes of a class of shapes for what is traced inside, to measure them."""
    with _set(((kernel, shapes), dict(candidate))):
        yield


@contextlib.contextmanager
def _set(what: tuple[Any, ...]) -> Iterator[None]:
    token = _TRIED.set(what)
    try:
        yield
    finally:
        _TRIED.reset(token)


def read(path: Path) -> dict[str, Any]:
    """Read a table: machine, kernel, class -> sizes and what they rest on. Raises InputError for what is none."""
    return _parsed(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, modified: int) -> dict[str, Any]:
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: no table of block sizes: {str(error).splitlines()[0]}") from None
    check(table, path)
    return table


def check(table: Any, path: Path) -> None:
    """Raise InputError unless it is a table of block sizes."""

    def mapping(value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise InputError(f"{path}: {where or 'the table'}: must be a mapping, not {value!r}")
        return value

    for machine, kernels in mapping(table, "").items():
        for kernel, classes in mapping(kernels, machine).items():
            for shapes, entry in mapping(classes, f"{machine}.{kernel}").items():
                where = f"{machine}.{kernel}.{shapes}"
                if shapes not in CLASSES.get(kernel, ()):
                    known = [f"{name}.{one}" for name, ones in CLASSES.items() for one in ones]
                    raise InputError(f"{path}: {where}: is none of {', '.join(known)}")
                basis = mapping(entry, where).get("basis", "")
                if str(basis).partition(":")[0] not in ("measured", "reasoned"):
                    raise InputError(
                        f"{path}: {where}.basis: must begin with 'measured:' or 'reasoned:', not {basis!r}"
                    )
                wanted = [SIZES[one, kernel] for one in ("tpu", "gpu")]
                if {*entry} - {"basis"} not in [{*sizes} for sizes in wanted]:
                    lists = " or ".join(", ".join(sizes) for sizes in wanted)
                    raise InputError(f"{path}: {where}: must have basis and {lists}, not {', '.join(entry)}")
                for key, value in entry.items():
                    if key != "basis" and (not isinstance(value, int) or value < 1):
                        raise InputError(f"{path}: {where}.{key}: must be a whole number from 1, not {value!r}")
