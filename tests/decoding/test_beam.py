"""Beam search against transformers', diverse beams against their definition: ragged batches against rows alone."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import Adaptive, Beam, Dense, Greedy, InputError, Model, Sampling, Window
from jaxinfer.cache.store import BLOCK, States, gather, reorder
from jaxinfer.runtime import compiled

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
searches = pytest.importorskip("searches")

LENGTHS, LIMITS = (1, 30, 14), [16, 20, 3]
STOPS = (12, 47, 56, 90)


@pytest.fixture(scope="module")
def twin(tiny_gemma, tmp_path_factory):
    return searches.in_torch(tiny_gemma, tmp_path_factory.mktemp("twin") / "model")


def transformers_beams(model, prompt, new, method, stops):
    """[(tokens, score)] of transformers' own beam search on one prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            num_beams=method.beams,
            num_return_sequences=method.returned,
            length_penalty=method.length_penalty,
            early_stopping=method.early_stopping,
            eos_token_id=list(stops) or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    # Behind a text that ended stands padding, of token 0, which stops nothing.
    rows = [row[len(prompt) :].tolist() for row in found.sequences]
    ends = [next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in rows]
    return [(row[:end], score) for row, end, score in zip(rows, ends, found.sequences_scores.tolist(), strict=True)]


def assert_same(found, expected, rtol=1e-5):
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=rtol)


@pytest.mark.parametrize(
    ("method", "policy"),
    [
        (Beam(beams=4, returned=4), Window()),
        (Beam(beams=3, length_penalty=2.0, early_stopping="never", returned=2), Window()),
        (Beam(beams=4, length_penalty=-0.5, early_stopping=True, returned=3), Dense()),
    ],
    ids=str,
)
def test_the_texts_and_scores_of_transformers(tiny_gemma, twin, ragged, method, policy):
    """Texts that stop, and texts that meet the limit; a second call with others, of the same program."""
    lengths = set()
    for stops, seed in ((STOPS, 0), ((), 1)):
        prompts = ragged(LENGTHS, seed=seed)
        model = searches.stopping(tiny_gemma, *stops)
        before = compiled.TRACES["decode"]
        result = model.generate(prompts, max_new_tokens=LIMITS, method=method, policy=policy)
        assert compiled.TRACES["decode"] - before <= (seed == 0)
        for prompt, limit, found in zip(prompts, LIMITS, result.beams, strict=True):
            assert_same(found, transformers_beams(twin, prompt, limit, method, stops))
            lengths |= {len(text) for text, _ in found}
        assert result.tokens == [found[0][0] for found in result.beams]
        assert result.stats.emitted == [len(row) for row in result.tokens]
    assert {3, 20} < lengths  # some stopped elsewhere


def test_what_a_search_costs_and_the_logprobs_of_its_texts(tiny_gemma, twin, ragged):
    method, prompts = Beam(beams=4, returned=4), ragged(LENGTHS)
    result = tiny_gemma.generate(prompts, max_new_tokens=16, method=method, logprobs=True)
    assert result.stats.steps == [16] * 3
    per_row = sum(x.nbytes for x in jax.tree.leaves(Window().init(tiny_gemma.config, 1, 128, jnp.float32)))
    assert 12 * per_row < result.stats.cache_bytes < 13 * per_row
    for prompt, new, found, values in zip(prompts, result.tokens, result.beams, result.logprobs, strict=True):
        assert len({tuple(text) for text, _ in found}) == 4
        assert found[0] == (new, pytest.approx(np.mean(values), abs=1e-5))
        with torch.inference_mode():
            logits = twin(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1].numpy()
        np.testing.assert_allclose(values, searches.log_softmax(logits)[np.arange(16), new], atol=1e-4)


def test_one_beam_is_greedy(tiny_gemma, ragged):
    for stops in ((), STOPS):
        model, prompts = searches.stopping(tiny_gemma, *stops), ragged(LENGTHS)
        expected = model.generate(prompts, max_new_tokens=LIMITS, method=Greedy()).tokens
        assert model.generate(prompts, max_new_tokens=LIMITS, method=Beam(beams=1)).tokens == expected


def test_diverse_beams_by_their_definition(tiny_gemma, twin, ragged):
    method = Beam(beams=6, groups=3, diversity_penalty=0.7, length_penalty=0.5, returned=6)
    prompts, limits = ragged(LENGTHS), [10, 8, 3]
    for stops in ((), STOPS):
        result = searches.stopping(tiny_gemma, *stops).generate(prompts, max_new_tokens=limits, method=method)
        for prompt, limit, found in zip(prompts, limits, result.beams, strict=True):
            assert_same(found, searches.diverse_beams(twin, prompt, limit, stops, 6, 3, 0.7, 0.5))
            assert len({tuple(text) for text, _ in found}) > 2  # without a penalty every group finds the same two


