"""Executors measure the items of an experiment: in this process, or on the machines of a cluster."""

from jaxinfer.experiment.executors.contract import Executor, Lost, Work
from jaxinfer.experiment.executors.local import HERE

__all__ = ["HERE", "Executor", "Lost", "Work"]
