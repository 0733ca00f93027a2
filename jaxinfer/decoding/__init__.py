"""Decode methods, one file each, and the registry that configs resolve names in."""

from jaxinfer.decoding.adaptive import Adaptive
from jaxinfer.decoding.beam import Beam
from jaxinfer.decoding.cascade import Cascade
from jaxinfer.decoding.constraint import Constraint
from jaxinfer.decoding.contrastive import Contrastive
from jaxinfer.decoding.dola import Dola
from jaxinfer.decoding.eagle import Eagle
from jaxinfer.decoding.early_exit import EarlyExit
from jaxinfer.decoding.fallback import Fallback
from jaxinfer.decoding.greedy import Greedy
from jaxinfer.decoding.growth import Dynamic
from jaxinfer.decoding.jacobi import Jacobi
from jaxinfer.decoding.llma import LLMA, references
from jaxinfer.decoding.lookahead import Lookahead
from jaxinfer.decoding.lookup import Lookup
from jaxinfer.decoding.medusa import Medusa
from jaxinfer.decoding.method import Context, DecodeMethod, DecodeState, Draft, Hypotheses, Verdict
from jaxinfer.decoding.mtp import MTP
from jaxinfer.decoding.recycling import Recycling
from jaxinfer.decoding.retrieval import Datastore, Retrieval
from jaxinfer.decoding.sample import Sample
from jaxinfer.decoding.sampling import Sampling
from jaxinfer.decoding.self_speculative import SelfSpeculative
from jaxinfer.decoding.speculative import Speculative
from jaxinfer.decoding.speculative_tree import SpeculativeTree
from jaxinfer.decoding.suffix import Suffix

METHODS: dict[str, type[DecodeMethod]] = {
    "greedy": Greedy,
    "sample": Sample,
    "lookup": Lookup,
    "suffix": Suffix,
    "llma": LLMA,
    "retrieval": Retrieval,
    "jacobi": Jacobi,
    "lookahead": Lookahead,
    "recycling": Recycling,
    "speculative": Speculative,
    "speculative_tree": SpeculativeTree,
    "self_speculative": SelfSpeculative,
    "cascade": Cascade,
    "medusa": Medusa,
    "eagle": Eagle,
    "mtp": MTP,
    "adaptive": Adaptive,
    "fallback": Fallback,
    "early_exit": EarlyExit,
    "beam": Beam,
    "contrastive": Contrastive,
    "dola": Dola,
}

__all__ = [
    "LLMA",
    "METHODS",
    "MTP",
    "Adaptive",
    "Beam",
    "Cascade",
    "Constraint",
    "Context",
    "Contrastive",
    "Datastore",
    "DecodeMethod",
    "DecodeState",
    "Dola",
    "Draft",
    "Dynamic",
    "Eagle",
    "EarlyExit",
    "Fallback",
    "Greedy",
    "Hypotheses",
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
    "Verdict",
    "references",
]
