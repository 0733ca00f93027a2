"""jaxinfer: a JAX/XLA compiler-driven framework for LLM inference research.

Names are imported when they are first used, so that `jaxinfer --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxinfer.api import Model, Result, load
    from jaxinfer.cache import POLICIES, Cache, CachePolicy, Dense, Paged, Quantized, Window
    from jaxinfer.config import LayerKind, ModelConfig, Rope, RopeScaling, Segment
    from jaxinfer.decoding import (
        LLMA,
        METHODS,
        MTP,
        Adaptive,
        Beam,
        Cascade,
        Constraint,
        Contrastive,
        Datastore,
        DecodeMethod,
        Dola,
        Dynamic,
        Eagle,
        EarlyExit,
        Fallback,
        Greedy,
        Jacobi,
        Lookahead,
        Lookup,
        Medusa,
        Recycling,
        Retrieval,
        Sample,
        Sampling,
        SelfSpeculative,
        Speculative,
        SpeculativeTree,
        Suffix,
        references,
    )
    from jaxinfer.errors import InputError
    from jaxinfer.stats import Stats
    from jaxinfer.streaming import Stream

__version__ = "0.1.0"

__all__ = [
    "LLMA",
    "METHODS",
    "MTP",
    "POLICIES",
    "Adaptive",
    "Beam",
    "Cache",
    "CachePolicy",
    "Cascade",
    "Constraint",
    "Contrastive",
    "Datastore",
    "DecodeMethod",
    "Dense",
    "Dola",
    "Dynamic",
    "Eagle",
    "EarlyExit",
    "Fallback",
    "Greedy",
    "InputError",
    "Jacobi",
    "LayerKind",
    "Lookahead",
    "Lookup",
    "Medusa",
    "Model",
    "ModelConfig",
    "Paged",
    "Quantized",
    "Recycling",
    "Result",
    "Retrieval",
    "Rope",
    "RopeScaling",
    "Sample",
    "Sampling",
    "Segment",
    "SelfSpeculative",
    "Speculative",
    "SpeculativeTree",
    "Stats",
    "Stream",
    "Suffix",
    "Window",
    "load",
    "references",
]

_HOMES = {
    "jaxinfer.api": ("Model", "Result", "load"),
    "jaxinfer.cache": ("POLICIES", "Cache", "CachePolicy", "Dense", "Paged", "Quantized", "Window"),
    "jaxinfer.config": ("LayerKind", "ModelConfig", "Rope", "RopeScaling", "Segment"),
    "jaxinfer.decoding": (
        "LLMA",
        "METHODS",
        "MTP",
        "Adaptive",
        "Beam",
        "Cascade",
        "Constraint",
        "Contrastive",
        "Datastore",
        "DecodeMethod",
        "Dola",
        "Dynamic",
        "Eagle",
        "EarlyExit",
        "Fallback",
        "Greedy",
        "Jacobi",
        "Lookahead",
        "Lookup",
        "Medusa",
        "Recycling",
        "Retrieval",
        "Sample",
        "Sampling",
        "SelfSpeculative",
        "Speculative",
        "SpeculativeTree",
        "Suffix",
        "references",
    ),
    "jaxinfer.errors": ("InputError",),
    "jaxinfer.stats": ("Stats",),
    "jaxinfer.streaming": ("Stream",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


_MODULES = ("heads", "kernels", "transform")  # `jaxinfer.heads.load` works without an import of its own


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxinfer.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
