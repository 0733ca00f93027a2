"""Quantized weights against loops in numpy: what is stored, what it stands for, and products with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer
from jaxinfer import InputError
from jaxinfer.checkpoint import export, presets, save_checkpoint
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.compress.quantize import quantize_weights
from jaxinfer.host import plugins
from jaxinfer.kernels import dispatch
from jaxinfer.layers.linear import matmul
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.formats.int4 import Int4
from jaxinfer.weights.products import BLOCK, digits
from jaxinfer.weights.qtensor import dequantized, from_plain, take, to_plain
from jaxinfer.weights.quantize import dequantize_params, format_of, quantize_leaf

RNG = np.random.default_rng(0)


def weight(*shape):
    """Normal numbers, a row of zeros, a row of one number, and one with an outlier."""
    w = RNG.normal(size=shape).astype(np.float32)
    flat = w.reshape(-1, shape[-1])
    flat[0], flat[1], flat[2, 0] = 0, 0.25, 40
    return w


def stacked(name, w, n_in=1):
    """A stack of weights in a format, as a model has them."""
    return jax.vmap(lambda one: FORMATS[name].encode(one, n_in))(w)


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
    found = FORMATS["int8"].encode(w, n_in)
    assert found.shape == shape
    assert found.codes.dtype == jnp.int8
    assert found.scale.shape == shape[: len(shape) - n_in]
    np.testing.assert_allclose(dequantized(found), slow_int8(w, n_in), atol=1e-5)


def test_inputs_lie_on_one_axis_that_is_split_as_the_first_of_them():
    found = FORMATS["int8"].encode(weight(2, 5, 4, 8), n_in=2)
    assert (found.codes.shape, found.scale.shape, found.shape) == ((2, 5, 32), (2, 5), (2, 5, 4, 8))
    axes = found.axes(("layers", "embed", "heads", "head_dim"))
    assert (axes.codes, axes.scale) == (("layers", "embed", "heads"), ("layers", "embed"))
    assert jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(found)


@pytest.mark.parametrize(("width", "group"), [(64, 32), (256, 128), (72, 32), (5, 64)])  # whole groups, and not
def test_int4_is_the_nearest_code_of_each_group(width, group):
    w = weight(7, width)
    found = Int4(group).encode(w)
    assert found.shape == (7, width)
    assert found.codes.dtype == jnp.uint8
    assert found.codes.shape[1] == -(-width // (2 * group)) * group
    assert found.group == group
    # Where a number lies between two codes, either is nearest: half a step apart at most, and all within it.
    step = np.abs(w).max() / 15 + 1e-6
    np.testing.assert_allclose(dequantized(found), w, atol=step)
    apart = np.abs(np.asarray(dequantized(found)) - slow_int4(w, group)) > 1e-5
    assert apart.mean() < 0.01


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_a_table_are_those_of_the_whole(name):
    table, rows = FORMATS[name].encode(weight(20, 33)), jnp.array([[3, 0], [19, 3]])
    np.testing.assert_array_equal(take(table, rows), np.asarray(dequantized(table))[np.asarray(rows)])


def test_three_digits_are_the_number():
    x = jnp.asarray(RNG.normal(size=(5, 300)) * np.logspace(-6, 6, 5)[:, None], jnp.float32)
    parts, scales = digits(x, 3)
    assert parts.dtype == jnp.int8
    error = np.abs(np.sum(np.asarray(parts, np.float64) * np.asarray(scales, np.float64), axis=0) - np.asarray(x))
    assert (error.max(axis=1) <= 2.0**-22 * np.abs(x).max(axis=1)).all()


NUMBERS = [name for name in FORMATS if name != "w8a8"]  # whose products are those of the numbers that they stand for


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("rows", [1, 3, 70])  # one row, a few, and as many as a prompt has
def test_products_are_those_of_the_dequantized_weight(name, rows):
    w, x = FORMATS[name].encode(weight(12, 72)), jnp.asarray(RNG.normal(size=(rows, 72)), jnp.float32)
    expected = np.asarray(x, np.float64) @ np.asarray(dequantized(w), np.float64).T
    found = jax.jit(lambda x, w: matmul(x, w, (12, 72)))(x, w)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", NUMBERS)
def test_products_of_a_stack_over_two_input_axes(name):
    w, x = stacked(name, weight(3, 6, 4, 8), n_in=2), jnp.asarray(RNG.normal(size=(2, 5, 4, 8)), jnp.float32)
    expected = np.einsum("btnh,dnh->btd", x, np.asarray(dequantized(w))[2])
    found = matmul(x, w, (6, 4, 8), n_in=2, layer=jnp.int32(2))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NUMBERS)
def test_a_large_head_is_never_converted_whole(name):
    """A block and a ragged rest of it: the numbers, and the memory that the program takes."""
    n_out = 3 * BLOCK + 5
    w, x = FORMATS[name].encode(weight(n_out, 128)), jnp.asarray(RNG.normal(size=(2, 128)), jnp.float32)
    program = jax.jit(lambda x, w: matmul(x, w, (n_out, 128))).lower(x, w).compile()
    expected = np.asarray(x) @ np.asarray(dequantized(w)).T
    np.testing.assert_allclose(program(x, w), expected, atol=1e-5 * np.abs(expected).max())
    assert program.memory_analysis().temp_size_in_bytes < 0.6 * 4 * n_out * 128


@pytest.mark.parametrize("rows", [1, 4])
def test_w8a8_rounds_the_activations_of_each_row(rows):
    w, x = FORMATS["w8a8"].encode(weight(12, 72)), RNG.normal(size=(rows, 72)).astype(np.float32)
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    expected = (np.round(x / step) * step) @ np.asarray(dequantized(w)).T
    np.testing.assert_allclose(matmul(jnp.asarray(x), w, (12, 72)), expected, atol=1e-5 * np.abs(expected).max())


def error_bound(name):
    """How far a number may be from the weight, of the largest magnitude in the matrix."""
    return {"int8": 0.5 / 127, "w8a8": 0.5 / 127, "fp8": 2.0**-4 / 1.75, "nf4": 0.17}.get(name, 1 / 15)


@pytest.mark.quick
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("shape", "n_in"), [((12, 64), 1), ((7, 33), 1), ((5, 4, 9), 2), ((1, 1), 1)])
def test_weights_come_back_within_a_step(name, shape, n_in):
    w = RNG.normal(size=shape).astype(np.float32)
    stored = FORMATS[name].encode(w, n_in)
    assert (stored.shape, stored.format) == (shape, FORMATS[name])
    assert np.abs(np.asarray(dequantized(stored)) - w).max() <= error_bound(name) * np.abs(w).max() * 1.001
    assert stored.nbytes == sum(x.nbytes for x in jax.tree.leaves(stored))


@pytest.mark.quick
@pytest.mark.parametrize("name", FORMATS)
def test_what_a_file_holds_is_the_weight(name):
    stored = stacked(name, weight(3, 6, 40))
    plain = to_plain({"w": stored})["w"]
    assert {type(x) for x in plain.values()} == {type(stored.codes)}
    again = from_plain({"w": plain}, jax.eval_shape(lambda: {"w": stored}))["w"]
    assert jax.tree.structure(again) == jax.tree.structure(stored)
    np.testing.assert_array_equal(dequantized(again), dequantized(stored))


@pytest.mark.quick
@pytest.mark.parametrize("name", FORMATS)
def test_axes_name_every_dimension_of_every_array(name):
    stored = jax.vmap(lambda w: stacked(name, w, 2))(weight(2, 3, 8, 4, 16))
    axes = stored.axes(("layers", "experts", "mlp", "heads", "head_dim"))
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(stored)
    for names, array in zip(jax.tree.leaves(axes, is_leaf=is_axes), jax.tree.leaves(stored), strict=True):
        assert len(names) == array.ndim
        assert names[:2] == ("layers", "experts")
    assert axes.codes[:3] == ("layers", "experts", "mlp")


TOY = '''
"""A format of a user's own: signs, and the mean magnitude of each output."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.weights.contract import WeightFormat
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.qtensor import QTensor


