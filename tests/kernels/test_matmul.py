"""Products with weight-only int8 and int4: the kernels, interpreted on a CPU, against numpy in float64.

JAX can interpret Mosaic GPU since 0.12; its wgmma become jnp products there (test_hopper.py).
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxinfer
from jaxinfer import InputError
from jaxinfer.compress.quantize import quantize_weights
from jaxinfer.kernels import dispatch, matmul, matmul_tpu
from jaxinfer.kernels.coded import CodedWeight
from jaxinfer.kernels.gpu import plgpu
from jaxinfer.layers.linear import matmul as linear
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.formats.int8 import Int8Weight

LAYERS, LAYER = 3, 2


def stack(name, outputs, inputs, seed=0, n_in=1):
    """A quantized stack of LAYERS weights, an outlier in each."""
    shape = (LAYERS, *outputs, *inputs) if isinstance(outputs, tuple) else (LAYERS, outputs, inputs)
    w = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    w[:, 0, 0] = 9
    return FORMATS[name].encode(w, n_in)


def truth(x, weight):
    """x times what the codes of the layer stand for, loop-free in float64, from the codes themselves."""
    codes = np.asarray(weight.codes[LAYER])
    scale = np.asarray(weight.scale[LAYER], np.float64)
    if isinstance(weight, Int8Weight):
        numbers = codes.astype(np.float64) * scale[..., None]
    else:
        codes = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.float64)
        by_code = (
            np.repeat(np.asarray(a[LAYER], np.float64), weight.group, -1) for a in (weight.scale, weight.minimum)
        )
        scale, minimum = by_code
        numbers = codes * scale + minimum
    numbers = numbers[..., : x.shape[-1]].reshape(-1, x.shape[-1])
    return np.asarray(x, np.float64) @ numbers.T


def activations(rows, inputs, dtype="float32", seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, inputs)), dtype)


def products(x, weight, outputs, target="tpu"):
    """Of the kernel, and of the definition in x's dtype."""

    def run(name, **given):
        with dispatch.use(name, of="matmul", **given):
            return jax.jit(lambda x, w: linear(x, w, (outputs, x.shape[1]), layer=jnp.int32(LAYER)))(x, weight)

    return run("pallas", target=target, interpret=True), run("reference")


def check(x, weight, outputs, target="tpu"):
    """float32: within 1e-5 of float64. 16 bits: at most twice the error that the definition makes in them."""
    found, defined = products(x, weight, outputs, target)
    assert found.dtype == jnp.float32
    exact = truth(x, weight)
    error, own = (np.abs(np.asarray(y) - exact).max() / np.abs(exact).max() for y in (found, defined))
    assert error <= (1e-5 if x.dtype == jnp.float32 else 2 * own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "rows", "outputs", "inputs"),
    [
        ("int8", 1, 256, 576),
        ("int8", 5, 200, 512),
        ("int8", 64, 130, 100),
        ("int4", 2, 200, 576),
        ("int4", 33, 128, 1024),
        ("int4-64", 8, 70, 256),
        ("int4-64", 1, 384, 640),
        ("int4-128", 5, 150, 300),
        ("int4-128", 64, 256, 512),
    ],
)
def test_products_of_one_layer(name, rows, outputs, inputs, dtype):
    check(activations(rows, inputs, dtype), stack(name, outputs, inputs), outputs)


@pytest.mark.skipif(not hasattr(plgpu, "InterpretGPUParams"), reason="this JAX cannot interpret Mosaic GPU")
@pytest.mark.parametrize(
    ("name", "rows", "outputs", "inputs", "dtype"),
    [
        ("int8", 1, 128, 768, "bfloat16"),
        ("int8", 64, 64, 256, "float16"),
        ("int4", 33, 128, 512, "bfloat16"),
        ("int4", 5, 64, 2560, "float16"),  # ten chunks, through the ring more than once
        ("int4-64", 2, 192, 256, "bfloat16"),
        ("int4-128", 8, 64, 768, "bfloat16"),
    ],
)
def test_products_on_hopper(name, rows, outputs, inputs, dtype):
    check(activations(rows, inputs, dtype), stack(name, outputs, inputs), outputs, "gpu")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
    outputs, inputs = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 400))
    x = activations(data.draw(st.integers(1, 64)), inputs, data.draw(st.sampled_from(["float32", "bfloat16"])))
    name = data.draw(st.sampled_from(matmul.FORMATS))
    check(x, stack(name, outputs, inputs, data.draw(st.integers(0, 99))), outputs)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_weights_of_several_axes_and_those_that_are_no_stack(name):
    weight, x = stack(name, (2, 40), (3, 32), n_in=2), activations(4, 96)
    one = jax.tree.map(lambda a: a[LAYER], weight)
    with dispatch.use("pallas", target="tpu", interpret=True):
        found = linear(x.reshape(4, 3, 32), weight, (2, 40, 3, 32), 2, layer=jnp.int32(LAYER))
        alone = linear(x.reshape(4, 3, 32), one, (2, 40, 3, 32), 2)
    np.testing.assert_allclose(found.reshape(4, 80), truth(x, weight), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(alone, found, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_codes_are_read_where_they_lie(name):
    """Nothing but the kernel sees the stack: no slice of a layer, no copy in another dtype."""
    weight, x = stack(name, 512, 512), activations(1, 512, "bfloat16")

    def product(x, weight):
        with dispatch.use("pallas", target="tpu"):
            return linear(x, weight, (512, 512), layer=jnp.int32(LAYER))

    equations = jax.make_jaxpr(product)(x, weight).eqns
    assert any(eqn.primitive.name == "pallas_call" for eqn in equations)
    views = ("reshape", "with_memory_space_constraint")  # of the same bytes
    large = [v.aval for eqn in equations if eqn.primitive.name not in views for v in eqn.outvars]
    assert max(a.size for a in large) < weight.codes.size // LAYERS


def test_other_layers_are_not_touched():
    weight, x = stack("int4", 128, 128), activations(3, 128)
    expected, _ = products(x, weight, 128)
    poisoned = weight.replace(
        scale=weight.scale.at[:LAYER].set(jnp.nan), minimum=weight.minimum.at[:LAYER].set(jnp.nan)
    )
    np.testing.assert_array_equal(products(x, poisoned, 128)[0], expected)


@pytest.mark.parametrize("format", matmul.FORMATS)
@pytest.mark.parametrize("width", [576, 14336, 53248])
@pytest.mark.parametrize("rows", [1, 64])
def test_plans_fit_a_v5e(format, width, rows):
    shapes = jax.eval_shape(lambda: stack(format, 1, width))
    wide = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, 4096, *a.shape[2:]), a.dtype), shapes)
    plan = matmul_tpu.Plan.of(rows, CodedWeight(format, **wide.arrays()), width)
    assert plan.outputs % 128 == 0
    stored = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(wide)) / (2 * 4096)
    assert 2 * (plan.outputs * stored + 2 * rows * width) <= 64 << 20
    assert plan.outputs * stored >= 128 << 10 or plan.outputs == 512


