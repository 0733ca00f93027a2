"""Quantized weights against loops in numpy: what is stored, what it stands for, and products with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.layers.linear import matmul
from jaxinfer.layers.qtensor import dequantized, quantize_int4, quantize_int8, take
from jaxinfer.layers.quantized import BLOCK, digits

RNG = np.random.default_rng(0)


def weight(*shape):
    """Normal numbers, a row of zeros, a row of one number, and one with an outlier."""
    w = RNG.normal(size=shape).astype(np.float32)
    flat = w.reshape(-1, shape[-1])
    flat[0], flat[1], flat[2, 0] = 0, 0.25, 40
    return w


def slow_int8(w, n_in):
    """w[..., *out, *in] rounded output by output."""
    flat = w.reshape(-1, int(np.prod(w.shape[w.ndim - n_in :]))).astype(np.float64)
    found = np.zeros_like(flat)
    for row, values in enumerate(flat):
        step = np.abs(values).max() / 127 or 1.0
        found[row] = np.round(values / step) * step
    return found.reshape(w.shape)


def slow_int4(w, group):
    """w[..., in] rounded group by group, each between its least and its largest number."""
    flat = w.reshape(-1, w.shape[-1]).astype(np.float64)
    found = np.zeros_like(flat)
    for row, values in enumerate(flat):
        for start in range(0, len(values), group):
            part = values[start : start + group]
            step = (part.max() - part.min()) / 15 or 1.0
            found[row, start : start + group] = np.round((part - part.min()) / step) * step + part.min()
    return found.reshape(w.shape)


@pytest.mark.parametrize(("shape", "n_in"), [((6, 40), 1), ((2, 3, 5, 16), 1), ((2, 5, 4, 8), 2)])
def test_int8_is_the_nearest_code_of_each_output(shape, n_in):
    w = weight(*shape)
    found = quantize_int8(w, n_in)
    assert found.shape == shape
    assert found.codes.dtype == jnp.int8
    assert found.scale.shape == shape[: len(shape) - n_in]
    np.testing.assert_allclose(dequantized(found), slow_int8(w, n_in), atol=1e-5)


def test_inputs_lie_on_one_axis_that_is_split_as_the_first_of_them():
    found = quantize_int8(weight(2, 5, 4, 8), n_in=2)
    assert (found.codes.shape, found.scale.shape, found.shape) == ((2, 5, 32), (2, 5), (2, 5, 4, 8))
    axes = found.axes(("layers", "embed", "heads", "head_dim"))
    assert (axes.codes, axes.scale) == (("layers", "embed", "heads"), ("layers", "embed"))
    assert jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(found)


@pytest.mark.parametrize(("width", "group"), [(64, 32), (256, 128), (72, 32), (5, 64)])  # whole groups, and not
def test_int4_is_the_nearest_code_of_each_group(width, group):
    w = weight(7, width)
    found = quantize_int4(w, group)
    assert found.shape == (7, width)
    assert found.codes.dtype == jnp.uint8
    assert found.codes.shape[1] == -(-width // (2 * group)) * group
    assert found.group == group
    # Where a number lies between two codes, either is nearest: half a step apart at most, and all within it.
    step = np.abs(w).max() / 15 + 1e-6
    np.testing.assert_allclose(dequantized(found), w, atol=step)
    apart = np.abs(np.asarray(dequantized(found)) - slow_int4(w, group)) > 1e-5
    assert apart.mean() < 0.01


def test_rows_of_a_table_are_those_of_the_whole():
    for table in (quantize_int8(weight(20, 33)), quantize_int4(weight(20, 33))):
        rows = jnp.array([[3, 0], [19, 3]])
        np.testing.assert_array_equal(take(table, rows), np.asarray(dequantized(table))[np.asarray(rows)])


def test_three_digits_are_the_number():
    x = jnp.asarray(RNG.normal(size=(5, 300)) * np.logspace(-6, 6, 5)[:, None], jnp.float32)
    parts, scales = digits(x, 3)
    assert parts.dtype == jnp.int8
    error = np.abs(np.sum(np.asarray(parts, np.float64) * np.asarray(scales, np.float64), axis=0) - np.asarray(x))
    assert (error.max(axis=1) <= 2.0**-22 * np.abs(x).max(axis=1)).all()


FORMATS = {
    "int8": lambda w, n_in=1: quantize_int8(w, n_in),
    "int4": lambda w, n_in=1: quantize_int4(w, 32, n_in),
    "int4-64": lambda w, n_in=1: quantize_int4(w, 64, n_in),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 70])  # one row, a few, and as many as a prompt has
def test_products_are_those_of_the_dequantized_weight(name, rows):
    w, x = FORMATS[name](weight(12, 72)), jnp.asarray(RNG.normal(size=(rows, 72)), jnp.float32)
    expected = np.asarray(x, np.float64) @ np.asarray(dequantized(w), np.float64).T
    found = jax.jit(lambda x, w: matmul(x, w, (12, 72)))(x, w)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", FORMATS)
def test_products_of_a_stack_over_two_input_axes(name):
    w, x = FORMATS[name](weight(3, 6, 4, 8), n_in=2), jnp.asarray(RNG.normal(size=(2, 5, 4, 8)), jnp.float32)
    expected = np.einsum("btnh,dnh->btd", x, np.asarray(dequantized(w))[2])
    found = matmul(x, w, (6, 4, 8), n_in=2, layer=jnp.int32(2))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", FORMATS)
def test_a_large_head_is_never_converted_whole(name):
    """A block and a ragged rest of it: the numbers, and the memory that the program takes."""
    n_out = 3 * BLOCK + 5
    w, x = FORMATS[name](weight(n_out, 128)), jnp.asarray(RNG.normal(size=(2, 128)), jnp.float32)
    program = jax.jit(lambda x, w: matmul(x, w, (n_out, 128))).lower(x, w).compile()
    expected = np.asarray(x) @ np.asarray(dequantized(w)).T
    np.testing.assert_allclose(program(x, w), expected, atol=1e-5 * np.abs(expected).max())
    assert program.memory_analysis().temp_size_in_bytes < 0.6 * 4 * n_out * 128


@pytest.mark.parametrize("rows", [1, 4])
def test_w8a8_rounds_the_activations_of_each_row(rows):
    w, x = quantize_int8(weight(12, 72), activations=True), RNG.normal(size=(rows, 72)).astype(np.float32)
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    expected = (np.round(x / step) * step) @ np.asarray(dequantized(w)).T
    np.testing.assert_allclose(matmul(jnp.asarray(x), w, (12, 72)), expected, atol=1e-5 * np.abs(expected).max())
