"""The hardware of this machine, measured once and kept in the user's cache folder."""

import contextlib
import datetime
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxinfer.analysis import measure
from jaxinfer.analysis.hardware import system
from jaxinfer.analysis.hardware.constants import Hardware
from jaxinfer.analysis.hardware.reading import device, from_values
from jaxinfer.errors import InputError
from jaxinfer.host.files import cache_dir, read_json, write_atomic

THIS_MACHINE = "this-machine"
SIZES = (512, 1024, 2048, 4096, 8192)  # of the square matrices that are multiplied
LONGEST = 0.5  # seconds: no product is tried that would take longer, and none again once it took as long in all
ROUNDS = 7  # of each product at most; the best counts
QUEUED = 8  # products that an accelerator is given at once, so that no time between them counts

DATASHEETS = {
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
    "TPU v4": "tpu-v4",
    "TPU v5 lite": "tpu-v5e",
    "TPU v5": "tpu-v5p",
    "TPU v6 lite": "tpu-v6e",
    "TPU7x": "tpu-v7",
}
"""Devices by what JAX calls their kind. What cannot be measured of these is read in their datasheets."""

Say = Callable[[str], None]


def this_machine(fresh: bool = False, say: Say | None = None) -> Hardware:
    """Return the constants of the device that JAX computes on. They are measured where the cache folder has none yet.

    That takes some seconds, as `say` is told before. fresh: measure again. A file in the cache that is damaged is
    measured again, too. The rates are what programs reach, so no datasheet's; a type of operand that this machine
    computes slower than a wider one keeps its own rate in `flops`, and `Hardware.peak` takes the better one.
    """
    file = kept_file()
    if file is not None and not fresh:
        with contextlib.suppress(InputError):
            return from_values(read_json(file), str(file))
    found = _measured(say or (lambda text: None))
    if file is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            write_atomic(file, json.dumps(found, indent=2) + "\n")
    return from_values(found, THIS_MACHINE)


def kept_file() -> Path | None:
    """Name the file of the cache for this device, these cores, this JAX and what its compiler is told."""
    import jax

    folder = cache_dir()
    told = [os.environ.get("XLA_FLAGS", ""), str(jax.config.values.get("jax_disable_most_optimizations", False))]
    parts = [jax.default_backend(), _title(), str(system.cores()), jax.__version__, *told]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return folder and folder / "hardware" / f"{digest}.json"


def _title() -> str:
    import jax

    first = jax.devices()[0]
    if first.platform != "cpu":
        return str(first.device_kind)
    return f"{system.processor()}, {system.cores()} core{'s' * (system.cores() != 1)}"


def _measured(say: Say) -> dict[str, Any]:
    import jax

    first = jax.devices()[0]
    on_cpu = first.platform == "cpu"
    sheet = device(DATASHEETS[first.device_kind]) if first.device_kind in DATASHEETS else None
    say(f"measuring this machine ({_title()}), once: it takes some seconds; memory bandwidth ...")
    bandwidth = measure.read_bandwidth()
    rates, sizes = {}, {}
    for name in ("float32", "bfloat16", "int8"):
        say(f"measuring this machine: products in {name} ...")
        rates[name], sizes[name] = peak_of_products(name, 1 if on_cpu else QUEUED)
    (memory, of_memory), (on_chip, of_chip) = _memory(first), _on_chip(on_cpu, sheet)
    by = f"measured on {datetime.date.today().isoformat()} on {platform.system()} with JAX {jax.__version__}"
    sources = {
        "bandwidth": f"{by}: the best sum, or product with a vector, over half a GB",
        "memory": of_memory,
        "on_chip": of_chip,
        **{f"flops.{name}": f"{by}: the best product of square matrices of {sizes[name]}" for name in rates},
    }
    for name in ("link", "host_link", "power"):
        sources[name] = sheet.sources[name] if sheet else "null: not measured"
    return {
        "name": THIS_MACHINE,
        "title": _title(),
        "kind": "cpu" if on_cpu else "tpu" if first.platform == "tpu" else "gpu",
        "bandwidth": bandwidth,
        "flops": rates,
        "memory": memory,
        "on_chip": on_chip,
        **{name: getattr(sheet, name) if sheet else None for name in ("link", "host_link", "power")},
        "sources": sources,
    }


def peak_of_products(name: str, queued: int = 1) -> tuple[float, int]:
    """Measure operations/s of products of square matrices in a type, sums in 32 bits: the best, and at which size.

    name: a type of JAX's. queued: products that are started before the first is waited for. float32 is float32 in full
    on machines that would round its operands (`precision="highest"`).
    """
    import jax
    import jax.numpy as jnp

    sums = jnp.int32 if name == "int8" else jnp.float32

    @jax.jit
    def product(a, b):
        return jax.lax.dot(a, b, precision="highest", preferred_element_type=sums)

    best, at = 0.0, 0
    for size in SIZES:
        x = jnp.ones((size, size), name)
        jax.block_until_ready(product(x, x))
        seconds: list[float] = []
        while len(seconds) < ROUNDS and sum(seconds) < LONGEST:
            seconds.append(_timed(product, x, queued))
        best, at = max((best, at), (2 * size**3 * queued / min(seconds), size))
        if 8 * min(seconds) / queued > LONGEST:  # as the next size would take
            break
    return best, at


def _timed(product: Callable[..., Any], x: Any, queued: int) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready([product(x, x) for _ in range(queued)])
    return time.perf_counter() - start


def _memory(first: Any) -> tuple[float, str]:
    stats = (first.memory_stats() or {}) if first.platform != "cpu" else {}
    if stats.get("bytes_limit"):
        return float(stats["bytes_limit"]), "bytes_limit of the device's memory_stats: what JAX may allocate"
    return system.memory()


def _on_chip(on_cpu: bool, sheet: Hardware | None) -> tuple[float, str]:
    if on_cpu:
        return system.last_cache()
    if sheet is not None:
        return sheet.on_chip, sheet.sources["on_chip"]
    return system.ASSUMED_CACHE, "assumed: 32 MiB; JAX does not tell"
