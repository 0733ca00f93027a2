"""Experiments: a config in, a table and a report out.

    config = experiment.load_config("configs/quickstart.yaml", ["decoding.batch=4"])
    prompts = experiment.load_prompts(config.prompts)
    model = jaxinfer.load(config.model.source, config.model.dtype, config.model.weights)
    folder = experiment.run(config, model, prompts)

`jaxinfer run configs/quickstart.yaml decoding.batch=4` is the same from the command line. It runs configs of every
kind: `KINDS` holds those that are known, and a file of a user's own adds to it.
"""

from jaxinfer.experiment.kind import Kind, Run
from jaxinfer.experiment.kinds import KINDS
from jaxinfer.experiment.prompts import Prompt, load_prompts
from jaxinfer.experiment.rows import run
from jaxinfer.experiment.runner import Interrupted, measure
from jaxinfer.experiment.schema import Experiment, load_config
from jaxinfer.experiment.sheet import Table

__all__ = [
    "KINDS",
    "Experiment",
    "Interrupted",
    "Kind",
    "Prompt",
    "Run",
    "Table",
    "load_config",
    "load_prompts",
    "measure",
    "run",
]
