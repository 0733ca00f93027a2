"""Decode methods, one file each, and the registry that configs resolve names in."""

from jaxinfer.decoding.adaptive import Adaptive
from jaxinfer.decoding.greedy import Greedy
from jaxinfer.decoding.lookup import Lookup
from jaxinfer.decoding.method import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sample import Sample
from jaxinfer.decoding.sampling import Sampling
from jaxinfer.decoding.speculative import Speculative

METHODS: dict[str, type[DecodeMethod]] = {
    "greedy": Greedy,
    "sample": Sample,
    "lookup": Lookup,
    "speculative": Speculative,
    "adaptive": Adaptive,
}

__all__ = [
    "METHODS",
    "Adaptive",
    "Context",
    "DecodeMethod",
    "DecodeState",
    "Draft",
    "Greedy",
    "Lookup",
    "Sample",
    "Sampling",
    "Speculative",
    "Verdict",
]
