"""Products by lanes: int8, int4 and bfloat16, converted in registers, against the numbers that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import Model, ModelConfig
from jaxinfer.cache import Dense, Paged, Window
from jaxinfer.config import LayerKind, Segment
from jaxinfer.layers.linear import matmul
from jaxinfer.weights import elementwise_products
from jaxinfer.weights.bfloat16_bits import WithBits, bits_of, without_bits
from jaxinfer.weights.formats import FORMATS, fp8, int4, int8
from jaxinfer.weights.qtensor import dequantized, take

RNG = np.random.default_rng(0)


def bfloat16(w):
    stack = jnp.asarray(w, jnp.bfloat16)
    return WithBits(stack, bits_of(stack))


WEIGHTS = {name: FORMATS[name].encode for name in ("int8", "int4", "int4-64", "int4-128", "fp8")}
WEIGHTS["bfloat16"] = lambda w, n_in=1: bfloat16(w)


def numbers(weight):
    return np.asarray(weight.weight if isinstance(weight, WithBits) else dequantized(weight), np.float64)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("inputs", [32, 96, 576, 2080])  # one term; a few; a loop of them; several loops, the last odd
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_products_are_those_of_the_numbers(name, inputs, rows):
    weight = WEIGHTS[name](RNG.normal(size=(13, inputs)).astype(np.float32))
    x = RNG.normal(size=(rows, inputs)).astype(np.float32)
    x[0] *= 1e-3  # each row is as exact as if it were alone
    expected = x.astype(np.float64) @ numbers(weight).T
    product = jax.jit(lambda x, w: matmul(x, w, (13, inputs)))
    for _ in range(2):
        error = np.abs(product(jnp.asarray(x), weight) - expected) / np.abs(expected).max(axis=1, keepdims=True)
        assert error.max() < 3e-6


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_layer_of_a_stack_over_two_input_axes(name):
    weight = WEIGHTS[name](RNG.normal(size=(3, 10, 4, 32)).astype(np.float32), n_in=2)
    x = jnp.asarray(RNG.normal(size=(2, 1, 4, 32)), jnp.float32)
    product = jax.jit(lambda x, w, layer: matmul(x, w, (10, 4, 32), 2, layer))
    for layer in (2, 0):
        expected = np.einsum("btnh,dnh->btd", x, numbers(weight)[layer])
        np.testing.assert_allclose(product(x, weight, jnp.int32(layer)), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("more", [0, 5])  # whole blocks of outputs, and a ragged rest
def test_many_outputs_are_added_up_block_by_block(name, more, monkeypatch):
    monkeypatch.setattr(elementwise_products, "AT_ONCE", 16)
    weight = WEIGHTS[name](RNG.normal(size=(24 + more, 64)).astype(np.float32))
    x = RNG.normal(size=(2, 64)).astype(np.float32)
    expected = x.astype(np.float64) @ numbers(weight).T
    found = matmul(jnp.asarray(x), weight, (24 + more, 64))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_layer_is_copied_or_converted(name):
    """What a step's product needs besides its result is less than the layer in its own format."""
    weight = WEIGHTS[name](RNG.normal(size=(3, 512, 1024)).astype(np.float32))
    held = sum(x.nbytes for x in jax.tree.leaves(without_bits(weight))) // 3

    def chain(x, w):
        return jax.lax.scan(lambda x, i: (jnp.tile(matmul(x, w, (512, 1024), layer=i), 2), None), x, jnp.arange(3))[0]

    compiled = jax.jit(chain).lower(jnp.ones((1, 1024)), weight).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * held


def test_shapes_that_do_not_fit_are_left_to_others():
    fits, most = elementwise_products.fits, elementwise_products.MOST_INPUTS
    assert fits(int8.ROWS, 64, int8.ROWS)
    assert not fits(1, 72, int8.ROWS)  # no whole number of lanes
    assert not fits(5, 64, int8.ROWS)
    assert not fits(int4.ROWS + 1, 64, int4.ROWS)
    assert not fits(fp8.ROWS + 1, 64, fp8.ROWS)
    assert not fits(1, 2 * most, int8.ROWS)


def test_integers_times_integers_are_no_elementwise_sums(monkeypatch):
    monkeypatch.setattr(elementwise_products, "product", lambda *_: pytest.fail("sums were written"))
    x, w = jnp.ones((1, 64)), RNG.normal(size=(8, 64)).astype(np.float32)
    matmul(x, FORMATS["w8a8"].encode(w), (8, 64))
    with pytest.raises(pytest.fail.Exception):
        matmul(x, FORMATS["int8"].encode(w), (8, 64))


CONFIG = ModelConfig("llama", 97, 128, 256, 8, 4, 64, (Segment((LayerKind(),), 3),), 512)


def test_bits_are_the_weights_memory_and_are_counted_once():
    model = Model.random(CONFIG, dtype="bfloat16")
    up = model.placed.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
    stack = model.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
    assert up.bits.unsafe_buffer_pointer() == stack.unsafe_buffer_pointer()
    assert up.nbytes == stack.nbytes
    found = model.generate([[1, 2, 3]], max_new_tokens=2)
    assert found.stats.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(model.params))


def test_rows_of_a_table_of_bits_are_the_tables():
    table = bfloat16(RNG.normal(size=(20, 33)))
    rows = jnp.array([[3, 0], [19, 3]])
    found = take(table, rows)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, np.asarray(table.weight)[np.asarray(rows)])


@pytest.mark.parametrize("policy", [Dense(), Window(), Paged()], ids=repr)
def test_a_bfloat16_cache_is_kept_as_bits_and_never_converted_whole(policy):
    """A step needs no more memory where the cache is larger, and the text is that of the same model's logits."""
    model = Model.random(CONFIG.replace(max_positions=2048), dtype="bfloat16")
    prompt = list(range(1, 40))
    scratch, texts = [], []
    for capacity in (256, 2048):
        sized = type(policy)(capacity=capacity)
        found = model.generate([prompt], max_new_tokens=24, policy=sized)
        scratch.append(found.stats.temp_bytes)
        texts.append(found.tokens[0])
    store = model.placed.empty_cache(policy, np.array([40]), 256).stores[CONFIG.kinds[0].name]
    assert {x.dtype for x in jax.tree.leaves(store.k)} == {jnp.dtype("uint16")}
    one_layer = 2048 * 4 * 64 * 2
    assert scratch[1] - scratch[0] < one_layer, scratch
    assert texts[0] == texts[1]
    logits = np.asarray(model.logits([prompt + texts[0]]))[0, len(prompt) - 1 : -1]
    behind = logits.max(axis=-1) - np.take_along_axis(logits, np.array(texts[0])[:, None], axis=-1)[:, 0]
    assert behind.max() < 0.1


def test_bfloat16_of_a_step_is_as_exact_as_its_weights():
    """One token at a time, bits converted in registers: within bfloat16's rounding of float32 with the same weights."""
    model = Model.random(CONFIG, dtype="bfloat16")
    exact = Model(CONFIG, jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
    prompt = list(range(1, 20))
    text = model.generate([prompt], max_new_tokens=16, logprobs=True)
    expected = jax.nn.log_softmax(np.asarray(exact.logits([prompt + text.tokens[0]]))[0, len(prompt) - 1 : -1])
    found = np.take_along_axis(np.asarray(expected), np.array(text.tokens[0])[:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(text.logprobs[0], found, atol=0.05)