def test_beams_of_a_model_that_carries_a_state(tmp_path):
    """The states of a recurrent model go where the beams go."""
    arrays = np.load(Path(__file__).parents[1] / "golden" / "mamba.npz")
    test_families = pytest.importorskip("test_families")
    golden = test_families.Golden(Path(arrays.fid.name), tmp_path)
    theirs, method = golden.in_torch(), Beam(beams=3, returned=3)
    result = golden.ours.generate(golden.prompts[:2], max_new_tokens=6, method=method)
    for prompt, found in zip(golden.prompts, result.beams, strict=False):
        assert_same(found, searches.diverse_beams(theirs, prompt, 6, (), 3, 1, 0.0, 1.0))


def test_a_cache_reordered_in_place_is_a_cache_gathered(tiny_gemma):
    """Rings, whole rows, states, and a policy's own arrays."""
    cfg, policy = tiny_gemma.config, Window()
    cache = policy.init(cfg, 4, 3 * BLOCK, jnp.float32)
    rng = np.random.default_rng(0)
    for n in ([5, 0, 90, 64], [60, 70, 100, 1]):  # rows of other lengths; the last of three blocks stays empty
        shape = (cfg.count(cfg.kinds[0]), 4, cfg.n_kv_heads, 100, cfg.head_dim)
        fresh = {kind.name: tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in "kv") for kind in cfg.kinds}
        cache = policy.commit(cache, fresh, None, jnp.array(n, jnp.int32), None)
    state = States({"sums": jnp.asarray(rng.normal(size=(2, 4, 3, 5)))})
    cache = dataclasses.replace(cache, stores={**cache.stores, "carried": state}, aux=jnp.arange(8.0).reshape(4, 2))
    rows = jnp.array([2, 2, 0, 3])
    found, expected = jax.jit(reorder)(cache, rows), gather(cache, rows)
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), found, expected)
    assert found.length.tolist() == [190, 190, 65, 65]
    np.testing.assert_array_equal(found.stores["global"].k[:, 1], cache.stores["global"].k[:, 2])
    np.testing.assert_array_equal(found.stores["carried"].state["sums"][:, 2], state.state["sums"][:, 0])
    assert jax.tree.map(jnp.shape, gather(cache, jnp.repeat(jnp.arange(4), 3)).stores["global"].pos) == (12, 3 * BLOCK)
    with pytest.raises(InputError, match="Window cannot copy a row"):
        gather(dataclasses.replace(cache, aux=jnp.zeros((2, 4))), rows)


def test_texts_come_at_the_end_and_stop_strings_cut_them(smollm2, tiny_llama):
    """Random weights over a real vocabulary. The second prompt is at its end first, and leaves the other alone."""
    random = Model.random(tiny_llama.config.replace(vocab_size=49152))
    model = dataclasses.replace(random, tokenizer=smollm2.tokenizer)
    method, prompts, limits = Beam(beams=3, returned=2), ["Once", "The end"], [20, 3]
    free = model.generate(prompts, method=method, max_new_tokens=limits)
    last = smollm2.tokenizer.decode(free.tokens[1][2:])
    cut = model.generate(prompts, method=method, max_new_tokens=limits, stop=last, progress=lambda done, total: None)
    assert last not in free.texts[0]
    assert cut.texts == [free.texts[0], free.texts[1][: free.texts[1].find(last)]]
    assert cut.beams == free.beams
    stream = model.stream(prompts[1], method=method, max_new_tokens=3)
    assert list(stream) == [free.texts[1]]
    assert stream.tokens == free.tokens[1]


def test_a_real_model(smollm2):
    torch_models = pytest.importorskip("torch_models")
    theirs, method = torch_models.smollm2(), Beam(beams=4, returned=2)
    prompts = [smollm2.encode(text) for text in ("The first man to walk on the Moon was", "def add(a, b):\n")]
    result = smollm2.generate(prompts, max_new_tokens=24, method=method)
    for prompt, found in zip(prompts, result.beams, strict=True):
        assert_same(found, transformers_beams(theirs, prompt, 24, method, smollm2.tokenizer.stop_ids), 2e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beams": 0}, "beams=0 must be at least 1"),
        ({"beams": 2, "returned": 3}, "returned=3 must be between 1 and beams=2"),
        ({"beams": 4, "groups": 3, "diversity_penalty": 1.0}, "groups=3 must divide beams=4"),
        ({"beams": 4, "groups": 2}, "groups=2 with diversity_penalty=0.0"),
        ({"diversity_penalty": 0.5}, "groups=1 with diversity_penalty=0.5"),
        ({"diversity_penalty": -1.0}, "diversity_penalty=-1.0"),
        ({"length_penalty": float("nan")}, "length_penalty=nan"),
        ({"early_stopping": "always"}, "early_stopping='always' must be True, False or 'never'"),
    ],
)
def test_bad_input_is_one_line(options, named):
    with pytest.raises(InputError, match=named) as error:
        Beam(**options)
    assert "\n" not in str(error.value)


def test_what_a_search_cannot_be_combined_with(tiny_llama):
    with pytest.raises(InputError, match="Beam takes no sampling"):
        tiny_llama.generate([[1]], method=Beam(), sampling=Sampling(temperature=0.7))
    with pytest.raises(InputError, match="beams=98 must be at most 97"):
        tiny_llama.generate([[1]], method=Beam(beams=98))
    with pytest.raises(InputError, match="Beam"):
        Adaptive(Beam())