def call(platform="tpu", generation="", dtype="bfloat16", format="int8", outputs=4096, inputs=4096, devices=1):
    return matmul.Call(platform, generation, dtype, format, outputs, inputs, devices)


def choose(given):
    return dispatch.choose(given, matmul.TABLE, "matmul")


@pytest.mark.parametrize(
    ("given", "module"),
    [
        (call(), "matmul_tpu"),
        (call(dtype="float32", format="int4-64", outputs=7, inputs=9), "matmul_tpu"),
        (call("gpu", "9.0"), ""),  # until a device has proved it, only where it is forced
        (call("gpu", "8.0"), ""),
        (call("cpu"), ""),
    ],
)
def test_the_table_chooses_without_a_word(given, module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(given).module == module


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            call(dtype="float16"),
            "matmul falls back to plain XLA on tpu: it computes in bfloat16 or float32, not in float16",
        ),
        (call(devices=4), "it runs on one device, not on a mesh of 4"),
    ],
)
def test_what_the_kernel_does_not_take_falls_back_and_says_why_once(given, reason, monkeypatch):
    monkeypatch.setattr(dispatch, "_WARNED", set())
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        assert choose(given).name == "xla"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(given).name == "xla"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (call("gpu", "9.0", "float32"), "computes in bfloat16 or float16, not in float32"),
        (call("gpu", "9.0", outputs=100), "a multiple of 64 outputs, not 100"),
        (call("gpu", "9.0", inputs=576), "a multiple of 256 inputs, not 576"),
        (call("gpu", "8.0"), "compute capability 9.0, not 8.0"),
        (call("cpu"), "for gpu, not for cpu. What would: 'xla', 'reference'"),
        (call(dtype="float16"), "not in float16. What would: 'xla', 'reference'"),
    ],
)
def test_a_forced_choice_that_cannot_run_says_what_would(given, reason):
    with dispatch.use("pallas"), pytest.raises(InputError, match=reason):
        choose(given)
    with dispatch.use("pallas", of="attention"):  # says nothing about products
        assert choose(call("cpu")).name == "xla"


def test_what_is_forced_is_checked():
    with pytest.raises(InputError, match="no kernels of 'mlp': of is 'attention' or 'matmul'"):
        dispatch.use("xla", of="mlp").__enter__()
    weight, x = stack("int8", 64, 64), activations(1, 64, "float16")
    with dispatch.use("pallas", target="tpu", interpret=True), pytest.raises(InputError, match="not in float16"):
        linear(x, weight, (64, 64), layer=jnp.int32(0))


def test_prompts_and_products_of_integers_are_left_to_xla(monkeypatch):
    monkeypatch.setattr(matmul, "by_kernel", lambda *_: pytest.fail("the kernel was called"))
    weight = stack("int8", 64, 64)
    with dispatch.use("pallas", target="tpu", interpret=True):
        linear(activations(65, 64), weight, (64, 64), layer=jnp.int32(0))
        linear(activations(1, 64), stack("w8a8", 64, 64), (64, 64), layer=jnp.int32(0))
        with pytest.raises(pytest.fail.Exception):
            linear(activations(64, 64), weight, (64, 64), layer=jnp.int32(0))


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_model_writes_the_same_text_with_the_kernels(tiny_llama, ragged, format, monkeypatch):
    model, prompts = quantize_weights(tiny_llama, format), ragged((3, 9))
    expected = model.generate(prompts, max_new_tokens=8).tokens
    ran = []
    real = matmul.by_kernel
    monkeypatch.setattr(matmul, "by_kernel", lambda row, *args: ran.append(row.module) or real(row, *args))
    with jaxinfer.kernels.use("pallas", target="tpu", interpret=True, of="matmul"):
        assert model.generate(prompts, max_new_tokens=8).tokens == expected
    assert set(ran) == {"matmul_tpu"}
    assert len(ran) >= 8  # all of a layer's projections, and the head
