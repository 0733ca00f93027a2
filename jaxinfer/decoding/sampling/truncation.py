"""The truncations of a distribution: pure functions, one a paper.

Where the usual implementation sorts the vocabulary, these look for the threshold that a sort would give, bit by bit:
32 sums over the vocabulary instead of a sort, and exact (ties at the threshold all stay). The likeliest token always
stays. A setting has the shape of its argument without the vocabulary, or one that broadcasts to it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def keep_top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    """Keep the k[...] largest of logits[..., V], all others at -inf; k = 0 keeps all (Fan et al. 2018)."""
    order = _ordered_bits(logits)
    k = jnp.where(k > 0, k, logits.shape[-1])
    threshold = _largest_threshold(lambda t: jnp.sum(order >= t[..., None], axis=-1) >= k, order.shape[:-1])
    return jnp.where(order >= threshold[..., None], logits, -jnp.inf)


def keep_top_n_sigma(logits: jax.Array, n: jax.Array) -> jax.Array:
    """Put logits[..., V] at -inf that lie more than n[...] standard deviations below the largest; n = 0 keeps all.

    Top-n-sigma (Tang et al. 2024), as llama.cpp has it: tokens at -inf already do not count towards the deviation. The
    temperature does not matter, for it scales both sides.
    """
    finite = jnp.isfinite(logits)
    count = jnp.sum(finite, axis=-1, keepdims=True)
    mean = jnp.sum(jnp.where(finite, logits, 0.0), axis=-1, keepdims=True) / count
    deviation = jnp.sqrt(jnp.sum(jnp.where(finite, logits - mean, 0.0) ** 2, axis=-1, keepdims=True) / count)
    least = jnp.max(logits, axis=-1, keepdims=True) - n[..., None] * deviation
    return jnp.where((n[..., None] <= 0) | (logits >= least), logits, -jnp.inf)


def keep_top_p(probs: jax.Array, p: jax.Array) -> jax.Array:
    """Keep of probs[..., V] the smallest set of likeliest tokens whose mass reaches p[...], zeros outside it.

    The nucleus (Holtzman et al. 2020).
    """
    return _keep_mass(probs, _ordered_bits(probs), p)


def keep_typical(probs: jax.Array, mass: jax.Array) -> jax.Array:
    """Keep of probs[..., V] the smallest set of typical tokens whose mass reaches mass[...], zeros outside it.

    Typical are tokens whose surprise, -log p, is close to the entropy (Meister et al. 2022, locally typical sampling).
    """
    atypical = jnp.abs(-jnp.log(probs) - entropy(probs)[..., None])  # a token of no mass: infinitely
    return _keep_mass(probs, _ordered_bits(-atypical), mass)


def keep_likely(probs: jax.Array, least: jax.Array) -> jax.Array:
    """Put probs[..., V] to zero where they are less than least[...], which the largest may be.

    With a constant: epsilon sampling (Hewitt et al. 2022, section 4.2). With `eta_cutoff`: eta sampling. With 2^-mu:
    mirostat 2 (Basu et al. 2021).
    """
    return jnp.where((probs >= least[..., None]) | (probs == jnp.max(probs, axis=-1, keepdims=True)), probs, 0.0)


def eta_cutoff(probs: jax.Array, eta: jax.Array) -> jax.Array:
    """Compute min(eta, sqrt(eta) exp(-entropy)), [...], below which tokens drop (Hewitt et al. 2022, eq. 9)."""
    return jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-entropy(probs)))


def entropy(probs: jax.Array) -> jax.Array:
    """Map probs[..., V] -> [...], in nats."""
    return -jnp.sum(jnp.where(probs > 0, probs * jnp.log(jnp.where(probs > 0, probs, 1.0)), 0.0), axis=-1)


def _keep_mass(probs: jax.Array, order: jax.Array, p: jax.Array) -> jax.Array:
    """Keep of probs[..., V] the tokens that come last in `order`, as many as it takes to a mass of p[...].

    p = 1 keeps all, those too rare to change a float32 sum as well.
    """

    def reaches(t):
        return jnp.sum(jnp.where(order >= t[..., None], probs, 0.0), axis=-1) >= p

    kept = jnp.where(order >= _largest_threshold(reaches, order.shape[:-1])[..., None], probs, 0.0)
    return jnp.where(p[..., None] >= 1, probs, kept)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Map float32 -> uint32 in the same order, -0.0 with 0.0."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x).astype(jnp.float32), jnp.uint32)
    return bits ^ jnp.where(bits >> 31 == 1, jnp.uint32(0xFFFFFFFF), jnp.uint32(0x80000000))


def _largest_threshold(holds: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """Find the largest uint32 for which `holds`, which is true below some threshold and false above it."""

    def set_bit(i, threshold):
        candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, threshold)

    return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros(shape, jnp.uint32))
