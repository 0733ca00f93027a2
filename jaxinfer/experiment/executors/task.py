"""The task of a worker on another machine: a config with its plug-ins and prompts, as texts and numbers.

Files that a config names otherwise, such as models, have to lie on that machine too.
"""

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import jaxinfer
from jaxinfer.experiment import results
from jaxinfer.experiment.kind import Prompts
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
