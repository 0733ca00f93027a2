"""Recurrences in chunks, short convolutions and low-rank attention, against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.kernels import scan
from jaxinfer.kernels.lowrank import lowrank_attention

pytestmark = pytest.mark.quick


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("tokens", [1, 5, 64, 65, 200])
def test_chunked_is_the_recurrence(tokens):
    """With a state to start from, across the edges of chunks."""
    b, h, p, n = 2, 3, 4, 5
    shapes = ((b, tokens, h), (b, tokens, h, n), (b, tokens, h, p), (b, tokens, h, n), (b, h, p, n))
    decay, keys, values, queries, state = draw(0, *shapes)
    decay = -np.abs(decay)
    found, last = jax.jit(scan.chunked)(decay, keys, values, queries, state)
    carried = state.astype(np.float64)
    for t in range(tokens):
        carried = np.exp(decay[:, t])[..., None, None] * carried + values[:, t, :, :, None] * keys[:, t, :, None]
        expected = np.einsum("bhpn,bhn->bhp", carried, queries[:, t])
        np.testing.assert_allclose(found[:, t], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last, carried, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_a_convolution_goes_on_where_it_stopped(tokens):
    x, before, kernel, bias = draw(1, (2, tokens, 6), (2, 3, 6), (6, 4), (6,))
    found, after_each = scan.causal_conv(x, before, kernel, bias, None)
    whole = np.concatenate([before, x], axis=1)
    for t in range(tokens):
        np.testing.assert_allclose(
            found[:, t], np.einsum("bwc,cw->bc", whole[:, t : t + 4], kernel) + bias, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(after_each[:, t], whole[:, t + 1 : t + 4])
    n = np.array([tokens, max(0, tokens - 1)])
    _, after_last = scan.causal_conv(x, before, kernel, None, jnp.asarray(n))
    for row in range(2):
        np.testing.assert_array_equal(after_last[row, 0], whole[row, n[row] : n[row] + 3])


def test_lowrank_attention():
    q, k, v, e, f = draw(2, (2, 7, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4), (5, 16), (5, 16))
    mask = np.array([[True] * 7, [True] * 5 + [False] * 2])
    found = lowrank_attention(q, k, v, e, f, jnp.asarray(mask))
    for b in range(2):
        t = mask[b].sum()
        for n in range(3):
            scores = q[b, :, n] @ (e[:, :t] @ k[b, :t, n]).T / 2
            weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(found[b, :, n], weights @ (f[:, :t] @ v[b, :t, n]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a text of 7 tokens is longer than the 6"):
        lowrank_attention(q, k, v, e[:, :6], f[:, :6])


def test_lowrank_attention_is_linear_in_the_text():
    def scratch(tokens):
        x, e = jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32), jax.ShapeDtypeStruct((16, tokens), jnp.float32)
        return jax.jit(lowrank_attention).lower(x, x, x, e, e).compile().memory_analysis().temp_size_in_bytes

    assert scratch(4096) < 5 * scratch(1024)
