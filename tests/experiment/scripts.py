"""The kinds under experiments/, which are no package."""

import sys
from pathlib import Path
from types import ModuleType

from jaxinfer.experiment import KINDS, command, kinds
from jaxinfer.experiment.merge import Origin

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """The module of experiments/NAME.py, whose kind is registered from then on."""
    kinds.find(name, ROOT / "configs", Origin(name))
    return sys.modules[KINDS[name].table.__module__]


def run(name: str, config: str, *arguments: str) -> int:
    """Measure a config, which need not name its kind; the exit code."""
    overrides = [argument for argument in arguments if argument != "--resume"]
    return command.run_config(config, overrides, "--resume" in arguments, default=name)
