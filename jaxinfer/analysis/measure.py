"""Comparing the speed of two things on a machine that is not quiet: in turn, and by ratios within a round."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

SWEEP = 1 << 29  # bytes: many times what processors keep close
REST = 0.2  # seconds between measurements: threads of a pool spin for a while before they sleep

Measure = Callable[[], float]  # measures once, and gives seconds


@dataclass(frozen=True)
class Comparison:
    """Seconds of two things that were measured in turn, one value a round."""

    title: str
    names: tuple[str, str]
    first: list[float]
    second: list[float]

    @property
    def ratios(self) -> list[float]:
        """Give the second's time over the first's, round by round: above 1, the first is faster."""
        return [b / a for a, b in zip(self.first, self.second, strict=True)]

    @property
    def ratio(self) -> float:
        """Give the median of the ratios."""
        return statistics.median(self.ratios)


def read_bandwidth(rounds: int = 9) -> float:
    """Measure bytes a second that a program reads which does nothing else: the best of `rounds` sums over half a GB.

    Two forms, because compilers do not make both as fast everywhere: a sum, and products of matrices with a vector.
    """
    import jax
    import jax.numpy as jnp

    cores = os.cpu_count() or 1
    x = jnp.ones((cores, SWEEP // 4 // cores // 4096, 4096), jnp.float32)
    vector = jnp.ones((cores, 4096), jnp.float32)
    best = 0.0
    for form in (jax.jit(lambda x, y: jnp.sum(x)), jax.jit(lambda x, y: jnp.einsum("cns,cs->cn", x, y))):
        jax.block_until_ready(form(x, vector))
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready(form(x, vector))
            best = max(best, x.nbytes / (time.perf_counter() - start))
    return best


def alternate(
    title: str, names: tuple[str, str], first: Measure, second: Measure, rounds: int, rest: float = REST
) -> Comparison:
    """Measure both in turn, `rounds` times, after one round that warms up and does not count.

    A machine that is slow for a while slows both measurements of a round, and their ratio stays.
    """
    pairs = []
    for _ in range(1 + rounds):
        pair = []
        for measure in (first, second):
            time.sleep(rest)
            pair.append(measure())
        pairs.append(pair)
    one, two = zip(*pairs[1:], strict=True)
    return Comparison(title, names, list(one), list(two))
