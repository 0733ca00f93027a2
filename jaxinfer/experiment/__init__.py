"""Experiments: a config in, a table and a report out.

    config = experiment.load_config("configs/quickstart.yaml", ["decoding.batch=4"])
    prompts = experiment.load_prompts(config.prompts)
    model = jaxinfer.load(config.model.source, config.model.dtype, config.model.weights)
    folder = experiment.run(config, model, prompts)

`jaxinfer run configs/quickstart.yaml decoding.batch=4` is the same from the command line.
"""

from jaxinfer.experiment.prompts import Prompt, load_prompts
from jaxinfer.experiment.runner import Interrupted, run
from jaxinfer.experiment.schema import Experiment, load_config

__all__ = ["Experiment", "Interrupted", "Prompt", "load_config", "load_prompts", "run"]
