"""Beam search against transformers', diverse beams against their definition."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import Adaptive, Beam, Dense, Greedy, InputError, Sampling, Window, programs
from jaxinfer.cache.store import BLOCK, States, gather, reorder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
searches = pytest.importorskip("searches")

LENGTHS, LIMITS = (1, 9, 30, 14), [24, 20, 24, 3]
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


def assert_same(found, expected):
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-5)


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
        before = programs.TRACES["decode"]
        result = model.generate(prompts, max_new_tokens=LIMITS, method=method, policy=policy)
        assert programs.TRACES["decode"] - before <= (seed == 0)
        for prompt, limit, found in zip(prompts, LIMITS, result.beams, strict=True):
            assert_same(found, transformers_beams(twin, prompt, limit, method, stops))
            lengths |= {len(text) for text, _ in found}
        assert result.tokens == [found[0][0] for found in result.beams]
        assert result.stats.emitted == [len(row) for row in result.tokens]
    assert {3, 24} < lengths  # some stopped elsewhere


def test_what_a_search_costs_and_what_it_finds(tiny_gemma, ragged):
    method, prompts = Beam(beams=4, returned=4), ragged(LENGTHS)
    result = tiny_gemma.generate(prompts, max_new_tokens=24, method=method, logprobs=True)
    greedy = tiny_gemma.generate(prompts, max_new_tokens=24, method=Greedy(), logprobs=True)
    assert result.stats.steps == [24] * 4
    assert result.stats.cache_bytes > 4 * greedy.stats.cache_bytes
    for prompt, new, found, values, plain in zip(
        prompts, result.tokens, result.beams, result.logprobs, greedy.logprobs, strict=True
    ):
        assert len({tuple(text) for text, _ in found}) == 4
        assert found[0][1] >= np.mean(plain) - 1e-5
        assert found[0][1] == pytest.approx(np.mean(values), abs=1e-5)
        text = np.zeros((1, 64), np.int32)
        text[0, : len(prompt) + 24] = prompt + new
        rows = jax.nn.log_softmax(tiny_gemma.logits(text)[0])[len(prompt) - 1 :]
        np.testing.assert_allclose(values, rows[np.arange(24), np.array(new)], atol=2e-4)
    alone = tiny_gemma.generate([prompts[2]], max_new_tokens=24, method=method, logprobs=True)
    assert_same(alone.beams[0], result.beams[2])


def test_one_beam_is_greedy(tiny_gemma, ragged):
    for stops in ((), STOPS):
        model, prompts = searches.stopping(tiny_gemma, *stops), ragged(LENGTHS)
        expected = model.generate(prompts, max_new_tokens=LIMITS, method=Greedy()).tokens
        assert model.generate(prompts, max_new_tokens=LIMITS, method=Beam(beams=1)).tokens == expected


@pytest.mark.parametrize("stops", [(), STOPS])
def test_diverse_beams_by_their_definition(tiny_gemma, twin, ragged, stops):
    method = Beam(beams=6, groups=3, diversity_penalty=0.7, length_penalty=0.5, returned=6)
    prompts, model = ragged(LENGTHS), searches.stopping(tiny_gemma, *stops)
    result = model.generate(prompts, max_new_tokens=[12, 12, 12, 3], method=method)
    for prompt, limit, found in zip(prompts, [12, 12, 12, 3], result.beams, strict=True):
        expected = searches.diverse_beams(twin, prompt, limit, stops, 6, 3, 0.7, 0.5)
        assert_same(found, expected)
        same = searches.diverse_beams(twin, prompt, limit, stops, 6, 3, 0.0, 0.5)
        assert len({text[0] for text, _ in expected}) > len({text[0] for text, _ in same})


def test_beams_of_a_model_that_carries_a_state(tmp_path):
    """The states of a recurrent model go where the beams go; no stop tokens, so that transformers' forward is enough."""
    arrays = np.load(Path(__file__).parents[1] / "golden" / "mamba.npz")
    test_families = pytest.importorskip("test_families")
    golden = test_families.Golden(Path(arrays.fid.name), tmp_path)
    theirs, method = golden.in_torch(), Beam(beams=3, returned=3)
    result = golden.ours.generate(golden.prompts, max_new_tokens=10, method=method)
    for prompt, found in zip(golden.prompts, result.beams, strict=True):
        assert_same(found, searches.diverse_beams(theirs, prompt, 10, (), 3, 1, 0.0, 1.0))


@pytest.mark.parametrize("policy", [Dense(), Window()], ids=str)
def test_a_cache_reordered_in_place_is_a_cache_gathered(tiny_gemma, policy):
    cfg = tiny_gemma.config
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
    with pytest.raises(InputError, match="Dense cannot copy a row" if policy == Dense() else "Window cannot copy"):
        gather(dataclasses.replace(cache, aux=jnp.zeros((2, 4))), rows)


def test_a_search_streams_its_text_at_the_end(smollm2):
    stream = smollm2.stream("The capital of France is", max_new_tokens=8, method=Beam(beams=2, returned=2))
    pieces = list(stream)
    result = smollm2.generate(
        ["The capital of France is"], max_new_tokens=8, method=Beam(beams=2, returned=2), stop=" the", progress=print
    )
    assert "".join(pieces).startswith(result.texts[0])
    assert stream.tokens == result.beams[0][0][0]


def test_a_real_model(smollm2):
    torch_models = pytest.importorskip("torch_models")
    theirs, method = torch_models.smollm2(), Beam(beams=4, returned=2)
    prompts = [smollm2.encode(text) for text in ("The first man to walk on the Moon was", "def add(a, b):\n")]
    result = smollm2.generate(prompts, max_new_tokens=24, method=method)
    for prompt, found in zip(prompts, result.beams, strict=True):
        assert_same(found, transformers_beams(theirs, prompt, 24, method, smollm2.tokenizer.stop_ids))


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
