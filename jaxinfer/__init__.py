"""jaxinfer: a JAX/XLA compiler-driven framework for LLM inference research."""

from jaxinfer.api import Model, Result, Stream, load
from jaxinfer.cache import POLICIES, Cache, CachePolicy, Dense, Window
from jaxinfer.config import LayerKind, ModelConfig, Rope, RopeScaling, Segment
from jaxinfer.decoding import METHODS, DecodeMethod, Greedy, Lookup, Sample, Sampling
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
    "Greedy",
    "InputError",
    "LayerKind",
    "Lookup",
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
