"""What a worker on another machine is given: a config with its plug-ins and prompts, as texts and numbers.

Files that a config names otherwise, such as models, have to lie on that machine too.
"""

import dataclasses
import functools
import importlib.metadata
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import jaxinfer
from jaxinfer.experiment import results
from jaxinfer.experiment.kind import Kind, Prompts, Run
from jaxinfer.experiment.measuring import measured
from jaxinfer.experiment.prompts import Prompt
from jaxinfer.host.files import read_text


@dataclass(frozen=True)
class Task:
    """A config, the texts of its plug-ins by file name, and its prompts, family and text and what is synthetic."""

    config: str
    plugins: tuple[tuple[str, str], ...]
    prompts: tuple[tuple[str, str, tuple[int, int] | None], ...]
    software: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, config: Any, prompts: Prompts, heading: Mapping[str, Any] | None = None) -> "Task":
        """Make the task of a config. Raises InputError for a plug-in that cannot be read."""
        above = dict(heading or {})
        files = [Path(file) for file in above.pop("plugins", [])]
        names = [f"{number}_{file.name}" for number, file in enumerate(files)]
        if names:
            above["plugins"] = names
        text = yaml.safe_dump(results.mapping_of(config, above), sort_keys=False)
        plugins = tuple(zip(names, map(read_text, files), strict=True))
        return cls(text, plugins, tuple(dataclasses.astuple(one) for one in prompts), software())

    def unlike(self, theirs: Sequence[tuple[str, str]]) -> str | None:
        """Name the first package of which a worker has another version, and both; None where there is none."""
        found = dict(theirs)
        return next(
            (f"{name} {found.get(name)}, here {mine}" for name, mine in self.software if found.get(name) != mine), None
        )


def software() -> tuple[tuple[str, str], ...]:
    """Give the versions of what has to be the same on all machines."""
    others = ((name, importlib.metadata.version(name)) for name in ("jax", "jaxlib"))
    return (("jaxinfer", jaxinfer.__version__), *others)


class Bench:
    """A task on the machine that measures it: what is loaded stays loaded from item to item."""

    def __init__(self, task: Task):
        self.task = task

    @functools.cached_property
    def opened(self) -> tuple[Kind, Any, Prompts, Any, Any]:
        """Open it: the kind, the config, prompts, the model and what the kind prepared. Raises InputError."""
        from jaxinfer.experiment import kinds, loading

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
