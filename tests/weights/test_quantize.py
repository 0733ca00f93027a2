"""Models with quantized weights are the models with the weights that these stand for, under every method."""

import dataclasses
import weakref

import jax
import numpy as np
import pytest

import jaxinfer
from jaxinfer import InputError, Lookup, Model, SelfSpeculative, Speculative
from jaxinfer.analysis.quality import token_nll
from jaxinfer.checkpoint import export, presets, save_checkpoint
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.compress.quantize import quantize_weights
from jaxinfer.config import MoE
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.qtensor import is_quantized
from jaxinfer.weights.quantize import dequantize_params


def plain(model):
    """The same numbers, as arrays."""
    return dataclasses.replace(model, params=dequantize_params(model.params, "float32"))


@pytest.mark.parametrize(("name", "format"), [("tiny_gemma", "int4"), ("tiny_segments", "int8")])
def test_logits_and_texts_are_those_of_the_numbers(request, ragged, name, format):
    tiny = request.getfixturevalue(name)
    model, prompts = quantize_weights(tiny, format), ragged((1, 9, 30))
    assert model.weights == format
    tokens = np.array(ragged((40, 40)))
    expected = np.asarray(plain(model).logits(tokens))
    np.testing.assert_allclose(model.logits(tokens), expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected - np.asarray(tiny.logits(tokens))).max() > 1e-3 * np.abs(expected).max()  # it is another
    greedy = model.generate(prompts, max_new_tokens=40).tokens
    assert greedy == plain(model).generate(prompts, max_new_tokens=40).tokens
    result = model.generate(prompts, max_new_tokens=40, method=Lookup(width=5))
    assert result.tokens == greedy
    assert result.stats.tokens_per_step > 1


def test_layers_run_one_by_one_too(tiny_llama, ragged):
    model, prompts = quantize_weights(tiny_llama, "int4"), ragged((7, 20))
    result = model.generate(prompts, max_new_tokens=20, method=SelfSpeculative(3, skip=(1,)))
    assert result.tokens == model.generate(prompts, max_new_tokens=20).tokens


def test_experts_are_quantized_and_routers_are_not(tiny_llama, ragged):
    kind = dataclasses.replace(tiny_llama.config.kinds[0], moe=MoE(4, 2, 24))
    segment = dataclasses.replace(tiny_llama.config.segments[0], pattern=(kind,))
    model = quantize_weights(Model.random(tiny_llama.config.replace(segments=(segment,))), "int8")
    leaves = jax.tree_util.tree_flatten_with_path(model.params, is_leaf=is_quantized)[0]
    kept = {
        "/".join(entry.key for entry in path).rpartition("layer_0/")[2] for path, x in leaves if not is_quantized(x)
    }
    assert kept == {"final_norm/scale", "attention_norm/scale", "mlp_norm/scale", "moe/router/kernel"}
    tokens = np.array(ragged((16, 16)))
    np.testing.assert_allclose(model.logits(tokens), plain(model).logits(tokens), atol=1e-4)


@pytest.mark.parametrize("format", ["nf4", "fp8"])
def test_experts_in_a_format_are_those_of_the_numbers(tiny_llama, ragged, format):
    kind = dataclasses.replace(tiny_llama.config.kinds[0], moe=MoE(4, 2, 24))
    segment = dataclasses.replace(tiny_llama.config.segments[0], pattern=(kind,))
    model = quantize_weights(Model.random(tiny_llama.config.replace(segments=(segment,))), format)
    tokens = np.array(ragged((16, 16)))
    np.testing.assert_allclose(model.logits(tokens), plain(model).logits(tokens), atol=1e-4)


@pytest.mark.parametrize("format", ["int4", "nf4", "fp8"])
def test_a_model_drafts_for_itself_in_a_format(tiny_llama, ragged, format):
    prompts = ragged((7, 20))
    model = tiny_llama.attach(draft=quantize_weights(tiny_llama, format))
    result = model.generate(prompts, max_new_tokens=20, method=Speculative(3))
    assert result.tokens == model.generate(prompts, max_new_tokens=20).tokens
    assert result.stats.tokens_per_step > 1


def test_a_mesh_gives_the_same_text(tiny_llama, ragged):
    model, prompts = quantize_weights(tiny_llama, "int4"), ragged((7, 20))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "tensor"))
    assert (
        model.shard(mesh).generate(prompts, max_new_tokens=8).tokens == model.generate(prompts, max_new_tokens=8).tokens
    )
    with pytest.raises(InputError, match="random is spread over a mesh already: quantize it before"):
        quantize_weights(tiny_llama.shard(mesh), "int8")


