"""The progress of a run: a bar of its items, and one of what the item under way takes."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bars:
    """Two bars on standard error. What is said goes above them."""

    def __init__(self, console: Console | None, unit: str, done: int, total: int):
        # Refreshed between batches and never by a thread of its own: drawing would disturb the clock.
        columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console or Console(stderr=True), auto_refresh=False)
        self.overall = self.progress.add_task(f"{unit}s", total=total, completed=done)
        self.current = self.progress.add_task("", total=None)
        self.left, self.taken, self.begun = total - done, 0, time.monotonic()  # of this sitting

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, name: str, line: str) -> None:
        """Begin with an item, and say so."""
        self.progress.reset(self.current, description=name, total=None)
        self.say(line)
        self.progress.refresh()

    def expect(self, total: int) -> None:
        """Let the item under way take so many ticks."""
        self.progress.update(self.current, total=total)
        self.progress.refresh()

    def say(self, text: str) -> None:
        """Print a line."""
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def tick(self, steps: int = 1) -> None:
        """Draw some steps of the item under way."""
        self._advance(self.current, steps)

    def remaining(self) -> str | None:
        """Say about how long the items that are left take, by those of this sitting; None before the first, or soon."""
        if not self.taken:
            return None
        seconds = (time.monotonic() - self.begun) / self.taken * self.left
        return None if seconds < 60 else f"about {round(seconds / 60)} min left"

    def end(self) -> None:
        """Draw the end of the item under way."""
        self.left, self.taken = self.left - 1, self.taken + 1
        self._advance(self.overall)

    def close(self) -> None:
        """Take the bar of the item away: all are done."""
        self.progress.update(self.current, visible=False)

    def _advance(self, task: TaskID, steps: int = 1) -> None:
        self.progress.advance(task, steps)
        self.progress.refresh()
