"""Attention: its definition, its formulation in plain XLA, its Pallas kernels, and the table that chooses."""

from jaxinfer.kernels.dispatch import use

__all__ = ["use"]
