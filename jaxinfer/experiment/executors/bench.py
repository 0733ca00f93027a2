"""A task on the machine that measures it."""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxinfer.experiment import kinds, loading
from jaxinfer.experiment.executors.task import Task
from jaxinfer.experiment.kind import Kind, Prompts, Run
from jaxinfer.experiment.measuring import measured
from jaxinfer.experiment.prompts import Prompt


class Bench:
    """A task on the machine that measures it: what is loaded stays loaded from item to item."""

    def __init__(self, task: Task):
        self.task = task

    @functools.cached_property
    def opened(self) -> tuple[Kind, Any, Prompts, Any, Any]:
        """Open it: the kind, the config, prompts, the model and what the kind prepared. Raises InputError."""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("config.yaml", self.task.config), *self.task.plugins):
                (Path(folder) / name).write_text(text, encoding="utf-8")
            asked = kinds.read(Path(folder) / "config.yaml")
        prompts = tuple(Prompt(*one) for one in self.task.prompts)
        model = loading.load(asked.kind, asked.config)
        return asked.kind, asked.config, prompts, model, asked.kind.prepare(asked.config, model, prompts)

    def measure(self, name: str, finished: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Measure an item: its line. finished: the lines so far. Raises InputError where the task cannot be opened."""
        kind, config, prompts, model, ready = self.opened
        run = Run(config, Path(tempfile.gettempdir()), model, prompts, ready, kind.rows(finished))
        return measured(kind, name, kind.items(config, prompts)[name], run)