@pytest.mark.parametrize("format", FORMATS)
def test_weights_take_the_bits_that_the_format_says(tiny_llama, format):
    config = tiny_llama.config.replace(d_model=256, d_ff=512, head_dim=64, vocab_size=512)
    model = Model.random(config)
    bits = {"int4": 6, "int4-64": 5, "int4-128": 4.5, "nf4": 4.127}.get(
        format, 8
    )  # of scale and minimum 2 x 32 a group
    params = quantize_weights(model, format).params

    def stored(name):
        found, whole = (sum(x.nbytes for x in jax.tree.leaves(tree[name])) for tree in (params, model.params))
        return 32 * found / whole

    assert bits < stored("segment_0") < bits + 0.6
    assert 8 < stored("embed") < 8.2
    assert 8 < stored("head") < 8.2


def test_a_real_model_says_about_the_same(smollm2, prose):
    """Its file has groups of 32 with 4 bits behind the embedding: int4 finds their numbers again."""
    ids = np.array([smollm2.encode(prose)[:512]])
    nll, models = float(np.mean(token_nll(smollm2, ids))), {}
    for format, most in (("int4", 0.02), ("int8", 0.03), ("int4-128", 1.0)):
        models[format] = quantize_weights(smollm2, format)
        assert models[format].weights == format
        assert 1e-4 < float(np.mean(token_nll(models[format], ids))) - nll < most
    again = plain(models["int4"]).params["segment_0"]
    for found, expected in zip(jax.tree.leaves(again), jax.tree.leaves(smollm2.params["segment_0"]), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(np.asarray(expected)).max())


@pytest.mark.parametrize("format", FORMATS)
def test_folders_keep_the_codes_and_exports_the_numbers(tiny_llama, tmp_path, ragged, format):
    model = quantize_weights(tiny_llama, format)
    save_checkpoint(Checkpoint(model.config, model.params, None, "tiny"), tmp_path / "kept")
    again = jaxinfer.load(str(tmp_path / "kept"), dtype="float32")
    assert again.weights == format
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    for found, expected in zip(jax.tree.leaves(again.params), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match=f"tiny has {format} weights already"):
        jaxinfer.load(str(tmp_path / "kept"), dtype="float32", weights="int8" if format != "int8" else "int4")
    export(tmp_path / "kept", tmp_path / "exported")
    tokens = np.array(ragged((9, 9)))
    exported = jaxinfer.load(str(tmp_path / "exported"), dtype="float32")
    assert exported.weights is None
    np.testing.assert_allclose(exported.logits(tokens), plain(model).logits(tokens), atol=1e-5)


def test_what_is_loaded_is_rounded_before_the_next_is_read(tiny_llama, tmp_path, monkeypatch):
    """No two parameters that are rounded are there unrounded, in a folder of either kind; the numbers are the same."""
    save_checkpoint(Checkpoint(tiny_llama.config, tiny_llama.params, None, "tiny"), tmp_path / "kept")
    export(tmp_path / "kept", tmp_path / "exported")
    expected = quantize_weights(tiny_llama, "int8").params
    kept = sum(x.nbytes for x in jax.tree.leaves(expected, is_leaf=is_quantized) if not is_quantized(x))
    for folder in ("kept", "exported"):
        placed, held = [], []

        def place(leaf, placed=placed, held=held):
            held.append(sum(one().nbytes for one in placed if one() is not None))
            there = jax.device_put(leaf)
            placed.append(weakref.ref(there))
            return there

        params = load_checkpoint(tmp_path / folder, "float32", place, weights="int8").params
        assert max(held) <= kept
        assert jax.tree.structure(params) == jax.tree.structure(expected)
        assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(expected)))
    monkeypatch.setitem(presets.SHAPES, "tiny", tiny_llama.config)
    params = jaxinfer.load("random:tiny", dtype="float32", weights="int8").params  # of the same seed
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(expected)))


def test_bad_formats_are_one_line(tiny_llama):
    with pytest.raises(InputError, match=r"weights: 'int3' must be one of int8, int4, .*; nearest: 'int[48]'"):
        jaxinfer.load("smollm2-135m", weights="int3")
    with pytest.raises(InputError, match="random has int8 weights already"):
        quantize_weights(quantize_weights(tiny_llama, "int8"), "int4")
