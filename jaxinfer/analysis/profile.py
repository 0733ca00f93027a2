"""Read from JAX's profiler when each instruction of a compiled program runs, and write traces for people to look at.

On a CPU the runtime notes two events an instruction: it begins, and its result is there. They stand on the line of the
thread that ran it, loops and branches around what is in them. On a GPU or TPU the device notes what it ran.
"""

import contextlib
import heapq
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxinfer.errors import InputError, shown_text
from jaxinfer.host.files import path_of

_END = "end: "  # begins the name of the event that notes a result


@dataclass(frozen=True)
class Event:
    """An instruction, from its begin until its result is there, in seconds of the trace's own clock."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Execution:
    """One run of one program."""

    program: str  # the module's name: `jit_decode`
    events: tuple[Event, ...]  # in the order in which they begin

    @property
    def begin(self) -> float:
        return min(event.begin for event in self.events)

    @property
    def end(self) -> float:
        return max(event.end for event in self.events)

    @property
    def seconds(self) -> float:
        """Give the time from its first event to its last."""
        return self.end - self.begin


@dataclass(frozen=True)
class Shares:
    """Seconds of one run, by the instruction that they went to; `between` are those in which none ran."""

    instructions: dict[str, float]
    counts: dict[str, int]  # how often each ran
    between: float


@contextlib.contextmanager
def profile_to(folder: str | Path) -> Iterator[None]:
    """Write a trace of what runs inside, for XProf and TensorBoard, into a folder, which is made.

    Its scopes are those of the code: stages of a step (`propose`, `verify`, `commit`, `logits`), modules and operators.
    Python's own calls are left out: noting each takes longer than it. Raises InputError, before anything runs, for a
    folder that cannot be made.
    """
    path = path_of(folder, "profile")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"profile: {shown_text(str(path))}: cannot be written: {error.strerror or error}") from None
    with jax.profiler.trace(path, profiler_options=_options(hlo=True)):
        yield


@contextlib.contextmanager
def traced() -> Iterator[list[Execution]]:
    """Trace what runs inside. The list is filled when it ends: every run of every program, in order of their begins."""
    found: list[Execution] = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=_options(hlo=False)):
            yield found
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        found += executions(jax.profiler.ProfileData.from_file(str(files[0])).planes) if files else []


def _options(hlo: bool) -> Any:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.enable_hlo_proto = 0, hlo
    return options


def executions(planes: Iterable[Any]) -> list[Execution]:
    """Group the events of a trace's planes by run of a program.

    Where a device has noted its instructions, these count, and not those of the host.
    """
    on_devices: list[Any] = []
    on_host: list[Any] = []
    for plane in planes:
        (on_devices if plane.name.startswith("/device:") else on_host).append(plane)
    return _grouped(on_devices) or _grouped(on_host)


def _grouped(planes: Iterable[Any]) -> list[Execution]:
    runs: dict[tuple[Any, ...], list[tuple[Any, str, float, float]]] = {}
    done: dict[Any, float] = {}  # by the number that connects both events of an instruction
    for plane in planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                begin = event.start_ns * 1e-9
                if "hlo_op" in stats:
                    run = stats.get("hlo_module"), stats.get("program_id"), stats.get("run_id")
                    end = begin + event.duration_ns * 1e-9
                    runs.setdefault(run, []).append((stats.get("_p"), str(stats["hlo_op"]), begin, end))
                elif "_c" in stats and event.name.startswith(_END):
                    done[stats["_c"]] = begin
    found = []
    for (program, *_), rows in runs.items():
        made = [Event(name, begin, max(begin, done.get(key, end))) for key, name, begin, end in rows]
        found.append(Execution(str(program), tuple(sorted(made, key=lambda event: event.begin))))
    return sorted(found, key=lambda one: one.begin)


def shares(execution: Execution, around: Collection[str] = ()) -> Shares:
    """Give every moment of a run to the instruction that ran then, in equal parts to several at once.

    around: the names of instructions that only run others, loops and branches, to which no time is given. So the
    seconds of all instructions and those `between` add up to the seconds of the run.
    """
    given: dict[str, float] = {}
    counts: dict[str, int] = {}
    active: list[tuple[float, str]] = []  # those that run, the one that ends first in front
    now, between = execution.begin, 0.0

    def go_on(to: float) -> None:
        nonlocal now, between
        while active and active[0][0] <= to:
            share(active[0][0])
            heapq.heappop(active)
        share(to)

    def share(to: float) -> None:
        nonlocal now, between
        passed, now = max(to - now, 0.0), max(to, now)
        if not active:
            between += passed
        for _, name in active:
            given[name] = given.get(name, 0.0) + passed / len(active)

    for event in execution.events:
        if event.name in around:
            continue
        go_on(event.begin)
        counts[event.name] = counts.get(event.name, 0) + 1
        heapq.heappush(active, (event.end, event.name))
    go_on(execution.end)
    return Shares(given, counts, between)
