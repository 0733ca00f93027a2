"""Rotary position embedding (RoFormer, Su et al. 2021) and the scalings of its frequencies."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import Rope


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position for each pair of dimensions: float32[H/2]. Computed once, at trace time."""
    inverse = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    scaling = rope.scaling
    if scaling is None:
        return inverse.astype(np.float32)
    if scaling.kind == "linear":
        return (inverse / scaling.factor).astype(np.float32)
    # Llama 3: wavelengths beyond the original context are stretched, short ones kept, those between blended.
    wavelength = 2 * math.pi / inverse
    turns = scaling.original_max_positions / wavelength
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return ((1 - blend) * inverse / scaling.factor + blend * inverse).astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, rope: Rope) -> jax.Array:
    """Turn x[B, T, heads, H] by its positions i32[B, T]; half layout: dimension i pairs with i + H/2."""
    angles = positions[..., None, None].astype(jnp.float32) * rope_frequencies(rope, x.shape[-1])
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
