"""Items over the workers of a cluster, a worker a machine; what waits, what is lost, and what is tried again.

What has to stay on one machine is a unit (`Kind.units`): its items are measured one after the other by one worker. A
worker that dies costs the item under way a retry, on another worker; after `TRIES` the item fails by its name. What the
unit has left goes on.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from jaxinfer.errors import InputError
from jaxinfer.experiment.executors.contract import Lost, Work
from jaxinfer.experiment.executors.task import Task
from jaxinfer.experiment.kind import Kind, Prompts
from jaxinfer.experiment.measuring import failure

TRIES = 3  # times that an item is begun


class Died:
    """The answer of a worker that is no more. why: in a few words."""

    def __init__(self, why: str):
        self.why = why


class Pool(Protocol):
    """The workers of a cluster. A worker is whatever the pool makes it; its name is shown."""

    def room(self) -> int:
        """Count the workers that the machines can have now."""

    def start(self) -> Any | None:
        """Start a worker; None where no machine is free."""

    def send(self, worker: Any, name: str, finished: Sequence[dict[str, Any]]) -> None:
        """Let a worker measure an item. finished: the lines so far."""

    def wait(self, workers: Sequence[Any]) -> tuple[Any, dict[str, Any] | Died]:
        """Wait until one of the workers has an answer: the line of its item, or that it died."""

    def close(self) -> None:
        """Let all workers go."""


class Spread:
    """Measures items over the workers of a pool. pool: opens it for a task; raises InputError where it cannot."""

    def __init__(self, pool: Callable[[Task], Pool]):
        self._open = pool
        self._pool: Pool | None = None

    def begin(
        self,
        kind: Kind,
        config: Any,
        model: Any,
        prompts: Prompts,
        heading: Mapping[str, Any] | None,
        items: Mapping[str, Any],
    ) -> Work:
        if kind.units is None:
            raise InputError("--on: a config of this kind is measured on one machine; rows and grids go to several")
        self._units = kind.units(config, items)
        self._pool = self._open(Task.of(config, prompts, heading))
        return Work(kind, items, end=self._pool.close)

    def measured(self, work: Work) -> Iterator[tuple[str, dict[str, Any]]]:
        assert self._pool is not None
        pool, waiting = self._pool, collections.deque(self._left(work))
        tries: collections.Counter[str] = collections.Counter()
        idle: list[Any] = []
        busy: dict[Any, collections.deque[str]] = {}

        def begin(worker: Any, unit: collections.deque[str]) -> None:
            name = unit[0]
            tries[name] += 1
            busy[worker] = unit
            if work.bars:
                again = f", try {tries[name]} of {TRIES}" if tries[name] > 1 else ""
                place = f"{work.kind.unit} {work.number(name)} of {len(work.items)}"
                work.bars.say(f"{place}: {name}: on {worker}{again}")
            pool.send(worker, name, work.lines)

        while waiting or busy:
            while waiting and (idle or len(busy) < pool.room()):
                worker = idle.pop() if idle else pool.start()
                if worker is None:
                    break
                begin(worker, waiting.popleft())
            if not busy:
                raise Lost("no machine of the cluster is left")
            worker, answer = pool.wait(list(busy))
            unit = busy.pop(worker)
            name = unit[0]
            if not isinstance(answer, Died):
                unit.popleft()
                yield name, answer
                if unit:
                    begin(worker, unit)
                else:
                    idle.append(worker)
                continue
            if work.bars:
                work.bars.say(f"{name}: {worker} died: {answer.why}")
            if tries[name] >= TRIES:
                unit.popleft()
                problem = f"its worker died {TRIES} times, the last time on {worker}: {answer.why}"
                yield name, failure(work.kind, name, work.items[name], problem)
            if unit:
                waiting.appendleft(unit)

    def _left(self, work: Work) -> list[collections.deque[str]]:
        """Give the units of what is left, in order."""
        units: dict[Any, collections.deque[str]] = {}
        for name in work.left:
            units.setdefault(self._units[name], collections.deque()).append(name)
        return list(units.values())
