"""The contract of the runner and an executor: the items that are left, and what has been measured."""

import dataclasses
import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from jaxinfer.experiment.bars import Bars
from jaxinfer.experiment.finished import is_failed, name_of
from jaxinfer.experiment.kind import Kind, Prompts, Run


def _nothing() -> None:
    return None


class Lost(OSError):
    """The machines of a cluster are gone: nothing more can be measured."""

    def __init__(self, message: str):
        super().__init__(errno.EHOSTDOWN, message)


@dataclass
class Work:
    """The items of a run, by name and in order, and the lines of those that are finished, in the same order."""

    kind: Kind
    items: Mapping[str, Any]
    ready: Any = None  # what the kind's `prepare` made, where the items are measured in this process
    end: Callable[[], None] = _nothing  # lets go what the executor has begun
    lines: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    run: Run = None  # type: ignore[assignment]  # until `take`
    bars: Bars | None = None

    def take(self, found: list[dict[str, Any]], run: Run) -> None:
        """Begin with the lines that earlier sittings left."""
        self.lines = [one for one in found if not is_failed(one)]
        self.failed = [one for one in found if is_failed(one)]
        self.run = run
        self._sort()

    @property
    def left(self) -> dict[str, Any]:
        """Give the items that are not finished, by name."""
        names = {name_of(line) for line in self.lines}
        return {name: item for name, item in self.items.items() if name not in names}

    def add(self, line: dict[str, Any]) -> None:
        """Take the line of an item that was measured, or failed."""
        self.failed = [one for one in self.failed if name_of(one) != name_of(line)]
        (self.failed if is_failed(line) else self.lines).append(line)
        self._sort()

    def number(self, name: str) -> int:
        """Count the items up to this one."""
        return list(self.items).index(name) + 1

    def _sort(self) -> None:
        """Put the lines in the order of the items, in whichever they were finished."""
        place = {name: number for number, name in enumerate(self.items)}
        for lines in (self.lines, self.failed):
            lines.sort(key=lambda line: place.get(name_of(line), len(place)))
        self.run = dataclasses.replace(self.run, rows=self.kind.rows(self.lines), failures=list(self.failed))


class Executor(Protocol):
    """Measures the items of a run."""

    def begin(
        self,
        kind: Kind,
        config: Any,
        model: Any,
        prompts: Prompts,
        heading: Mapping[str, Any] | None,
        items: Mapping[str, Any],
    ) -> Work:
        """Make ready what all items need. Raises InputError for whatever keeps them from being measured."""

    def measured(self, work: Work) -> Iterator[tuple[str, dict[str, Any]]]:
        """Measure what is left: names and their lines, as they are finished. The runner adds each line to the work."""
