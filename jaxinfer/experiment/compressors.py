"""The compressors of an axis: a model into a smaller or cheaper one, by name.

    compress: [null, int8, {keep_layers: [0, 1, 2, 29]}, {keep_layers: [0, 1, 29], weights: int4}]

A text is a weight format. A mapping names one compressor or several, which are applied in the order written.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.api import Model
from jaxinfer.compress import keep_layers, quantize_weights, reroute
from jaxinfer.experiment.merge import Origin, show
from jaxinfer.experiment.registry import suggest
from jaxinfer.weights.formats import FORMATS

COMPRESSORS: dict[str, Callable[[Model, Any], Model]] = {
    "weights": quantize_weights,
    "keep_layers": keep_layers,
    "reroute": lambda model, settings: reroute(model, **settings),
}
"""By name, what makes the compressed model of a model and the value beside the name."""


def checked(value: Any, origin: Origin) -> dict[str, Any] | None:
    """Give a value of the axis as a mapping; None: nothing is compressed. Raises InputError."""
    if value is None:
        return None
    given = {"weights": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not given:
        example = "{keep_layers: [0, 1, 29]}"
        raise origin.error((), f"expected a weight format, a mapping such as {example}, or null, got {show(value)}")
    for key, setting in given.items():
        if key not in COMPRESSORS:
            raise origin.error((key,), f"unknown compressor{suggest(str(key), COMPRESSORS)}")
        if key == "weights":
            check_format(setting, origin if isinstance(value, str) else origin.below((key,)))
        is_list = isinstance(setting, list | tuple) and all(type(layer) is int for layer in setting)
        if key == "keep_layers" and not is_list:
            raise origin.error((key,), f"expected a list of layers, counted from 0, got {show(setting)}")
        if key == "reroute" and not isinstance(setting, Mapping):
            raise origin.error((key,), f"expected a mapping, such as {{router: sinkhorn}}, got {show(setting)}")
    return dict(given)


def check_format(value: Any, origin: Origin) -> None:
    """Raise InputError for what is no weight format."""
    if not isinstance(value, str) or value not in FORMATS:
        raise origin.error((), f"{show(value)} must be one of {', '.join(FORMATS)}{near(value)}")


def near(value: Any) -> str:
    """Name the format that is meant, where one is near."""
    hint = suggest(str(value), FORMATS)
    return hint if "nearest" in hint else ""


def apply(model: Model, compress: Mapping[str, Any] | None) -> Model:
    """Make the compressed model. Raises InputError where a compressor does not suit the model."""
    for name, setting in (compress or {}).items():
        model = COMPRESSORS[name](model, setting)
    return model
