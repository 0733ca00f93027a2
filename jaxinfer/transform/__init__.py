"""Models into other models: parameters to parameters, one file a method."""

from jaxinfer.transform.moefication import moefy

__all__ = ["moefy"]
