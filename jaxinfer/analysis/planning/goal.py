"""The goal of a service: how much text, how fast."""

import math
from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import InputError, shown

MOST = 2**31


@dataclass(frozen=True)
class Goal:
    """The load of a service and the limits of its latency.

    prompt, output: tokens that a request has and gets. context: slots that the cache has for it; None: prompt + output.
    batch: requests that are answered together; None: any power of two. rate: new tokens a second that are wanted in
    all: as many copies of a slice serve as it takes; None: whatever one slice gives. ttft: seconds until the first
    token, in which all prompts of a batch are read; tpot: seconds from token to token; None: no limit.
    """

    prompt: int = 1024
    output: int = 256
    context: int | None = None
    batch: int | None = None
    rate: float | None = None
    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "output", "context", "batch"):
            value = getattr(self, name)
            if value is None and name in ("context", "batch"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < MOST:
                raise InputError(f"goal: {name}={shown(value)} must be a whole number from 1")
        for name in ("rate", "ttft", "tpot"):
            positive(name, getattr(self, name))
        if self.context is not None and self.context < self.prompt + self.output:
            raise InputError(
                f"goal: context={self.context} must be at least prompt + output = {self.prompt + self.output}"
            )

    @property
    def slots(self) -> int:
        """Count the slots that a request has in the cache."""
        return self.context or self.prompt + self.output


def positive(name: str, value: Any, what: str = "goal") -> None:
    """Raise InputError unless it is None or a positive finite number."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{what}: {name}={shown(value)} must be a number above 0")
