"""Contrastive search against its definition: row by row alone, a forward of its own for every candidate."""

import pytest

from jaxinfer import Contrastive, Greedy, InputError, LayerKind, Model, Sampling, Segment
from jaxinfer.config import LinearAttention
from jaxinfer.runtime import compiled

searches = pytest.importorskip("searches")  # needs torch and transformers

LENGTHS, LIMITS = (1, 30, 14), [12, 14, 1]


def test_the_texts_of_the_definition(tiny_gemma, ragged, tmp_path):
    """Under Window, whose local layers have windows of 8."""
    k, alpha = 4, 0.6
    twin, lengths = searches.in_torch(tiny_gemma, tmp_path / "model"), set()
    for stops, seed in (((), 0), ((47, 37, 12, 3, 56), 1)):
        prompts, model = ragged(LENGTHS, seed=seed), searches.stopping(tiny_gemma, *stops)
        before = compiled.TRACES["decode"]
        result = model.generate(prompts, max_new_tokens=LIMITS, method=Contrastive(k, alpha))
        assert compiled.TRACES["decode"] - before <= (seed == 0)
        for prompt, limit, found in zip(prompts, LIMITS, result.tokens, strict=True):
            assert found == searches.contrastive(twin, prompt, limit, stops, k, alpha)
            lengths.add(len(found))
        assert result.stats.steps == [len(row) + 1 for row in result.tokens]
    assert len(lengths) > 3  # some stopped


def test_likely_alone_is_greedy(tiny_llama, ragged):
    prompts = ragged(LENGTHS)
    greedy = tiny_llama.generate(prompts, max_new_tokens=12, method=Greedy(), logprobs=True)
    plain = tiny_llama.generate(prompts, max_new_tokens=12, method=Contrastive(alpha=0.0), logprobs=True)
    assert plain.tokens == greedy.tokens
    for found, expected in zip(plain.logprobs, greedy.logprobs, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_bad_input_is_one_line(tiny_llama):
    for options, named in (
        ({"k": 0}, "k=0 must be at least 1"),
        ({"alpha": 1.5}, r"alpha=1.5 must be between 0.* and 1"),
    ):
        with pytest.raises(InputError, match=named):
            Contrastive(**options)
    with pytest.raises(InputError, match="k=98 must be at most 97"):
        tiny_llama.generate([[1]], method=Contrastive(k=98))
    with pytest.raises(InputError, match="Contrastive takes no sampling"):
        tiny_llama.generate([[1]], method=Contrastive(), sampling=Sampling(temperature=0.7))
    carried = LayerKind("carried", rope=None, mixer=LinearAttention())
    recurrent = Model(tiny_llama.config.replace(segments=(Segment((carried,), 1),)), {})
    with pytest.raises(InputError, match="Contrastive drafts trees"):
        recurrent.generate([[1]], method=Contrastive())
