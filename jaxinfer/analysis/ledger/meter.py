"""The rates of this machine while something else is measured: those of a shared one drift within minutes."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.hardware.system import cores

SWEEP = 1 << 28  # bytes: many times what processors keep close
SIZE = 1024  # of the square matrices that are multiplied
TRIALS = 3


class Meter:
    """Measures bandwidth and the rate of products, over as many bytes and operations as what is measured beside it.

    A disturbance that a long call cannot escape must not spare a short one: so both take about as long.
    """

    def __init__(self, size: float = 0, ops: float = 0) -> None:
        n = cores()
        self._rows = jnp.ones((n, SWEEP // 4 // n // 4096, 4096), jnp.float32)
        vector = jnp.ones((n, 4096), jnp.float32)
        square = jnp.ones((SIZE, SIZE), jnp.float32)
        forms = [jax.jit(lambda x, y: jnp.sum(x)), jax.jit(lambda x, y: jnp.einsum("cns,cs->cn", x, y))]
        product = jax.jit(lambda x: jax.lax.dot(x, x, precision="highest"))
        reads = [_bound(form, self._rows, vector) for form in forms]
        self._read = min(reads, key=lambda read: min(_seconds(read, 1) for _ in range(TRIALS)))
        self._multiply = _bound(product, square)
        self._times = max(1, round(size / self._rows.nbytes)), max(1, round(ops / (2 * SIZE**3)))
        _seconds(self._multiply, 1)

    def __call__(self) -> tuple[float, float]:
        """Give bytes/s that are read, and operations/s of float32 products."""
        sweeps, products = self._times
        size, ops = sweeps * self._rows.nbytes, products * 2 * SIZE**3
        return size / _seconds(self._read, sweeps), ops / _seconds(self._multiply, products)


def now(hardware: Hardware, found: Sequence[tuple[float, float]]) -> Hardware:
    """Give hardware with the best of what was measured now: the rates of all types go by that of float32."""
    bandwidth, rate = (max(column) for column in zip(*found, strict=True))
    flops = {name: value * rate / hardware.flops["float32"] for name, value in hardware.flops.items()}
    return dataclasses.replace(hardware, bandwidth=bandwidth, flops=flops)


def _bound(call: Callable[..., Any], *given: Any) -> Callable[[], Any]:
    return lambda: call(*given)


def _seconds(call: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(call())
    return time.perf_counter() - start
