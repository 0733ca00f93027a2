"""Positions: rotary embedding (RoFormer, Su et al. 2021) with the scalings of its frequencies, sinusoids, ALiBi."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import Rope, RopeScaling


def rope_frequencies(rope: Rope, head_dim: int, length: jax.Array | None = None) -> np.ndarray | jax.Array:
    """Return radians per position for each pair of turning dimensions: float32[width/2], known at trace time.

    Those that follow the length of the text, i32[B, T] for each token, are float32[B, T, width/2].
    """
    width = rope.width or head_dim
    theta, scaling = rope.theta, rope.scaling
    if scaling is not None and scaling.follows_length:
        assert length is not None, "these frequencies depend on the length of the text"
        return _at_length(rope, width, length[..., None])
    if scaling is not None and scaling.kind == "ntk":
        theta = ntk_theta(rope, head_dim)
    inverse = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    if scaling is None or scaling.kind == "ntk":
        return inverse.astype(np.float32)
    if scaling.kind == "linear":
        return (inverse / scaling.factor).astype(np.float32)
    if scaling.kind == "longrope":
        return (inverse / np.array(scaling.divisors)).astype(np.float32)
    keep = _llama3_share(scaling, inverse) if scaling.kind == "llama3" else _yarn_share(scaling, theta, width)
    return ((1 - keep) * inverse / scaling.factor + keep * inverse).astype(np.float32)


def ntk_theta(rope: Rope, head_dim: int) -> float:
    """Return the base under NTK-aware scaling: the lowest frequency is divided by the factor, the highest stays."""
    assert rope.scaling is not None
    width = rope.width or head_dim
    return rope.theta * rope.scaling.factor ** (width / (width - 2))


def _at_length(rope: Rope, width: int, length: jax.Array) -> jax.Array:
    """Compute dynamic NTK, and LongRoPE with divisors for short texts: length i32[..., 1] -> float32[..., width/2]."""
    scaling = rope.scaling
    assert scaling is not None
    share = np.arange(0, width, 2, dtype=np.float32) / width
    inverse = (1.0 / rope.theta**share).astype(np.float32)
    if scaling.kind == "longrope":
        long, short = (
            inverse / np.array(divisors, np.float32) for divisors in (scaling.divisors, scaling.short_divisors)
        )
        return jnp.where(length > scaling.original_max_positions, long, short)
    stretch = jnp.maximum(length / scaling.original_max_positions, 1.0)
    growth = (scaling.factor * stretch - (scaling.factor - 1)) ** (width / (width - 2))  # of the base
    return jnp.asarray(inverse) * growth**-share


def _llama3_share(scaling: RopeScaling, inverse: np.ndarray) -> np.ndarray:
    """Return the share of each frequency that is kept, by the turns it makes in the trained length."""
    turns = scaling.original_max_positions * inverse / (2 * math.pi)
    return np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1)


def _yarn_share(scaling: RopeScaling, theta: float, width: int) -> np.ndarray:
    """Return YaRN's share: linear in the dimension, from the one with beta_fast turns to the one with beta_slow."""

    def dimension(turns: float) -> float:
        return width * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return 1 - np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)


def rotate(x: jax.Array, positions: jax.Array, rope: Rope, length: jax.Array | None = None) -> jax.Array:
    """Turn x[B, T, heads, H] by its positions i32[B, T]; length i32[B, T]: see `rope_frequencies`."""
    width = rope.width or x.shape[-1]
    frequencies = rope_frequencies(rope, x.shape[-1], length)
    angles = positions[..., None, None].astype(jnp.float32) * (
        frequencies if frequencies.ndim == 1 else frequencies[:, :, None]
    )
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.scaling is not None and rope.scaling.magnitude != 1.0:
        cos, sin = cos * rope.scaling.magnitude, sin * rope.scaling.magnitude
    turning = x[..., :width].astype(jnp.float32)
    if rope.interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = jnp.split(turning, 2, axis=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    joined = jnp.stack(turned, axis=-1).reshape(turning.shape) if rope.interleaved else jnp.concatenate(turned, axis=-1)
    joined = joined.astype(x.dtype)
    return joined if width == x.shape[-1] else jnp.concatenate([joined, x[..., width:]], axis=-1)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Map positions i32[B, T] to sines and cosines in turn, float32[B, T, width] (Vaswani et al. 2017, section 3.5)."""
    inverse = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angles = positions[..., None].astype(jnp.float32) * inverse.astype(np.float32)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, -1)[..., :width]


def alibi_slopes(n_heads: int) -> np.ndarray:
    """Return the fall of a head's scores with each token of distance: float32[N] (Press et al. 2022, section 3)."""

    def of(n: int) -> list[float]:
        return [2.0 ** (-8 * (i + 1) / n) for i in range(n)]

    power = 1 << (n_heads.bit_length() - 1)
    return np.array(of(power) + of(2 * power)[0::2][: n_heads - power], np.float32)
