"""Models into other models: parameters to parameters, one file a method."""

from jaxinfer.transform.context import extend_context
from jaxinfer.transform.layers import keep_layers, search_layers
from jaxinfer.transform.moefication import moefy
from jaxinfer.transform.quantize import quantize_weights
from jaxinfer.transform.routing import reroute

__all__ = ["extend_context", "keep_layers", "moefy", "quantize_weights", "reroute", "search_layers"]
