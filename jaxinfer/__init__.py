"""jaxinfer: a JAX/XLA compiler-driven framework for LLM inference research.

Names are imported when they are first used, so that `jaxinfer --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxinfer.api import Model, Result, Stream, load
    from jaxinfer.cache import POLICIES, Cache, CachePolicy, Dense, Window
    from jaxinfer.config import LayerKind, ModelConfig, Rope, RopeScaling, Segment
    from jaxinfer.decoding import METHODS, DecodeMethod, Eagle, Greedy, Lookup, Medusa, Sample, Sampling
    from jaxinfer.errors import InputError
    from jaxinfer.generation import Stats

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "POLICIES",
    "Cache",
    "CachePolicy",
    "DecodeMethod",
    "Dense",
    "Eagle",
    "Greedy",
    "InputError",
    "LayerKind",
    "Lookup",
    "Medusa",
    "Model",
    "ModelConfig",
    "Result",
    "Rope",
    "RopeScaling",
    "Sample",
    "Sampling",
    "Segment",
    "Stats",
    "Stream",
    "Window",
    "load",
]

_HOMES = {
    "jaxinfer.api": ("Model", "Result", "Stream", "load"),
    "jaxinfer.cache": ("POLICIES", "Cache", "CachePolicy", "Dense", "Window"),
    "jaxinfer.config": ("LayerKind", "ModelConfig", "Rope", "RopeScaling", "Segment"),
    "jaxinfer.decoding": ("METHODS", "DecodeMethod", "Eagle", "Greedy", "Lookup", "Medusa", "Sample", "Sampling"),
    "jaxinfer.errors": ("InputError",),
    "jaxinfer.generation": ("Stats",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
