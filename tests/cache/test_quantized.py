"""Keys and values in 8 bits: the format against ml_dtypes and its bounds, and a cache of it against whole texts."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from test_policies import scored

from jaxinfer import Dense, InputError, Paged, Quantized, Window
from jaxinfer.cache.codes import Codes, dequantize, quantize


def vectors():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 64)) * np.exp2(rng.integers(-20, 20, (3, 5, 1)))
    x[0, 0], x[1, 2, 1:] = 0, 0
    x[2, 3] = np.linspace(-1, 1, 64)
    return x.astype(np.float32)


def test_int8_is_within_half_a_step():
    x = vectors()
    stored = quantize(jnp.asarray(x), "int8")
    step = np.abs(x).max(axis=-1) / 127
    np.testing.assert_allclose(stored.scale, np.where(step > 0, step, 1), rtol=1e-6)
    assert stored.codes.dtype == jnp.int8
    assert np.asarray(stored.codes).min() == -127
    assert (np.abs(dequantize(stored, jnp.float32) - x) <= 0.5001 * step[..., None]).all()
    again = quantize(dequantize(stored, jnp.float32), "int8")
    np.testing.assert_array_equal(again.codes, stored.codes)


def test_fp8_is_that_of_ml_dtypes():
    x = vectors()
    stored = quantize(jnp.asarray(x), "float8_e4m3fn")
    top = np.abs(x).max(axis=-1, keepdims=True)
    scale = np.where(top > 0, top / np.float32(448), 1).astype(np.float32)
    expected = (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    found = dequantize(stored, jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Three bits of mantissa, and below 2**-6 of the scale a step of 2**-9.
    assert (np.abs(found - x) <= np.maximum(np.abs(x) / 16, scale / 1024) * 1.0001).all()


def test_every_code_of_fp8_is_widened_to_its_number():
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    numbers = codes.astype(np.float32)
    codes, numbers = codes[np.isfinite(numbers)], numbers[np.isfinite(numbers)]
    for kept in (codes, codes.view(np.uint8)):
        np.testing.assert_array_equal(dequantize(Codes(jnp.asarray(kept)[None], jnp.ones(1)), jnp.float32)[0], numbers)
    x = jnp.asarray(vectors())
    bits, typed = Quantized(format="fp8").encode(x), quantize(x, "float8_e4m3fn")
    assert bits.codes.dtype == jnp.uint8  # on a CPU
    np.testing.assert_array_equal(dequantize(bits, jnp.float32), dequantize(typed, jnp.float32))


def test_vectors_without_a_width():
    stored = quantize(jnp.zeros((2, 3, 0)), "int8")
    assert dequantize(stored, jnp.float32).shape == (2, 3, 0)


STEPS = [(150, 20, 130), (7, 3, 0), (7, 2, 5), (1, 0, 1), (2, 7, 3)]


@pytest.mark.parametrize("policy", [Quantized(), Paged(block=16, format="fp8")], ids=str)
def test_ragged_steps_see_what_one_forward_sees(tiny_gemma, policy):
    """Fresh tokens pass through the format: a whole text in one forward has the logits of a text in many steps.

    Up to a code that rounding moves: a difference of 1e-7 may be one of a whole step. It rarely is.
    """
    network, params, rng = tiny_gemma.network, tiny_gemma.params, np.random.default_rng(1)
    texts = rng.integers(0, 97, (3, 168))
    nothing = jnp.zeros(3, jnp.int32)

    def whole(policy):
        empty = policy.init(tiny_gemma.config, 3, 1, jnp.float32)
        return np.asarray(scored(network, params, empty, jnp.asarray(texts), nothing)[1])

    at_once, exact = whole(policy), whole(Dense())
    cache, done, errors = policy.init(tiny_gemma.config, 3, 200, jnp.float32), np.zeros(3, int), []
    for n in STEPS:
        width = max(*n, 7)
        part = np.stack([np.resize(text[at : at + width], width) for text, at in zip(texts, done, strict=True)])
        for row in range(3):
            part[row, n[row] :] = 96 - part[row, n[row] :]  # rejected
        cache, logits = scored(network, params, cache, jnp.asarray(part), jnp.array(n))
        for row in range(3):
            expected = at_once[row, done[row] : done[row] + n[row]]
            errors.extend(np.abs(np.asarray(logits)[row, : n[row]] - expected).max(axis=-1).tolist())
        done += n
    assert done.tolist() == [167, 32, 139] == cache.length.tolist()
    coarseness = np.median(np.abs(at_once - exact).max(axis=-1))
    assert np.median(errors) < 2e-5 < 0.01 * coarseness
    assert np.mean(np.array(errors) > 2e-5) < 0.2
    assert max(errors) < 3 * coarseness


def test_what_it_takes(tiny_gemma):
    def size(policy):
        cache = policy.init(tiny_gemma.config, 2, 1024, jnp.float32)
        return sum(store.k.codes.nbytes + store.k.scale.nbytes for store in cache.stores.values())

    exact = Window().init(tiny_gemma.config, 2, 1024, jnp.float32)
    floats = sum(store.k.nbytes for store in exact.stores.values())
    per_token = tiny_gemma.config.head_dim
    for policy in (Quantized(), Quantized(format="fp8"), Paged(block=16, format="fp8")):
        assert size(policy) * 4 * per_token == floats * (per_token + 4)


def test_formats_are_checked():
    for policy in (Quantized, Paged):
        with pytest.raises(InputError, match=r"format='int4' must be 'int8'.* 'fp8'.*; nearest: 'int8'"):
            policy(format="int4")
