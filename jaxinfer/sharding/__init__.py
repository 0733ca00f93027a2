"""Logical axes, mesh rules, and placing a model on a mesh."""

from jaxinfer.sharding.layouts import Sharding, constrain, platform, use
from jaxinfer.sharding.meshes import MeshShape, settled
from jaxinfer.sharding.rules import DATA_TENSOR, RULES, Rules, rules_of

__all__ = [
    "DATA_TENSOR",
    "RULES",
    "MeshShape",
    "Rules",
    "Sharding",
    "constrain",
    "platform",
    "rules_of",
    "settled",
    "use",
]
