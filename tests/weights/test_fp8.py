"""Float8 weights against e4m3 written out number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.sharding import choices
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.formats.fp8 import numbers
from jaxinfer.weights.qtensor import dequantized

pytestmark = pytest.mark.quick

FP8 = FORMATS["fp8"]


def e4m3():
    """What the 256 bytes stand for (Micikevicius et al. 2022, table 1): four bits of exponent, three of mantissa."""
    found = []
    for byte in range(256):
        sign, exponent, mantissa = -1 if byte >> 7 else 1, byte >> 3 & 15, byte & 7
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        found.append(sign * (np.nan if exponent == 15 and mantissa == 7 else size))
    return np.array(found)


@pytest.mark.parametrize("as_bits", [True, False])  # as a CPU reads them, and as others do
def test_every_byte_stands_for_its_number(monkeypatch, as_bits):
    monkeypatch.setattr(choices.Choice, "here", lambda choice: as_bits)
    bits, expected = np.arange(256, dtype=np.uint8), e4m3()
    is_number = np.isfinite(expected)
    np.testing.assert_array_equal(np.asarray(numbers(jnp.asarray(bits)))[is_number], expected[is_number])


@pytest.mark.parametrize(("shape", "n_in"), [((6, 40), 1), ((1, 1), 1), ((2, 3, 5, 16), 1), ((2, 5, 4, 7), 2)])
def test_codes_are_the_nearest_under_the_largest_of_each_output(shape, n_in):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    w[0, 0] = 0
    stored = FP8.encode(w, n_in)
    assert (stored.codes.dtype, stored.shape) == (jnp.uint8, shape)
    values = np.unique(e4m3()[np.isfinite(e4m3())])
    flat = w.reshape(*shape[: len(shape) - n_in], -1)
    found = np.asarray(dequantized(stored)).reshape(flat.shape)
    for index in np.ndindex(flat.shape[:-1]):
        scale = np.float32(np.abs(flat[index]).max()) / np.float32(448) or np.float32(1)
        assert np.asarray(stored.scale)[index] == pytest.approx(scale, rel=1e-6)
        for x, y in zip(flat[index], found[index], strict=True):
            best = np.abs(values * scale - x).min()
            assert abs(y - x) <= best * (1 + 1e-4) + 1e-6
    error = np.abs(found - flat) / np.abs(flat).max(axis=-1, keepdims=True).clip(1e-9)
    assert error.max() <= 2.0**-4 / 1.75  # half a step in the uppermost binade, 256 to 448


def test_the_product_of_a_few_rows_is_the_product_of_many():
    rng = np.random.default_rng(1)
    w, x = FP8.encode(rng.normal(size=(20, 64))), jnp.asarray(rng.normal(size=(2, 64)), jnp.float32)
    few, many = FP8.product(x, w, 20, True), FP8.product(jnp.tile(x, (30, 1)), w, 20, False)[:2]
    np.testing.assert_allclose(few, many, atol=1e-5)
    assert "gather" not in str(jax.make_jaxpr(lambda x, w: FP8.product(x, w, 20, True))(x, w))
