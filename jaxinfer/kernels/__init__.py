"""Attention and quantized products: definitions, plain XLA, Pallas kernels, and the tables that choose."""

from jaxinfer.kernels.dispatch import use

__all__ = ["use"]
