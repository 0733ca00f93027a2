"""Random caches, queries and rules that the tests of attention share, and the slow loop they are held to."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache.codes import Codes, dequantize, quantize
from jaxinfer.cache.store import causal
from jaxinfer.config import LayerKind
from jaxinfer.kernels import reference
from jaxinfer.kernels.contract import PLAIN

LAYERS, LAYER = 2, 1
EDGES = (0, 1, 127, 128, 129, 256)  # lengths: nothing, one, around the edge of a block, full


def with_first(kind, first, q_pos, kv_pos):
    """A layer's own rule, and the first tokens of the text in any case (attention sinks, Xiao et al. 2023)."""
    return causal(kind, q_pos, kv_pos) | ((kv_pos >= 0) & (kv_pos < first))


class Case:
    """Queries over a store of LAYERS layers. Slots that are not in use hold large numbers."""

    def __init__(
        self, heads, width, tokens, lengths, slots, window=None, first=0, stored=None, scattered=False, seed=0
    ):
        rng, (n, k_heads) = np.random.default_rng(seed), heads
        batch = len(lengths)
        kind = LayerKind(window=window)
        self.visible = partial(with_first, kind, first) if first else partial(causal, kind)
        self.tokens, self.group = tokens, n // k_heads
        self.q = jnp.asarray(
            rng.normal(size=(batch, k_heads, tokens * self.group, width)) * 2 * width**-0.5, jnp.float32
        )
        pos = np.full((batch, slots), -1, np.int32)
        for row, length in enumerate(lengths):
            span = rng.permutation(min(slots, length + 3)) if scattered else np.arange(slots)
            pos[row, span[:length]] = np.arange(length)
        self.kv_pos = jnp.asarray(pos)
        self.q_pos = jnp.asarray(np.array(lengths)[:, None] + np.arange(tokens), jnp.int32)
        empty = np.where(pos < 0, 1e3, 1.0)[None, :, None, :, None]
        shape = (LAYERS, batch, k_heads, slots, width)
        self.k, self.v = (jnp.asarray(rng.normal(size=shape) * empty, jnp.float32) for _ in "kv")
        if stored:
            self.k, self.v = quantize(self.k, stored), quantize(self.v, stored)

    def read(self, dtype=jnp.float32):
        """Keys and values of the layer, as numbers."""
        return tuple(
            (dequantize(x, dtype) if isinstance(x, Codes) else x)[LAYER].astype(dtype) for x in (self.k, self.v)
        )

    def mask(self):
        return self.visible(self.q_pos[:, :, None], self.kv_pos[:, None, :])

    def expected(self, scoring=PLAIN, dtype=jnp.float32):
        @jax.jit
        def run(q, q_pos, kv_pos):
            mask = self.visible(q_pos[:, :, None], kv_pos[:, None, :])
            return reference.partial(q, *self.read(dtype), mask, q_pos, kv_pos, scoring)

        return run(self.q.astype(dtype), self.q_pos, self.kv_pos)

    def found(self, kernel, scoring=PLAIN, dtype=jnp.float32, **options):
        def cast(x):
            return x if isinstance(x, Codes) else x.astype(dtype)

        @jax.jit
        def run(q, k, v, q_pos, kv_pos):
            return kernel(q, k, v, jnp.int32(LAYER), q_pos, kv_pos, self.visible, scoring, **options)

        return run(self.q.astype(dtype), cast(self.k), cast(self.v), self.q_pos, self.kv_pos)


def check(found, expected, tolerance=1e-5):
    """Outputs within the tolerance, and no NaN; rows that see nothing are 0 and -inf in both."""
    assert not np.isnan(found.out).any()
    assert not np.isnan(found.lse).any()
    np.testing.assert_array_equal(np.isneginf(found.lse), np.isneginf(expected.lse))
    seen = np.isfinite(expected.lse)
    assert not np.asarray(found.out)[~seen].any()
    np.testing.assert_allclose(found.out, expected.out, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        np.asarray(found.lse)[seen], np.asarray(expected.lse)[seen], rtol=tolerance, atol=tolerance
    )


def check_half(case, kernel, scoring=PLAIN, dtype=jnp.bfloat16, **options):
    """In 16 bits: at most twice the error that the reference makes in the same dtype, against float32."""
    truth, half = (case.expected(scoring, d) for d in (jnp.float32, dtype))
    found = case.found(kernel, scoring, dtype, **options)
    assert np.isfinite(found.out).all()
    own = np.abs(np.asarray(half.out) - truth.out)
    assert own.max() > 0
    error = np.abs(np.asarray(found.out) - truth.out)
    assert error.max() <= 2 * own.max()
    assert error.mean() <= 2 * own.mean()


def tree(rng, batch, tokens):
    """Each token sees itself and the ancestors of a parent that stands before it: bool[B, T, T]."""
    mask = np.zeros((batch, tokens, tokens), bool)
    for row in range(batch):
        for token in range(tokens):
            if token:
                mask[row, token] = mask[row, rng.integers(0, token)]
            mask[row, token, token] = True
    return mask
