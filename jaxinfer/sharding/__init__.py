"""Logical axes, mesh rules, and placing a model on a mesh."""

from jaxinfer.sharding.rules import DATA_TENSOR, Rules, Sharding, constrain, platform, settled, use

__all__ = ["DATA_TENSOR", "Rules", "Sharding", "constrain", "platform", "settled", "use"]
