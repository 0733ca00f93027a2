"""Decode methods, one file each, and the registry that configs resolve names in."""

from jaxinfer.decoding.eagle import Eagle
from jaxinfer.decoding.greedy import Greedy
from jaxinfer.decoding.lookup import Lookup
from jaxinfer.decoding.medusa import Medusa
from jaxinfer.decoding.method import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sample import Sample
from jaxinfer.decoding.sampling import Sampling

METHODS: dict[str, type] = {"greedy": Greedy, "sample": Sample, "lookup": Lookup}
METHODS |= {"medusa": Medusa, "eagle": Eagle}

__all__ = [
    "METHODS",
    "Context",
    "DecodeMethod",
    "DecodeState",
    "Draft",
    "Eagle",
    "Greedy",
    "Lookup",
    "Medusa",
    "Sample",
    "Sampling",
    "Verdict",
]
