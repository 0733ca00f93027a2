"""DoLa against its definition, row by row alone, on transformers' hidden states."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import Dense, Dola, Greedy, InputError, Sampling
from jaxinfer.compress import keep_layers
from jaxinfer.decoding.methods.dola import candidates
from jaxinfer.network.transformer import forward
from jaxinfer.runtime import compiled

searches = pytest.importorskip("searches")  # needs torch and transformers

LENGTHS, LIMITS = (1, 30, 14), [12, 12, 5]


def test_the_texts_of_the_definition(tiny_gemma, ragged, tmp_path):
    """Alternating layers of two kinds, under Window; with a repetition penalty, as the authors use it."""
    method, used = Dola((0, 1, 2, 3), alpha=0.02), set()
    twin = searches.in_torch(tiny_gemma, tmp_path / "model")
    for stops, seed, penalty in (((), 0, 1.0), ((47, 37, 12, 3, 56), 1, 1.2)):
        prompts, sampling = ragged(LENGTHS, seed=seed), Sampling(temperature=0.0, repetition_penalty=penalty)
        stopping = searches.stopping(tiny_gemma, *stops)
        before = compiled.TRACES["decode"]
        result = stopping.generate(prompts, max_new_tokens=LIMITS, method=method, sampling=sampling)
        assert compiled.TRACES["decode"] - before <= (seed == 0)
        for prompt, limit, found in zip(prompts, LIMITS, result.tokens, strict=True):
            expected, chosen = searches.dola(twin, prompt, limit, stops, method.layers, method.alpha, penalty)
            assert found == expected
            used |= set(chosen)
    assert len(used) > 1  # the layer does change from token to token


def test_only_the_likeliest_token_is_plausible_at_alpha_1(tiny_llama, ragged):
    prompts = ragged(LENGTHS)
    greedy = tiny_llama.generate(prompts, max_new_tokens=12, method=Greedy(), logprobs=True)
    for sampling in (None, Sampling(temperature=1.5)):
        options = {"method": Dola(alpha=1.0), "sampling": sampling, "logprobs": True}
        found = tiny_llama.generate(prompts, max_new_tokens=12, **options)
        assert found.tokens == greedy.tokens
        np.testing.assert_allclose(found.logprobs, greedy.logprobs, atol=1e-4)  # the model's own, not the contrast's


def test_what_each_layer_leaves(tiny_segments):
    """In the order of the layers, over patterns, repeats and segments, from the embedding to the final norm."""
    params, cfg = tiny_segments.params, tiny_segments.config
    tokens, positions = jnp.array([[5, 6, 7]]), jnp.arange(3)[None]

    def run(model, **options):
        cache = Dense().init(model.config, 1, 1, jnp.float32)
        return jax.jit(partial(forward, model.network, **options))(model.params, tokens, positions, cache)

    output = run(tiny_segments, layers=True)
    assert output.layers.shape == (cfg.n_layers + 1, 1, 3, cfg.d_model)
    np.testing.assert_array_equal(output.layers[0], params["embed"]["embedding"][tokens])
    short = run(keep_layers(tiny_segments, [0, 1, 2]), layers=True)
    np.testing.assert_allclose(output.layers[:4], short.layers, atol=1e-5)
    last = output.layers[-1]
    normed = last / jnp.sqrt(jnp.mean(last**2, axis=-1, keepdims=True) + cfg.norm_eps)
    np.testing.assert_allclose(output.hidden, normed * params["final_norm"]["scale"], atol=1e-5)
    plain = partial(forward, tiny_segments.network, params, tokens, positions)
    assert jax.eval_shape(plain, Dense().init(cfg, 1, 1, jnp.float32)).layers is None


def test_the_layers_to_choose_from(tiny_llama):
    def of(layers, n_layers, tied):
        segments = (tiny_llama.config.segments[0].__class__(tiny_llama.config.segments[0].pattern, n_layers),)
        return candidates(layers, tiny_llama.config.replace(segments=segments, tie_embeddings=tied))

    assert of("low", 32, False) == tuple(range(0, 16, 2))  # LLaMA 7B, section 3.1
    assert of("high", 32, False) == tuple(range(16, 32, 2))
    assert of("low", 80, False) == tuple(range(0, 20, 2))  # LLaMA 65B
    assert of("high", 80, False) == tuple(range(60, 80, 2))
    assert of("low", 30, True) == tuple(range(2, 15, 2))
    assert [of("low", n, True) for n in (1, 2, 3, 4, 5, 6)] == [(0,), (1,), (2,), (2,), (2,), (2,)]
    assert of("high", 1, True) == (0,)


def test_bad_input_is_one_line(tiny_llama):
    for options, named in (
        ({"layers": "middle"}, "layers='middle' must be 'low', 'high'"),
        ({"layers": ()}, r"layers=\(\) must be"),
        ({"alpha": -0.1}, "alpha=-0.1 must be between 0 and 1"),
    ):
        with pytest.raises(InputError, match=named):
            Dola(**options)
    for layers, named in (
        ((0, 3), "names layer 3.*from 0 .*to 2"),
        ((-1,), "names layer -1"),
        ((0.5,), "must be .* a whole number"),
    ):
        with pytest.raises(InputError, match=named) as error:
            tiny_llama.generate([[1]], method=Dola(layers))
        assert "\n" not in str(error.value)
