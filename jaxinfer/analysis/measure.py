"""Comparing the speed of two things on a machine that is not quiet: in turn, and by ratios within a round."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

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
        """The second's time over the first's, round by round: above 1, the first is faster."""
        return [b / a for a, b in zip(self.first, self.second, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)


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