@struct.dataclass
class Signs(QTensor):
    positive: jax.Array
    size: jax.Array


@dataclass(frozen=True)
class Toy(WeightFormat):
    def encode(self, w, n_in=1):
        outer, inputs = w.shape[: w.ndim - n_in], w.shape[w.ndim - n_in :]
        w = w.reshape(*outer, -1)
        return Signs(self, inputs, w > 0, jnp.mean(jnp.abs(w), axis=-1))

    def decode(self, weight):
        numbers = jnp.where(weight.positive, 1.0, -1.0) * weight.size[..., None]
        return numbers.reshape(*weight.positive.shape[:-1], *weight.inputs)


FORMATS.add("toy", Toy())
'''


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    plugins.load([tmp_path / "toy.py"])
    yield FORMATS["toy"]
    FORMATS.remove("toy")


@pytest.mark.quick
def test_a_format_of_a_file_outside_the_package(toy, tiny_llama, tmp_path, ragged, monkeypatch):
    """It is loaded, saved, loaded again, exported, drafts, lies on a mesh and generates as the others do."""
    monkeypatch.setitem(presets.SHAPES, "tiny", tiny_llama.config)
    model = jaxinfer.load("random:tiny", dtype="float32", weights="toy")
    assert model.weights == "toy"
    numbers = dataclasses.replace(model, params=dequantize_params(model.params, "float32"))
    prompts, tokens = ragged((3, 17)), np.array(ragged((9, 9)))
    expected = numbers.logits(tokens)
    np.testing.assert_allclose(model.logits(tokens), expected, atol=1e-4)
    text = model.generate(prompts, max_new_tokens=12)
    assert text.tokens == numbers.generate(prompts, max_new_tokens=12).tokens
    assert text.stats.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(model.params))
    drafted = numbers.attach(draft=model).generate(prompts, max_new_tokens=12, method=jaxinfer.Speculative(3))
    assert drafted.tokens == text.tokens
    assert sum(drafted.stats.accepted) > 0

    save_checkpoint(Checkpoint(model.config, model.params, None, "tiny"), tmp_path / "kept")
    again = jaxinfer.load(str(tmp_path / "kept"), dtype="float32")
    assert again.weights == "toy"
    assert again.generate(prompts, max_new_tokens=12).tokens == text.tokens
    export(tmp_path / "kept", tmp_path / "exported")
    exported = jaxinfer.load(str(tmp_path / "exported"), dtype="float32")
    np.testing.assert_allclose(exported.logits(tokens), expected, atol=1e-4)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "tensor"))
    np.testing.assert_allclose(model.shard(mesh).logits(tokens), expected, atol=1e-4)


def test_the_kernels_say_what_they_read_of_a_format_that_they_do_not_know(toy):
    w, x = toy.encode(weight(8, 64)), jnp.ones((1, 64))
    with dispatch.use("pallas", target="tpu", interpret=True), pytest.raises(InputError, match=r"not Toy\(\)"):
        matmul(x, w, (8, 64))
    with dispatch.use("reference"):
        np.testing.assert_allclose(matmul(x, w, (8, 64)), x @ dequantized(w).T, atol=1e-5)


def test_a_format_without_a_name_is_not_saved(tiny_llama):
    params = jax.tree.map(lambda x: x, tiny_llama.params)
    params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"] = Int4(16).encode(jnp.ones((3, 80, 48)))
    with pytest.raises(InputError, match=r"weight format Int4\(group=16\) has no name: FORMATS.add\(name, format\)"):
        format_of(params)


def test_names_that_there_are_not_are_one_line(tiny_llama):
    for call in (
        lambda: quantize_leaf("head/kernel", jnp.ones((2, 2)), "nf5"),
        lambda: jaxinfer.load("smollm2-135m", weights="nf5"),
        lambda: quantize_weights(tiny_llama, "nf5"),
    ):
        with pytest.raises(InputError, match=r"weights: 'nf5' must be one of int8, .*, nf4, fp8; nearest: 'nf4'$"):
            call()
