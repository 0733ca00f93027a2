"""Executors as the command line names them."""

from jaxinfer.errors import InputError, shown
from jaxinfer.experiment.executors import ray
from jaxinfer.experiment.executors.contract import Executor
from jaxinfer.experiment.executors.local import HERE
from jaxinfer.experiment.executors.spread import Spread

KNOWN = ("here", "ray", "ray://HOST:PORT")


def named(text: str | None) -> Executor:
    """Give the executor of `--on`. Raises InputError for one that there is not."""
    if text is None or text == "here":
        return HERE
    name, slashes, address = text.partition("://")
    if name == "ray" and bool(slashes) == bool(address):
        return Spread(lambda task: ray.RayPool(task, address or None))
    raise InputError(f"--on: {shown(text)} is none of {', '.join(KNOWN)}")
