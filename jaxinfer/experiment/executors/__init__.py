"""Where the items of an experiment are measured: in this process, or on the machines of a cluster."""

from jaxinfer.experiment.executors.contract import Executor, Lost, Work
from jaxinfer.experiment.executors.local import HERE
from jaxinfer.experiment.executors.named import named

__all__ = ["HERE", "Executor", "Lost", "Work", "named"]
