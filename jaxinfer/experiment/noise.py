"""Tell a difference of speed from noise, by the passes that each row was measured in."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST = 0.01  # a change of the median below this is none, however narrow its passes
RULE = (
    "Beyond noise: every pass of the one is faster than every pass of the other, and the medians differ by 1 % or "
    "more. With three passes each, chance alone does that once in ten times, with five once in 126; one pass says "
    "nothing of noise."
)


@dataclass(frozen=True)
class Change:
    """A ratio of speeds, with the least and the greatest that the passes allow; passes: of the side that has fewer."""

    ratio: float
    low: float
    high: float
    passes: int

    @property
    def beyond(self) -> bool:
        """Tell whether it is more than noise."""
        return self.passes > 1 and abs(self.ratio - 1) >= LEAST and (self.low > 1 or self.high < 1)


def ratios(row: Mapping[str, Any]) -> list[float]:
    """Give a row's speed over its baseline's, pass by pass: the two took turns."""
    return [rate / other for rate, other in zip(row["decode_rates"], row["baseline_rates"], strict=True) if other]


def over_baseline(row: Mapping[str, Any]) -> Change | None:
    """Give the change from a row's baseline to the row; None where the baseline has no speed."""
    found = ratios(row)
    return Change(statistics.median(found), min(found), max(found), len(found)) if found else None


def between(first: Sequence[float], other: Sequence[float]) -> Change | None:
    """Give the change from the passes of one measurement to those of another; None where there is no speed."""
    if not first or not other or min(first) <= 0:
        return None
    ratio = statistics.median(other) / statistics.median(first)
    return Change(ratio, min(other) / max(first), max(other) / min(first), min(len(first), len(other)))
