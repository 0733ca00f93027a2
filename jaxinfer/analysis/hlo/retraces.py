"""Count how often functions are traced and compiled, by name, while something runs."""

import collections
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

_TRACED, _COMPILED = "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/backend_compile_duration"
_WATCHING: list["Traced"] = []
_LISTENS: list[bool] = []  # JAX takes a listener once: it stays


@dataclass(frozen=True)
class Traced:
    """Traces and compiles of functions by name; one that is jitted within another is traced and not compiled."""

    traces: collections.Counter[str] = field(default_factory=collections.Counter)
    compiles: collections.Counter[str] = field(default_factory=collections.Counter)  # or fetched from disk
    seconds: dict[str, float] = field(default_factory=dict)  # spent on both, by name

    @property
    def retraces(self) -> dict[str, int]:
        """Count the compiles after the first of each function that has some."""
        return {name: number - 1 for name, number in self.compiles.items() if number > 1}


@contextmanager
def watch() -> Iterator[Traced]:
    """Count what is traced and compiled within, in any thread."""
    if not _LISTENS:
        jax.monitoring.register_event_duration_secs_listener(_note)
        _LISTENS.append(True)
    seen = Traced()
    _WATCHING.append(seen)
    try:
        yield seen
    finally:
        _WATCHING[:] = [other for other in _WATCHING if other is not seen]


def _note(event: str, duration_secs: float, **options: Any) -> None:
    if event not in (_TRACED, _COMPILED):
        return
    name = str(options.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
    for seen in _WATCHING:
        (seen.traces if event == _TRACED else seen.compiles)[name] += 1
        seen.seconds[name] = seen.seconds.get(name, 0.0) + duration_secs
