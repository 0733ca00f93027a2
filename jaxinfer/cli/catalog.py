"""The names that can be chosen, each with a line about it."""

from jaxinfer.cache import POLICIES
from jaxinfer.checkpoint.presets import PREFIX, SHAPES
from jaxinfer.checkpoint.sources import BUILTINS
from jaxinfer.decoding.methods import METHODS
from jaxinfer.weights.formats import FORMATS


def catalog() -> dict[str, list[list[str]]]:
    """List models as [name, the module that holds it, how to get it, what it is], and all else as [name, what it is].

    Models without a module are shapes with random weights. JSON can hold all of it.
    """
    models = [[name, model.module, model.install, model.description] for name, model in BUILTINS.items()]
    models += [[f"{PREFIX}{name}", "", "a shape", "random weights, for speed and memory"] for name in SHAPES]
    return {
        "models": models,
        "methods": [[name, _first_line(cls)] for name, cls in METHODS.items()],
        "policies": [[name, _first_line(cls)] for name, cls in POLICIES.items()],
        "weights": [[name, _first_line(type(format))] for name, format in FORMATS.items()],
    }


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]
