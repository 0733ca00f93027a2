"""Attention in jnp, and the kernels that replace it."""
