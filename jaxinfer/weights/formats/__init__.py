"""The formats that weights can have, by the names that `load(weights=...)`, `--weights` and configs know them by."""

from typing import Any

from jaxinfer.errors import InputError, shown
from jaxinfer.host.registry import Registry
from jaxinfer.weights.contract import WeightFormat
from jaxinfer.weights.formats.fp8 import FP8
from jaxinfer.weights.formats.int4 import Int4
from jaxinfer.weights.formats.int8 import Int8
from jaxinfer.weights.formats.nf4 import NF4

FORMATS: Registry[WeightFormat[Any]] = Registry(
    "weight format",
    {
        "int8": Int8(),
        "int4": Int4(32),
        "int4-64": Int4(64),
        "int4-128": Int4(128),
        "w8a8": Int8(activations=True),
        "nf4": NF4(),
        "fp8": FP8(),
    },
)


def name_of(format: WeightFormat[Any]) -> str:
    """The name of a format. Raises InputError for one that is not registered."""
    for name, known in FORMATS.items():
        if known == format:
            return name
    raise InputError(f"weight format {shown(format)} has no name: FORMATS.add(name, format) gives it one")
