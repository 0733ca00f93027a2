"""Models into other models: parameters to parameters, one file a method."""

from jaxinfer.compress.context import extend_context
from jaxinfer.compress.layer_pruning import keep_layers, search_layers
from jaxinfer.compress.moefication import moefy
from jaxinfer.compress.quantize import quantize_weights
from jaxinfer.compress.rerouting import reroute

__all__ = ["extend_context", "keep_layers", "moefy", "quantize_weights", "reroute", "search_layers"]
